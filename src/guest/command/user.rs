//! Who runs the command: passwd(5) and group(5), read from the guest's own files.

use std::fs;

use anyhow::{Context, bail};

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
                // A root folder without these files has users by numbers alone.
                let read = |path| fs::read(path).map(|it| String::from_utf8_lossy(&it).into_owned());
                let (passwd, groups) = (read("/etc/passwd"), read("/etc/group"));
                look_up(user, group.as_deref(), &passwd.unwrap_or_default(), &groups.unwrap_or_default())
            }
        }
    }
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
    fn unknown_names_are_errors() {
        assert!(look_up("eve", None, PASSWD, GROUP).is_err());
        assert!(look_up("ann", Some("wheel"), PASSWD, GROUP).is_err());
        assert!(look_up("-1", None, PASSWD, GROUP).is_err());
    }
}
