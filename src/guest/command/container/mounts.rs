//! A container's root folder, as the engine's storage has it, and what is mounted in it. Links are followed by the guest's
//! own kernel, below its own root folder: they lead nowhere on the host.

use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::super::root::{HOST_NAME, NEW, enter_new, make, mount_share_under_memory, set_up, virtiofs};
use super::process::{MountCall, mount_tree};
use crate::spec::container::{ContainerSpec, MountSource, MountSpec};
use crate::spec::wire::{FILES, GuestCommand, Root};

/// The devices of every container (runtime-spec, `config-linux.md`, "Default Devices").
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Where the initramfs has the folders of single files.
const SINGLE: &str = "/single";

/// Makes the root folder and enters it.
///
/// # Errors
/// The kernel lacks a file system, or something cannot be mounted.
pub(in super::super) fn enter(spec: &GuestCommand, container: &ContainerSpec) -> anyhow::Result<()> {
    let Root::Share { tag } = &spec.root else { bail!("a container's root folder is a share") };
    make(NEW, 0o755)?;
    match container.readonly {
        // What it lacks of folders to mount on is made in memory.
        true => mount_share_under_memory(tag)?,
        false => virtiofs(tag, Path::new(NEW), MsFlags::empty())?,
    }
    let files = single_files(container)?;
    enter_new()?;
    for (spec, file) in container.mounts.iter().zip(files) {
        mount_one(spec, file).with_context(|| format!("cannot mount {} in the guest", spec.at.display()))?;
        if spec.at == Path::new("/dev") {
            devices();
        }
    }
    for (name, value) in &container.sysctl {
        let path = Path::new("/proc/sys").join(sysctl_path(name));
        fs::write(path, value).with_context(|| format!("cannot set sysctl {name} in the guest"))?;
    }
    if container.readonly {
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/", None::<&str>, again, None::<&str>)
            .context("cannot make the root folder read-only")?;
    }
    set_up(container.hostname.as_deref().unwrap_or(HOST_NAME))
}

/// A sysctl's place below /proc/sys. Where a dot is the first to part its name, a slash is a dot of one part, as in sysctl(8).
fn sysctl_path(name: &str) -> String {
    let is_path = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
    let swapped = |char| match char {
        '.' if !is_path => '/',
        '/' if !is_path => '.',
        other => other,
    };
    name.chars().map(swapped).collect::<String>().trim_start_matches('/').to_owned()
}

/// Opens the single files that the container shows, from outside its root folder; nothing for what is none.
fn single_files(container: &ContainerSpec) -> anyhow::Result<Vec<Option<OwnedFd>>> {
    for (tag, writable) in FILES {
        let is_of_it = |mount: &MountSpec| {
            matches!(mount.source, MountSource::File(_))
                && writable == (mount.flags & MsFlags::MS_RDONLY.bits() == 0)
        };
        if container.mounts.iter().any(is_of_it) {
            let folder = format!("{SINGLE}-{tag}");
            make(&folder, 0o700)?;
            virtiofs(tag, Path::new(&folder), if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY })?;
        }
    }
    let open_one = |mount: &MountSpec| {
        let MountSource::File(name) = &mount.source else { return Ok(None) };
        let writable = mount.flags & MsFlags::MS_RDONLY.bits() == 0;
        let (tag, _) = FILES[usize::from(writable)];
        let path = Path::new(&format!("{SINGLE}-{tag}")).join(name);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(&path, flags, Mode::empty())
            .map(Some)
            .with_context(|| format!("cannot open {} in the guest", path.display()))
    };
    container.mounts.iter().map(open_one).collect()
}

