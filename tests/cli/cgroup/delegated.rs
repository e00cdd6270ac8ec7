//! Groups of version 2 that belong to a user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cgroup::group::{folders, groups, name};
use crate::support::attempt::Attempt;
use crate::support::child::End;
use crate::support::image::elf;
use crate::support::{NOBODY, root};

/// A group of version 2 that is a user's own, as a service manager delegates it, and another in it, which a shell of that
/// user enters before it runs a script.
struct Delegated {
    top: PathBuf,
    group: u32,
}

impl Delegated {
    /// One for `test`, or why there can be none.
    fn new(test: &str, top_too: bool) -> Result<Self, String> {
        use std::os::unix::fs::{MetadataExt, chown};
        const MOUNT: &str = "/sys/fs/cgroup";
        root()?;
        groups("pids=64")?;
        let controllers = fs::read_to_string(format!("{MOUNT}/cgroup.controllers")).unwrap_or_default();
        if !controllers.split_whitespace().any(|name| name == "pids") {
            return Err("the host's cgroups are not of version 2 alone".to_owned());
        }
        fs::write(format!("{MOUNT}/cgroup.subtree_control"), "+pids +cpu").unwrap();
        let kvm = fs::metadata("/dev/kvm").unwrap();
        if kvm.mode() & 0o060 != 0o060 {
            return Err("the group of /dev/kvm may not use it".to_owned());
        }
        let this = Self { top: Path::new(MOUNT).join(name(test)), group: kvm.gid() };
        fs::create_dir_all(this.top.join("scope")).unwrap();
        if !top_too {
            fs::write(this.top.join("cgroup.subtree_control"), "+pids +cpu").unwrap();
        }
        let first = if top_too { this.top.clone() } else { this.top.join("scope") };
        for folder in [first, this.top.join("scope")] {
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                chown(folder.join(file), Some(NOBODY), None).unwrap();
            }
        }
        Ok(this)
    }

    /// Runs a script in which `$0` is kite, `$1` the kernel and `$2` the group's folder.
    fn run(&self, script: &str) -> End {
        let attempt = Attempt::new();
        let (kite, kernel) = (attempt.kite(), attempt.file("kernel", &elf()));
        let mut command = Command::new("sh");
        let user = "echo 0 >\"$4/cgroup.procs\" && exec setpriv --reuid 65534 --regid \"$3\" --clear-groups \
                    sh -c \"$2\" \"$0\" \"$1\" \"$4\"";
        command.args(["-c", user]).arg(kite).arg(kernel);
        command.args([script, &self.group.to_string()]).arg(self.top.join("scope"));
        attempt.end_of(&mut command)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for folder in [&self.top.join("scope"), &self.top] {
            let mut tries = 0..1000;
            while fs::remove_dir(folder).is_err() && tries.next().is_some() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

const GUEST: &str = "\"$0\" run --force --memory 64M --kernel \"$1\" --cgroup mine --limit pids=64";

#[test]
fn a_user_s_own_group_is_divided_and_whole_again_afterwards() {
    let delegated = needs!(Delegated::new("divided", false));
    let end = delegated.run(&format!("exec {GUEST}"));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    let scope = delegated.top.join("scope");
    assert_eq!(fs::read_to_string(scope.join("cgroup.subtree_control")).unwrap(), "");
    assert!(!fs::read_dir(&scope).unwrap().flatten().any(|entry| entry.path().is_dir()));
}

#[test]
fn a_group_with_other_processes_gets_the_machine_s_beside_it() {
    let delegated = needs!(Delegated::new("beside", true));
    let end = delegated.run(&format!("{GUEST} --limit cpu=0.5 && cat \"$2/../cgroup.subtree_control\" >&2"));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), "cpu pids\n"));
    assert_eq!(folders("mine"), Vec::<PathBuf>::new());
}

#[test]
fn a_group_with_other_processes_and_no_right_to_one_beside_it_is_refused() {
    let delegated = needs!(Delegated::new("no-right", false));
    let end = delegated.run(&format!("{GUEST}; exit $?"));
    end.assert_refusal("scope: there are other processes in it; ");
    end.assert_refusal("permission denied: start kite in a group that is yours");
}
