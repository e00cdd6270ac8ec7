//! Device nodes: `/dev/kvm`, `/dev/net/tun`. Are they there, and may this user open them?

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::{fs, io};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess};

use super::hardware::Processor;
use super::{Problem, Verdict, text};
use crate::host::confinement::{in_container, lacks_users};

/// `KVM_GET_API_VERSION`'s answer since Linux 2.6.22 (Linux `Documentation/virt/kvm/api.rst` §4.1).
const API_VERSION: i32 = 12;
/// Bit of the capability to make network devices (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;

/// What is known of a device node without opening it.
#[derive(Debug)]
pub(super) struct Node {
    path: &'static str,
    is_device: bool,
    /// Permission bits.
    mode: u32,
    gid: u32,
    /// The group's name in `/etc/group`.
    group: Option<String>,
    /// Whether this user may read and write it.
    access: Result<(), Errno>,
    /// Whether this process is in a container.
    contained: bool,
    /// Whether its container knows not every user of the host.
    mapped: bool,
}

impl Node {
    /// The node at `path`; `None` if there is none.
    pub(super) fn at(path: &'static str) -> Option<Self> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => None, // in a folder this user may not search
        };
        let gid = metadata.as_ref().map_or(0, MetadataExt::gid);
        Some(Self {
            path,
            is_device: metadata.as_ref().is_none_or(|metadata| metadata.file_type().is_char_device()),
            mode: metadata.as_ref().map_or(0, |metadata| metadata.mode() & 0o777),
            gid,
            group: text("/etc/group").and_then(|groups| group_name(&groups, gid)),
            access: eaccess(path, AccessFlags::R_OK | AccessFlags::W_OK),
            contained: in_container(),
            mapped: text("/proc/self/uid_map").is_some_and(|map| lacks_users(&map)),
        })
    }

    /// The way in that the node's own permissions offer, or a wider one.
    fn forbidden(&self) -> Problem {
        let fix = if self.mapped {
            "on the host be in the device's group, and let the container have it: podman run --group-add keep-groups"
                .to_owned()
        } else if self.gid == 0 || self.mode & 0o060 != 0o060 {
            // To be in its group would not help.
            format!("chmod 0666 {}", self.path)
        } else if self.contained {
            format!("run the container with --group-add \"$(stat -c %g {})\"", self.path)
        } else {
            let group = self.group.clone().unwrap_or_else(|| self.gid.to_string());
            format!("usermod -aG {group} $USER, then log in again")
        };
        Problem::new(format!("permission denied (mode {:04o})", self.mode), fix)
    }
}

/// The name of group `gid` in group(5) text.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// `/dev/kvm` opens and speaks the one API there is. `api` is what opening it and asking for that gave.
pub(super) fn kvm(api: Result<i32, Errno>, node: Option<&Node>, processor: &Processor) -> Verdict {
    let problem = match (api, node) {
        (Ok(API_VERSION), _) => return Ok(format!("API {API_VERSION}")),
        (Ok(..0), _) => {
            Problem::new("not KVM's device", "replace it: rm /dev/kvm && mknod /dev/kvm c 10 232")
        }
        (Ok(other), _) => {
            Problem::new(format!("API {other}, {API_VERSION} is needed"), "boot a newer host kernel")
        }
        (Err(Errno::ENOENT), _) => Problem::new("missing", processor.load_fix()),
        (Err(Errno::EACCES), Some(node)) => node.forbidden(),
        (Err(Errno::EPERM), _) => {
            Problem::new("forbidden to this container", "start the container with --device /dev/kvm")
        }
        (Err(Errno::ENODEV | Errno::ENXIO), _) => Problem::new("no driver behind it", processor.load_fix()),
        (Err(errno), _) => Problem::new(
            format!("cannot be opened: {}", errno.desc()),
            "see the host kernel's log: dmesg | grep -i kvm",
        ),
    };
    Err(problem)
}

/// TUN, for network devices on taps. `status` is `/proc/self/status`.
pub(super) fn tun(node: Option<&Node>, status: &str) -> Verdict {
    let found = opens(node, "modprobe tun; in a container, start it with --device /dev/net/tun")?;
    if effective_capabilities(status) >> CAP_NET_ADMIN & 1 == 1 {
        return Ok(found);
    }
    Ok(format!("{found}; without CAP_NET_ADMIN only taps made for this user (ip tuntap add mode tap user …)"))
}

