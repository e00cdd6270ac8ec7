//! What a process may do: capabilities(7), no_new_privs and seccomp(2), from `/proc/PID/status` (proc(5)).

use serde::Serialize;

use super::text::field;

/// The capabilities, by number (linux/capability.h).
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The sets of capabilities, by name.
#[derive(Debug, PartialEq, Serialize)]
pub struct Capabilities {
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
    pub inheritable: Vec<String>,
    pub bounding: Vec<String>,
    pub ambient: Vec<String>,
}

/// What seccomp does to a thread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    Off,
    Strict,
    Filter,
}

impl Capabilities {
    /// Those of a process; none if its status does not tell all.
    pub fn of(status: &str) -> Option<Self> {
        let set = |key| {
            let mask = u64::from_str_radix(field(status, key)?, 16).ok()?;
            Some(names(mask))
        };
        Some(Self {
            effective: set("CapEff")?,
            permitted: set("CapPrm")?,
            inheritable: set("CapInh")?,
            bounding: set("CapBnd")?,
            ambient: set("CapAmb")?,
        })
    }
}

/// A set as a person reads it: `most` is how many capabilities there are.
pub fn told(set: &[String], most: usize) -> String {
    match set.len() {
        0 => "none".to_owned(),
        len if len == most => "all".to_owned(),
        len if len > most / 2 => {
            let missing = NAMES.iter().take(most).filter(|name| !set.iter().any(|it| it == *name));
            let missing: Vec<_> = missing.copied().collect();
            format!("all but {}", missing.join(" "))
        }
        _ => set.join(" "),
    }
}

fn names(mask: u64) -> Vec<String> {
    let name = |bit: usize| NAMES.get(bit).map_or_else(|| format!("cap_{bit}"), |name| (*name).to_owned());
    (0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit: u32| name(bit as usize)).collect()
}

impl Seccomp {
    /// That of a thread; none if its status does not tell.
    pub fn of(status: &str) -> Option<Self> {
        match field(status, "Seccomp")? {
            "0" => Some(Self::Off),
            "1" => Some(Self::Strict),
            "2" => Some(Self::Filter),
            _ => None,
        }
    }
}

/// The effective one of the four user ids.
pub fn user(status: &str) -> Option<u32> {
    field(status, "Uid")?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether the process can never gain privileges.
pub fn no_new_privs(status: &str) -> Option<bool> {
    match field(status, "NoNewPrivs")? {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// The process's number in its own namespace.
pub fn inner_pid(status: &str) -> Option<u32> {
    field(status, "NSpid")?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tkite\nPPid:\t7\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t42\t1\nCapInh:\t0000000000000000\n\
                          CapPrm:\t8000000000000001\nCapEff:\t0000000000201000\nCapBnd:\t000001ffffffffff\n\
                          CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";

    #[test]
    fn a_status_tells_what_a_process_may_do() {
        let capabilities = Capabilities::of(STATUS).unwrap();
        assert_eq!(capabilities.effective, ["net_admin", "sys_admin"]);
        assert_eq!(capabilities.permitted, ["chown", "cap_63"]);
        assert_eq!((capabilities.bounding.len(), capabilities.ambient.len()), (41, 0));
        assert_eq!((no_new_privs(STATUS), Seccomp::of(STATUS)), (Some(true), Some(Seccomp::Filter)));
        assert_eq!((user(STATUS), inner_pid(STATUS)), (Some(1001), Some(1)));
    }

    #[test]
    fn a_status_that_makes_no_sense_tells_nothing() {
        for text in [
            "",
            "\0",
            "Uid:",
            "Uid:\t1\nNSpid:\tx\nCapEff:\t-1\nNoNewPrivs:\t7\nSeccomp:\tfilter\n",
            "CapPrm:\t1ffffffffffffffff",
        ] {
            assert_eq!((user(text), inner_pid(text), no_new_privs(text)), (None, None, None), "{text:?}");
            assert_eq!((Capabilities::of(text), Seccomp::of(text)), (None, None), "{text:?}");
        }
    }

    #[test]
    fn a_set_is_told_shortly() {
        assert_eq!(told(&[], 41), "none");
        assert_eq!(told(&names((1 << 41) - 1), 41), "all");
        assert_eq!(told(&names(((1 << 41) - 1) & !2), 41), "all but dac_override");
        assert_eq!(told(&names(3), 41), "chown dac_override");
    }
}
