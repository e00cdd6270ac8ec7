//! What confines kite from outside, and what lifts that: a switch of the host's, a container's seccomp profile
//! (seccomp(2)), an AppArmor profile (apparmor(7)), a user namespace (user_namespaces(7)).

use std::path::Path;

use super::isolation::{self, Namespaces};
use super::{Problem, text};

/// Has a container's seccomp profile let everything be.
const NO_SECCOMP: &str = "--security-opt seccomp=unconfined";
/// Has a container's AppArmor profile let everything be.
const NO_APPARMOR: &str = "--security-opt apparmor=unconfined";
/// What is in `uid_map` where every user of the host is known.
const EVERYBODY: [&str; 3] = ["0", "0", "4294967295"];

/// What was found around this process.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    /// A switch that keeps this user from user namespaces.
    switch: Option<Problem>,
    /// Somebody has filtered system calls before kite did.
    pub(super) filtered: bool,
    /// The AppArmor profile that holds.
    profile: Option<String>,
}

impl Confinement {
    /// As it is before kite confines itself.
    pub(crate) fn here() -> Self {
        let switch = isolation::user_namespaces(&Namespaces::allowed_here()).err();
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
    pub(super) fn problem(&self) -> Problem {
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

/// Whether `/proc/self/status` tells of a filter.
pub(super) fn is_filtered(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// The name in a label such as `docker-default (enforce)`; none if nothing is enforced.
fn profile(label: &str) -> Option<String> {
    let name = label.trim_end_matches('\0').trim().strip_suffix("(enforce)")?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether `/proc/self/uid_map` is that of a namespace in which not every user of the host is known.
pub(super) fn lacks_users(map: &str) -> bool {
    map.split_whitespace().ne(EVERYBODY)
}

/// Whether a container's engine has left its mark.
pub(super) fn in_container() -> bool {
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
}