/// passt, for `--net user`, where it was found.
pub(super) fn passt(program: Option<PathBuf>) -> Verdict {
    let lack = || Problem::new("not installed, which only --net user needs", "apt install passt");
    program.map(|program| program.display().to_string()).ok_or_else(lack)
}

fn opens(node: Option<&Node>, load: &str) -> Verdict {
    let node = node.ok_or_else(|| Problem::new("missing", load))?;
    match node.access {
        _ if !node.is_device => Err(Problem::new(format!("{} is no device", node.path), load)),
        Ok(()) => Ok(node.path.to_owned()),
        Err(_) => Err(node.forbidden()),
    }
}

/// The effective capabilities in `/proc/self/status` (proc_pid_status(5)), one a bit.
fn effective_capabilities(status: &str) -> u64 {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(mode: u32, gid: u32, group: Option<&str>) -> Node {
        let group = group.map(str::to_owned);
        let access = Err(Errno::EACCES);
        Node { path: "/dev/x", is_device: true, mode, gid, group, access, contained: false, mapped: false }
    }

    fn fix(api: Result<i32, Errno>, node: Option<&Node>) -> String {
        kvm(api, node, &Processor::default()).unwrap_err().fix
    }

    #[test]
    fn only_api_12_is_accepted() {
        assert_eq!(kvm(Ok(12), None, &Processor::default()), Ok("API 12".into()));
        assert!(fix(Ok(10), None).contains("kernel"));
        assert!(fix(Ok(-1), None).contains("mknod"));
    }

    #[test]
    fn a_node_open_to_a_group_is_fixed_by_joining_it() {
        assert_eq!(
            fix(Err(Errno::EACCES), Some(&node(0o660, 104, Some("kvm")))),
            "usermod -aG kvm $USER, then log in again"
        );
        assert_eq!(
            fix(Err(Errno::EACCES), Some(&node(0o660, 104, None))),
            "usermod -aG 104 $USER, then log in again"
        );
    }

    #[test]
    fn in_a_container_the_fix_is_an_option_of_its_engine() {
        let closed = || node(0o660, 104, Some("kvm"));
        let docker = fix(Err(Errno::EACCES), Some(&Node { contained: true, ..closed() }));
        assert_eq!(docker, "run the container with --group-add \"$(stat -c %g /dev/x)\"");
        let rootless = fix(Err(Errno::EACCES), Some(&Node { contained: true, mapped: true, ..closed() }));
        assert!(rootless.contains("--group-add keep-groups"), "{rootless}");
    }

    #[test]
    fn a_node_open_to_no_group_is_fixed_by_its_mode() {
        for (mode, gid) in [(0o600, 104), (0o640, 104), (0o660, 0)] {
            assert_eq!(fix(Err(Errno::EACCES), Some(&node(mode, gid, Some("kvm")))), "chmod 0666 /dev/x");
        }
    }

    #[test]
    fn group_names_come_from_the_third_field() {
        let groups = "root:x:0:\nbad line\nkvm:x:104:me\n104:x:7:\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 105), None);
    }

    #[test]
    fn a_missing_device_names_its_module() {
        assert!(tun(None, "").unwrap_err().fix.starts_with("modprobe tun"));
        let file = Node { is_device: false, access: Ok(()), ..node(0o666, 0, None) };
        assert!(tun(Some(&file), "").unwrap_err().found.contains("no device"));
    }

    #[test]
    fn passt_is_looked_for() {
        assert_eq!(passt(Some("/usr/bin/passt".into())), Ok("/usr/bin/passt".to_owned()));
        assert_eq!(passt(None).unwrap_err().fix, "apt install passt");
    }

    #[test]
    fn tun_without_net_admin_says_which_taps_are_left() {
        let open = Node { access: Ok(()), ..node(0o666, 0, None) };
        assert_eq!(tun(Some(&open), "CapInh:\t0\nCapEff:\t0000000000001000\n"), Ok("/dev/x".into()));
        for status in ["CapEff:\t0000000000000800\n", "CapEff:\tzz\n", ""] {
            assert!(tun(Some(&open), status).unwrap().contains("CAP_NET_ADMIN"));
        }
    }
}
