//! What kite can lock itself in with: user_namespaces(7), cgroups(7), landlock(7), seccomp(2).

use nix::errno::Errno;
use nix::unistd::geteuid;

use super::confinement::{Confinement, is_filtered};
use super::{Problem, Verdict, syscalls, text};

/// The settings that decide who may make user namespaces.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    most: Option<String>,
    /// Debian's and older Ubuntu's switch.
    unprivileged: Option<String>,
    /// Ubuntu's switch since 23.10.
    apparmor: Option<String>,
    root: bool,
    /// `/proc` is not there to tell.
    untold: bool,
    /// Root is nobody in a new one (user_namespaces(7), "Linux 5.12").
    nameless: bool,
}

impl Namespaces {
    pub(super) fn allowed_here() -> Self {
        let status = text("/proc/self/status");
        Self {
            most: text("/proc/sys/user/max_user_namespaces"),
            unprivileged: text("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor: text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            root: geteuid().is_root(),
            untold: status.is_none(),
            nameless: status.as_deref().is_some_and(lacks_setfcap),
        }
    }
}

/// Whether `/proc/self/status` tells of a process without CAP_SETFCAP.
fn lacks_setfcap(status: &str) -> bool {
    const SETFCAP: u64 = 1 << 31;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|it| u64::from_str_radix(it.trim(), 16).ok()).is_some_and(|it| it & SETFCAP == 0)
}

/// This user may make user namespaces here, and no container's profile says otherwise.
pub(super) fn user_namespaces_here() -> Verdict {
    let found = user_namespaces(&Namespaces::allowed_here())?;
    match syscalls::unshare_error() {
        Errno::EPERM | Errno::ENOSYS => Err(Confinement::here().problem()),
        _ => Ok(found),
    }
}

/// No switch keeps this user from making user namespaces.
pub(super) fn user_namespaces(namespaces: &Namespaces) -> Verdict {
    let setting = match namespaces {
        Namespaces { untold: true, .. } => {
            return Err(Problem::new("not to be had without /proc", "mount -t proc proc /proc"));
        }
        Namespaces { root: true, nameless: true, .. } => {
            let fix = "give kite that one, as docker run --cap-add SETFCAP does";
            return Err(Problem::new("of no use to root without the capability SETFCAP", fix));
        }
        Namespaces { most: None, .. } => {
            return Err(Problem::new("not in this host kernel", "boot one with CONFIG_USER_NS"));
        }
        Namespaces { most: Some(most), .. } if most == "0" => {
            return Err(Problem::new("turned off", "sysctl -w user.max_user_namespaces=15000"));
        }
        Namespaces { unprivileged: Some(allowed), .. } if allowed == "0" => {
            "kernel.unprivileged_userns_clone=1"
        }
        Namespaces { apparmor: Some(restricted), .. } if restricted != "0" => {
            "kernel.apparmor_restrict_unprivileged_userns=0, or give kite an AppArmor profile with the rule 'userns,'"
        }
        Namespaces { most: Some(most), .. } => return Ok(format!("up to {most}")),
    };
    match namespaces.root {
        true => Ok("for root only".into()),
        false => Err(Problem::new("for root only", format!("sysctl -w {setting}"))),
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

    fn namespaces(most: &str, unprivileged: Option<&str>, apparmor: Option<&str>) -> Namespaces {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Namespaces {
            most: own(Some(most)),
            unprivileged: own(unprivileged),
            apparmor: own(apparmor),
            ..Namespaces::default()
        }
    }

    #[test]
    fn each_switch_that_forbids_user_namespaces_is_the_one_to_turn() {
        let fix = |facts| user_namespaces(&facts).unwrap_err().fix;
        assert!(fix(Namespaces::default()).contains("CONFIG_USER_NS"));
        assert!(fix(namespaces("0", None, None)).contains("max_user_namespaces"));
        assert!(fix(namespaces("9", Some("0"), None)).contains("unprivileged_userns_clone=1"));
        assert!(fix(namespaces("9", Some("1"), Some("1"))).contains("apparmor"));
        assert_eq!(user_namespaces(&namespaces("9", Some("1"), Some("0"))), Ok("up to 9".into()));
    }

    #[test]
    fn root_is_above_the_switches_but_not_above_the_limit() {
        assert!(user_namespaces(&Namespaces { root: true, ..namespaces("9", Some("0"), None) }).is_ok());
        assert!(user_namespaces(&Namespaces { root: true, ..namespaces("0", None, None) }).is_err());
    }

    #[test]
    fn what_else_makes_them_useless_is_told() {
        let facts = Namespaces { nameless: true, ..namespaces("9", None, None) };
        assert!(user_namespaces(&facts).is_ok());
        assert!(user_namespaces(&Namespaces { root: true, ..facts }).unwrap_err().fix.contains("SETFCAP"));
        let facts = Namespaces { untold: true, ..Namespaces::default() };
        assert!(user_namespaces(&facts).unwrap_err().fix.contains("/proc"));
        assert!(lacks_setfcap("Name: x\nCapEff:\t000000017fffffff\n"));
        assert!(!lacks_setfcap("Name: x\nCapEff:\t00000000a80425fb\n"));
    }

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