fn mount_one(spec: &MountSpec, file: Option<OwnedFd>) -> anyhow::Result<()> {
    let at = spec.at.as_path();
    let flags = MsFlags::from_bits_truncate(spec.flags);
    match (&spec.source, file) {
        (MountSource::Kernel(kind), _) => {
            folder(at)?;
            let data = Some(spec.data.as_str()).filter(|data| !data.is_empty());
            let done = mount(Some(kind.as_str()), at, Some(kind.as_str()), flags, data);
            match kind.as_str() {
                // Not every kernel has them.
                "mqueue" | "cgroup2" => Ok(()),
                _ => Ok(done?),
            }
        }
        (MountSource::Tag(tag), _) => {
            folder(at)?;
            virtiofs(tag, at, flags)
        }
        (MountSource::File(_), Some(opened)) => {
            place_for_file(at)?;
            let readonly = flags.contains(MsFlags::MS_RDONLY);
            mount_tree(&opened, at)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
            if readonly { Ok(mount(None::<&str>, at, None::<&str>, flags, None::<&str>)?) } else { Ok(()) }
        }
        (MountSource::Inside(path), _) => {
            place_for_file(at)?;
            Ok(mount(Some(path.as_path()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        }
        (MountSource::Folder(_) | MountSource::File(_), _) => bail!("it has no share"),
    }
}

fn folder(at: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(at).context("cannot make the folder")
}

/// Makes an empty file to mount another one over, unless there is something.
fn place_for_file(at: &Path) -> anyhow::Result<()> {
    if at.exists() {
        return Ok(());
    }
    at.parent().map_or(Ok(()), folder)?;
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(at)
        .map(drop)
        .context("cannot make the file")
}

/// Makes the devices of every container. Those that a kernel lacks are missed by who opens them.
fn devices() {
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        let path = Path::new("/dev").join(name);
        if mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor)).is_ok() {
            // The umask of this process has taken from it.
            let _ = fs::set_permissions(&path, Permissions::from_mode(mode.bits()));
        }
    }
    for (name, target) in LINKS {
        let _ = symlink(target, Path::new("/dev").join(name));
    }
}

/// What the container's first process mounts itself: `/proc` of its own PID namespace, and what covers parts of that.
///
/// # Errors
/// A path holds a NUL.
pub(super) fn late(container: &ContainerSpec) -> anyhow::Result<Vec<MountCall>> {
    let mut calls = Vec::new();
    let proc = container.mounts.iter().find(|it| it.source == MountSource::Kernel("proc".to_owned()));
    if let Some(proc) = proc {
        calls.push(call(Some("proc".into()), &proc.at, Some("proc"), proc.flags)?);
    }
    for path in &container.masked {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                calls.push(call(Some("tmpfs".into()), path, Some("tmpfs"), MsFlags::MS_RDONLY.bits())?);
            }
            Ok(_) => calls.push(call(Some("/dev/null".into()), path, None, MsFlags::MS_BIND.bits())?),
            Err(_) => {}
        }
    }
    for path in container.read_only.iter().filter(|path| path.exists()) {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        calls.push(call(Some(path.clone().into()), path, None, bind.bits())?);
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        calls.push(call(None, path, None, (again | flags_below(path)).bits())?);
    }
    Ok(calls)
}

/// What mounts in `/proc` and `/sys` never allow.
fn flags_below(path: &Path) -> MsFlags {
    match path.starts_with("/proc") || path.starts_with("/sys") {
        true => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        false => MsFlags::empty(),
    }
}

fn call(source: Option<OsString>, at: &Path, kind: Option<&str>, flags: u64) -> anyhow::Result<MountCall> {
    let text = |bytes: &[u8]| CString::new(bytes).context("a path holds a NUL");
    Ok(MountCall {
        source: source.map(|it| text(it.as_bytes())).transpose()?,
        at: text(at.as_os_str().as_bytes())?,
        kind: kind.map(|it| text(it.as_bytes())).transpose()?,
        flags,
        data: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_s_place_is_below_its_folder() {
        for (name, path) in [
            ("kernel.domainname", "kernel/domainname"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            (".etc.passwd", "etc/passwd"),
            ("/etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(sysctl_path(name), path);
        }
    }
}
