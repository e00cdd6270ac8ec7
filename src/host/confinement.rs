//! What confines kite from outside, and what lifts that: a switch of the host's, a container's seccomp profile
//! (seccomp(2)), an AppArmor profile (apparmor(7)), a user namespace (user_namespaces(7)).

use std::fs;
use std::path::Path;

use nix::unistd::geteuid;

/// Has a container's seccomp profile let everything be.
const NO_SECCOMP: &str = "--security-opt seccomp=unconfined";
/// Has a container's AppArmor profile let everything be.
const NO_APPARMOR: &str = "--security-opt apparmor=unconfined";
/// What is in `uid_map` where every user of the host is known.
const EVERYBODY: [&str; 3] = ["0", "0", "4294967295"];

/// Something that the host lacks or forbids, and what helps.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    /// What was found.
    pub found: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// From both texts.
    pub fn new(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { found: found.into(), fix: fix.into() }
    }
}

/// What was found around this process.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    /// A switch that keeps this user from user namespaces.
    switch: Option<Problem>,
    /// Somebody has filtered system calls before kite did.
    pub(crate) filtered: bool,
    /// The AppArmor profile that holds.
    profile: Option<String>,
}

impl Confinement {
    /// As it is before kite confines itself.
    pub(crate) fn here() -> Self {
        let switch = user_namespaces(&Namespaces::allowed_here()).err();
        let filtered = is_filtered(&text("/proc/self/status").unwrap_or_default());
        // With other modules beside it AppArmor has a folder of its own.
        let label = text("/proc/self/attr/apparmor/current").or_else(|| text("/proc/self/attr/current"));
        Self { switch, filtered, profile: label.as_deref().and_then(profile) }
    }

    /// Why namespaces, or what is done in them, may be refused, and what to do.
    pub(crate) fn told(&self) -> String {
        if let Some(Problem { found, fix }) = &self.switch {
            return format!("user namespaces are {found}; {fix}");
        }
        let Problem { found, fix } = self.problem();
        format!("{found}; {fix}")
    }

    /// The same where it is no switch.
    pub(crate) fn problem(&self) -> Problem {
        let run = |options: &[&str]| format!("run the container with {}", options.join(" "));
        match (self.filtered, &self.profile) {
            (true, None) => {
                Problem::new("a seccomp filter forbids it, as a container's does", run(&[NO_SECCOMP]))
            }
            (true, Some(profile)) => Problem::new(
                format!("a seccomp filter or the AppArmor profile {profile} forbids it"),
                run(&[NO_SECCOMP, NO_APPARMOR]),
            ),
            (false, Some(profile)) => {
                Problem::new(format!("the AppArmor profile {profile} forbids it"), run(&[NO_APPARMOR]))
            }
            (false, None) => Problem::new(
                "a security module forbids it, or kite was started below a root folder changed by chroot(2)",
                "allow it there",
            ),
        }
    }
}

/// The settings that decide who may make user namespaces.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
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
    pub(crate) fn allowed_here() -> Self {
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

/// Whether `/proc/self/status` shows a process without CAP_SETFCAP.
fn lacks_setfcap(status: &str) -> bool {
    const SETFCAP: u64 = 1 << 31;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|it| u64::from_str_radix(it.trim(), 16).ok()).is_some_and(|it| it & SETFCAP == 0)
}

/// No switch keeps this user from making user namespaces.
pub(crate) fn user_namespaces(namespaces: &Namespaces) -> Result<String, Problem> {
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

/// A short file's text without the white space around it; `None` if it cannot be read.
pub(crate) fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Whether `/proc/self/status` shows a filter.
pub(crate) fn is_filtered(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// The name in a label such as `docker-default (enforce)`; none if nothing is enforced.
fn profile(label: &str) -> Option<String> {
    let name = label.trim_end_matches('\0').trim().strip_suffix("(enforce)")?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether `/proc/self/uid_map` is that of a namespace in which not every user of the host is known.
pub(crate) fn lacks_users(map: &str) -> bool {
    map.split_whitespace().ne(EVERYBODY)
}

/// Whether a container's engine has left its mark.
pub(crate) fn in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].into_iter().any(|file| Path::new(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(filtered: bool, profile: Option<&str>) -> String {
        Confinement { switch: None, filtered, profile: profile.map(str::to_owned) }.told()
    }

    #[test]
    fn each_confinement_is_lifted_by_its_own_option() {
        assert!(told(true, None).ends_with("run the container with --security-opt seccomp=unconfined"));
        assert!(told(false, Some("docker-default")).contains("docker-default forbids it; run the container"));
        let both = told(true, Some("docker-default"));
        assert!(both.contains("seccomp=unconfined") && both.contains("apparmor=unconfined"), "{both}");
        assert!(!told(false, None).contains("container"));
    }

    #[test]
    fn a_switch_of_the_hosts_comes_first() {
        let switch = Some(Problem::new("for root only", "sysctl -w x=1"));
        let told = Confinement { switch, filtered: true, profile: None }.told();
        assert_eq!(told, "user namespaces are for root only; sysctl -w x=1");
    }

    #[test]
    fn only_an_enforced_profile_confines() {
        assert_eq!(profile("docker-default (enforce)"), Some("docker-default".into()));
        assert_eq!(profile("docker-default (enforce)\n\0"), Some("docker-default".into()));
        for label in
            ["unconfined", "kite (unconfined)", "x (complain)", "", "(enforce)", "system_u:system_r:x"]
        {
            assert_eq!(profile(label), None, "{label}");
        }
    }

    #[test]
    fn users_are_lacking_in_all_but_the_first_namespace() {
        assert!(!lacks_users("         0          0 4294967295"));
        assert!(lacks_users("0 1000 1\n1 100000 65536\n"));
        assert!(lacks_users("0 100000 65536"));
    }

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
}
