//! A container in a machine: what an OCI runtime asks of the guest beside a command (OCI runtime-spec 1.2, `config.md`).

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::text;

/// What of a container is the guest's to set up. Its files are the run's root folder, as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Whether the root folder cannot be written.
    #[serde(default)]
    pub readonly: bool,
    /// The guest's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whether the process has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Who the process is, and what it may do.
    #[serde(default)]
    pub process: ProcessSpec,
    /// What is mounted, in this order.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// The host's folder of single files, which has a folder for each of [`wire::FILES`](super::wire::FILES).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub files: Option<PathBuf>,
    /// Files below `/proc/sys`, by their names with dots, and what is written to them.
    #[serde(default)]
    pub sysctl: Vec<(String, String)>,
    /// Paths that show nothing.
    #[serde(default)]
    pub masked: Vec<PathBuf>,
    /// Paths that cannot be written.
    #[serde(default)]
    pub read_only: Vec<PathBuf>,
}

/// Who a process of a container is, and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// The user's number.
    #[serde(default)]
    pub uid: u32,
    /// The group's number.
    #[serde(default)]
    pub gid: u32,
    /// Those of the supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// What new files do not permit (umask(2)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// What it may use.
    #[serde(default)]
    pub limits: Vec<ResourceLimit>,
    /// Its capabilities, a bit each; the kernel's default for its user if none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// No program can give it any right (prctl(2), PR_SET_NO_NEW_PRIVS).
    #[serde(default)]
    pub no_new_privileges: bool,
    /// How soon the kernel ends it for want of memory (proc(5), `oom_score_adj`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score: Option<i32>,
}

/// A limit of a process (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceLimit {
    /// Linux's number of what is limited.
    pub resource: u32,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// The capabilities of a process, a bit each (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// What it can ever have.
    pub bounding: u64,
    /// What it has.
    pub effective: u64,
    /// What it may take.
    pub permitted: u64,
    /// What programs may inherit.
    pub inheritable: u64,
    /// What programs without capabilities of their own inherit.
    pub ambient: u64,
}

/// Something mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// What is mounted.
    pub source: MountSource,
    /// Where.
    #[serde(with = "text::os")]
    pub at: PathBuf,
    /// The flags of mount(2).
    #[serde(default)]
    pub flags: u64,
    /// The file system's own options.
    #[serde(default)]
    pub data: String,
}

/// What is mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSource {
    /// A file system that the guest's kernel makes, of this type.
    Kernel(String),
    /// A folder of the host's.
    Folder(#[serde(with = "text::os")] PathBuf),
    /// A name in the folder of single files.
    File(#[serde(with = "text::os")] OsString),
    /// A file or folder of the container itself.
    Inside(#[serde(with = "text::os")] PathBuf),
    /// The shared folder of this tag, once the folder has one.
    Tag(String),
}

/// The number of a limit's name.
pub fn resource(name: &str) -> Option<u32> {
    // In the order of Linux' numbers (`asm-generic/resource.h`).
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let name = name.strip_prefix("RLIMIT_")?;
    NAMES.iter().zip(0..).find(|(it, _)| **it == name).map(|(_, number)| number)
}

/// The bit of a capability's name.
pub fn capability(name: &str) -> Option<u64> {
    // In the order of Linux' numbers (`linux/capability.h`).
    const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    let name = name.strip_prefix("CAP_")?;
    NAMES.iter().position(|it| *it == name).map(|bit| 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernel_s_numbers() {
        assert_eq!(resource("RLIMIT_NOFILE"), Some(7));
        assert_eq!(resource("RLIMIT_RTTIME"), Some(15));
        assert_eq!((resource("NOFILE"), resource("RLIMIT_X")), (None, None));
        assert_eq!(capability("CAP_CHOWN"), Some(1));
        assert_eq!(capability("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(capability("CAP_CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!((capability("CHOWN"), capability("cap_chown")), (None, None));
    }
}
