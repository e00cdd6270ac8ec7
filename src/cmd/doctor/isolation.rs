//! What kite can lock itself in with: user_namespaces(7), cgroups(7), landlock(7), seccomp(2).

use nix::errno::Errno;
use nix::unistd::geteuid;

use super::{Problem, Verdict, syscalls, text};
use crate::host::confinement::{Confinement, Namespaces, is_filtered, user_namespaces};

/// This user may make user namespaces here, and no container's profile says otherwise.
pub(super) fn user_namespaces_here() -> Verdict {
    let found = user_namespaces(&Namespaces::allowed_here())?;
    match syscalls::unshare_error() {
        Errno::EPERM | Errno::ENOSYS => Err(Confinement::here().problem()),
        _ => Ok(found),
    }
}

/// The cgroup file systems that are mounted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Cgroup {
    v1: bool,
    /// Where version 2 is mounted.
    v2: Option<String>,
    controllers: String,
    root: bool,
}

impl Cgroup {
    pub(super) fn mounted_here() -> Self {
        let mut cgroup = Self::from_mounts(&text("/proc/self/mounts").unwrap_or_default());
        let controllers = cgroup.v2.as_ref().and_then(|path| text(format!("{path}/cgroup.controllers")));
        cgroup.controllers = controllers.unwrap_or_default();
        cgroup.root = geteuid().is_root();
        cgroup
    }

    /// From `/proc/self/mounts` (fstab(5)): device, folder, type, …
    fn from_mounts(mounts: &str) -> Self {
        let mut cgroup = Self::default();
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            match (fields.next(), fields.next()) {
                (Some(_), Some("cgroup")) => cgroup.v1 = true,
                (Some(folder), Some("cgroup2")) => cgroup.v2 = Some(folder.to_owned()),
                _ => {}
            }
        }
        cgroup
    }
}

/// Limits work in either version: a controller that version 1 holds is not there for version 2, and is root's alone.
pub(super) fn cgroup(cgroup: &Cgroup) -> Verdict {
    let version = match (&cgroup.v2, cgroup.v1) {
        (Some(_), false) if cgroup.controllers.is_empty() => return Ok("v2, no controllers".into()),
        (Some(_), false) => return Ok(format!("v2, controllers {}", cgroup.controllers)),
        (None, false) => {
            return Err(Problem::new("not mounted", "mount -t cgroup2 none /sys/fs/cgroup"));
        }
        (Some(_), true) => "hybrid (v1 and v2)",
        (None, true) => "v1",
    };
    match cgroup.root {
        true => Ok(format!("{version}, for root only")),
        false => Err(Problem::new(
            format!("{version}, for root only"),
            "boot the host with systemd.unified_cgroup_hierarchy=1",
        )),
    }
}

/// The kernel offers Landlock. `abi` is landlock_create_ruleset(2)'s answer.
pub(super) fn landlock(abi: Result<i64, Errno>) -> Verdict {
    match abi {
        Ok(abi) => Ok(format!("ABI {abi}")),
        Err(Errno::EOPNOTSUPP) => {
            Err(Problem::new("turned off at boot", "add landlock to the host kernel's lsm= parameter"))
        }
        Err(Errno::ENOSYS) => Err(Problem::new(
            "not in this host kernel",
            "boot one from 5.13 on with CONFIG_SECURITY_LANDLOCK",
        )),
        Err(errno) => Err(Problem::new(
            format!("forbidden: {}", errno.desc()),
            "allow landlock_create_ruleset in the container's seccomp profile",
        )),
    }
}

/// Filters can kill. `actions` is the sysctl's list, `status` is `/proc/self/status`.
pub(super) fn seccomp(actions: Option<&str>, status: &str) -> Verdict {
    let has = |action| actions.is_some_and(|actions| actions.split_whitespace().any(|word| word == action));
    match (has("kill_process"), is_filtered(status)) {
        (true, false) => Ok("filters".into()),
        (true, true) => Ok("filters, this process already has one".into()),
        (false, _) => Err(Problem::new(
            "no filters that kill",
            "boot a host kernel from 4.14 on with CONFIG_SECCOMP_FILTER",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
    const V2: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";

    #[test]
    fn version_1_is_for_root() {
        let verdict = |mounts: &str| cgroup(&Cgroup::from_mounts(mounts));
        assert_eq!(verdict(V2), Ok("v2, no controllers".into()));
        assert_eq!(verdict(V1).unwrap_err().found, "v1, for root only");
        assert_eq!(verdict(&[V1, V2].concat()).unwrap_err().found, "hybrid (v1 and v2), for root only");
        let root = Cgroup { root: true, ..Cgroup::from_mounts(V1) };
        assert_eq!(cgroup(&root), Ok("v1, for root only".into()));
        assert_eq!(verdict("cgroup2 /x tmpfs rw 0 0\n\ncgroup\n").unwrap_err().found, "not mounted");
        let with = Cgroup { controllers: "cpu memory".into(), ..Cgroup::from_mounts(V2) };
        assert_eq!(cgroup(&with), Ok("v2, controllers cpu memory".into()));
    }

    #[test]
    fn every_way_to_lack_landlock_has_its_own_fix() {
        assert_eq!(landlock(Ok(4)), Ok("ABI 4".into()));
        assert!(landlock(Err(Errno::EOPNOTSUPP)).unwrap_err().fix.contains("lsm="));
        assert!(landlock(Err(Errno::ENOSYS)).unwrap_err().fix.contains("CONFIG_SECURITY_LANDLOCK"));
        assert!(landlock(Err(Errno::EPERM)).unwrap_err().fix.contains("seccomp"));
    }

    #[test]
    fn seccomp_needs_an_action_that_kills_the_process() {
        assert_eq!(seccomp(Some("kill_process kill_thread log"), "Seccomp:\t0\n"), Ok("filters".into()));
        assert!(seccomp(Some("kill_process"), "Seccomp:\t2\n").unwrap().contains("already"));
        assert!(seccomp(Some("kill_thread log"), "").is_err());
        assert!(seccomp(None, "").is_err());
    }
}
