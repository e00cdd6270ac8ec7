//! Who runs the command: passwd(5) and group(5), read from the guest's own files.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use anyhow::{Context, bail};

use super::file;
use crate::spec::wire;

/// Numbers for the kernel, and what the environment says of the user where it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// `HOME`, `USER` and `LOGNAME` are another user's than kite's.
    pub env: Vec<(&'static str, String)>,
}

impl User {
    /// # Errors
    /// There is no such user or group.
    pub fn find(user: &wire::User) -> anyhow::Result<Self> {
        match user {
            wire::User::Numbers { uid, gid, groups } => {
                Ok(Self { uid: *uid, gid: *gid, groups: groups.clone(), env: Vec::new() })
            }
            wire::User::Named { user, group } => {
                look_up(user, group.as_deref(), &read("/etc/passwd"), &read("/etc/group"))
            }
            wire::User::Container { user, group } => {
                let (passwd, groups) = (read("/etc/passwd"), read("/etc/group"));
                look_up_in_container(user, group.as_deref(), &passwd, &groups)
            }
        }
    }
}

impl User {
    /// Makes the folder `run`/user/NUMBER, as a login does, where that is what `XDG_RUNTIME_DIR` names: the guest's /run is new,
    /// and the variable may be of a login on the host.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_runtime_folder(&self, named: Option<&OsStr>, run: &Path) -> io::Result<()> {
        let above = run.join("user");
        let folder = above.join(self.uid.to_string());
        if named != Some(folder.as_os_str()) || folder.exists() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o755).create(above)?;
        DirBuilder::new().mode(0o700).create(&folder)?;
        chown(folder, Some(self.uid), Some(self.gid))
    }
}

/// A file's text. A root folder without the file has users by number alone.
fn read(path: &str) -> String {
    file::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The same by the rules for containers, with `HOME` as all of the environment.
fn look_up_in_container(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> anyhow::Result<User> {
    let found = match look_up(user, group, passwd, groups) {
        // Of a number that the files do not have, the group is root's.
        Ok(found) if group.is_none() && !has_entry(found.uid, passwd) => User { gid: 0, ..found },
        Ok(found) if group.is_some() => User { groups: Vec::new(), ..found },
        Ok(found) => found,
        Err(error) => return Err(error),
    };
    let mut env = found.env;
    env.retain(|(name, _)| *name == "HOME");
    env.iter_mut().filter(|(_, home)| home.is_empty()).for_each(|(_, home)| *home = "/".to_owned());
    Ok(User { env, ..found })
}

fn has_entry(uid: u32, passwd: &str) -> bool {
    passwd.lines().map(fields).any(|it| it.len() >= 6 && it[2].parse() == Ok(uid))
}

fn look_up(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> anyhow::Result<User> {
    let entry = passwd.lines().map(fields).find(|it| {
        it.len() >= 6 && (it[0] == user || user.parse::<u32>().is_ok_and(|uid| it[2].parse() == Ok(uid)))
    });
    let (name, uid, own_gid, home) = match (&entry, user.parse()) {
        (Some(it), _) => {
            let number =
                |field: &str| field.parse().with_context(|| format!("/etc/passwd is broken for {user}"));
            (it[0], number(it[2])?, number(it[3])?, it[5])
        }
        (None, Ok(uid)) => (user, uid, uid, "/"),
        (None, Err(_)) => bail!("the guest's /etc/passwd has no user {user}"),
    };
    let gid = match group {
        None => own_gid,
        Some(group) => group_id(group, groups)?,
    };
    let member = |it: &Vec<&str>| it.len() >= 4 && it[3].split(',').any(|member| member == name);
    let of_name = groups.lines().map(fields).filter(member).filter_map(|it| it[2].parse().ok());
    let env = [("HOME", home), ("USER", name), ("LOGNAME", name)];
    let env = env.map(|(name, value)| (name, value.to_owned())).to_vec();
    Ok(User { uid, gid, groups: of_name.collect(), env })
}

fn group_id(group: &str, groups: &str) -> anyhow::Result<u32> {
    let mut entries = groups.lines().map(fields).filter(|it| it.len() >= 3);
    match (entries.find(|it| it[0] == group), group.parse()) {
        (Some(it), _) => it[2].parse().with_context(|| format!("/etc/group is broken for {group}")),
        (None, Ok(gid)) => Ok(gid),
        (None, Err(_)) => bail!("the guest's /etc/group has no group {group}"),
    }
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use nix::unistd::{getegid, geteuid};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\nkvm:x:104:bob,ann\ntty:x:5:annette\n";

    #[test]
    fn a_user_has_a_home_a_group_and_those_that_name_it() {
        let ann = look_up("ann", None, PASSWD, GROUP).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 1001, [104].as_slice()));
        assert_eq!(ann.env[0], ("HOME", "/home/ann".to_owned()));
        assert_eq!(look_up("1000", None, PASSWD, GROUP).unwrap(), ann);
        assert_eq!(look_up("ann", Some("tty"), PASSWD, GROUP).unwrap().gid, 5);
        assert_eq!(look_up("ann", Some("7"), PASSWD, GROUP).unwrap().gid, 7);
    }

    #[test]
    fn a_number_needs_no_name() {
        let nobody = look_up("4242", None, PASSWD, GROUP).unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.groups.len()), (4242, 4242, 0));
    }

    #[test]
    fn a_container_s_user_has_a_home_and_the_group_that_is_named_or_all_of_its_own() {
        let of = |user, group| look_up_in_container(user, group, PASSWD, GROUP).unwrap();
        let ann = of("ann", None);
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 1001, [104].as_slice()));
        assert_eq!(ann.env, [("HOME", "/home/ann".to_owned())]);
        let ann = of("1000", Some("tty"));
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 5, [].as_slice()));
        let unknown = of("4242", None);
        assert_eq!((unknown.uid, unknown.gid, &unknown.env[0].1[..]), (4242, 0, "/"));
        assert_eq!(of("4242", Some("7")).gid, 7);
        let empty = look_up_in_container("0", None, "", "").unwrap();
        assert_eq!((empty.uid, empty.gid), (0, 0));
        assert!(look_up_in_container("eve", None, PASSWD, GROUP).is_err());
        assert!(look_up_in_container("ann", Some("wheel"), PASSWD, GROUP).is_err());
    }

    #[test]
    fn the_folder_of_a_login_is_made_where_the_environment_names_it() {
        let run = tempfile::tempdir().unwrap();
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let user = User { uid, gid, groups: Vec::new(), env: Vec::new() };
        let folder = run.path().join(format!("user/{uid}"));
        for other in [None, Some(PathBuf::from("/elsewhere")), Some(run.path().join("user/123456789"))] {
            user.make_runtime_folder(other.as_deref().map(Path::as_os_str), run.path()).unwrap();
            assert!(!folder.exists(), "{other:?}");
        }
        for _again in 0..2 {
            user.make_runtime_folder(Some(folder.as_os_str()), run.path()).unwrap();
            let made = folder.metadata().unwrap();
            assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o700, uid, gid));
        }
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(look_up("eve", None, PASSWD, GROUP).is_err());
        assert!(look_up("ann", Some("wheel"), PASSWD, GROUP).is_err());
        assert!(look_up("-1", None, PASSWD, GROUP).is_err());
    }
}
