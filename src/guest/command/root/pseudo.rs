//! What is in a root folder and on no disk: the kernel's file systems, memory, and device nodes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::{attach, make};

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);
const PRIVATE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// What is mounted: kind, place, flags, options, and whether nothing works without it.
const LIST: [(&str, &str, MsFlags, &str, bool); 12] = [
    ("proc", "/proc", SAFE, "", true),
    ("sysfs", "/sys", SAFE, "", true),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "", true),
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=620,gid=5,ptmxmode=666", true),
    ("tmpfs", "/dev/shm", PRIVATE, "mode=1777", true),
    ("tmpfs", "/run", PRIVATE, "mode=755", true),
    ("mqueue", "/dev/mqueue", SAFE, "", false),
    ("cgroup2", "/sys/fs/cgroup", SAFE, "", false),
    ("bpf", "/sys/fs/bpf", SAFE, "mode=700", false),
    ("securityfs", "/sys/kernel/security", SAFE, "", false),
    ("debugfs", "/sys/kernel/debug", SAFE, "", false),
    ("tracefs", "/sys/kernel/tracing", SAFE, "", false),
];
/// The folders whose places no link may take: what it leads to would be hidden.
const NO_LINKS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Nodes of drivers that the kernel loads when they are opened (`modules.devname` of kmod(8)).
const NODES: [(&str, u64, u64); 2] = [("/dev/fuse", 10, 229), ("/dev/net/tun", 10, 200)];

/// Mounts all of them in the root folder, which may be changed at will if it `is_in_memory`, and /tmp in that of an image.
///
/// # Errors
/// The kernel lacks one that nothing works without.
pub(super) fn mount_all(is_in_memory: bool, is_image: bool) -> anyhow::Result<()> {
    for (kind, at, flags, options, is_needed) in LIST {
        // In /sys the kernel itself has made what it has.
        let made = if at.starts_with("/sys/") { Ok(()) } else { folder(at, 0o755, is_in_memory) };
        let mounted = made.and_then(|()| attach(kind, at, flags, options));
        if is_needed {
            mounted?;
        }
    }
    folder("/tmp", 0o1777, is_in_memory)?;
    if is_image {
        // What is there stays visible; programs that want a mount there, to make it private, find one. Elsewhere a file
        // that is made in /tmp can be renamed to where it belongs.
        mount(Some("/tmp"), "/tmp", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("cannot mount /tmp")?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        // Some kernels make them themselves.
        let _ = symlink(target, format!("/dev/{link}"));
    }
    make("/dev/net", 0o755)?;
    for (node, major, minor) in NODES {
        let mode = Mode::from_bits_truncate(0o666);
        // Fails where the driver is there already, with a node for root alone: there is no udev(7) to open it.
        let _ = mknod(node, SFlag::S_IFCHR, mode, makedev(major, minor));
        fs::set_permissions(node, Permissions::from_mode(mode.bits()))
            .with_context(|| format!("cannot make {node} in the guest"))?;
    }
    Ok(())
}

/// Makes a folder, with exactly this mode, unless there is one. What else has its name goes, if that harms nothing: an
/// image may hold anything.
fn folder(at: &str, mode: u32, is_in_memory: bool) -> anyhow::Result<()> {
    let path = Path::new(at);
    let is_folder = match NO_LINKS.contains(&at) {
        true => path.symlink_metadata().is_ok_and(|it| it.is_dir()),
        false => path.is_dir(),
    };
    if is_in_memory && !is_folder && path.symlink_metadata().is_ok() {
        fs::remove_file(path).with_context(|| format!("cannot make folder {at} in the guest"))?;
    }
    make(at, mode)
}
