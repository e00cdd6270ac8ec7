//! The command's root folder: what kite shares or an image's file system, under a layer of memory, or a disk; and the file
//! systems that programs expect in it.

mod disk;
mod pseudo;
mod xattrs;

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot, sethostname, sync};

use super::storage;
use crate::spec::wire::{GuestCommand, Root, Share};

/// The guest's own name.
pub(super) const HOST_NAME: &str = "kite";
/// The shared folder or the image as it is.
const LOWER: &str = "/lower";
/// The memory that takes what is written.
const LAYER: &str = "/layer";
/// What becomes the root folder.
pub(super) const NEW: &str = "/new";
/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many files a process may have open: what it is given, and what it may ask for, as login sessions have it.
pub(super) const OPEN_FILES: (u64, u64) = (1024, 1 << 20);

/// Makes the root folder and enters it.
///
/// # Errors
/// The kernel lacks a file system, or a disk has none.
pub(super) fn enter(spec: &GuestCommand) -> anyhow::Result<()> {
    make(NEW, 0o755)?;
    match &spec.root {
        Root::Share { tag } => mount_share_under_memory(tag)?,
        Root::Image => {
            under_memory(|| disk::mount_image(LOWER))?;
            xattrs::copy(Path::new(LOWER), Path::new(NEW))
                .context("cannot read the attributes of the root folder")?;
        }
        Root::Disk { readonly } => disk::mount_first(NEW, *readonly)?,
    }
    enter_new()?;
    // From inside, so that no symbolic link leads elsewhere.
    pseudo::mount_all(spec.root.is_in_memory(), spec.root == Root::Image)?;
    spec.shares.iter().try_for_each(mount_share)?;
    if spec.root == Root::Image || storage::has_tools() {
        // As an init has it: tools of containers, which make mount namespaces, expect it.
        let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
        mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("cannot share the mounts")?;
    }
    set_up(HOST_NAME)
}

/// Makes what is mounted at [`NEW`] the root folder.
///
/// # Errors
/// Nothing is mounted there.
pub(super) fn enter_new() -> anyhow::Result<()> {
    chdir(NEW).context("cannot enter the root folder")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the root folder")?;
    chroot(".").context("cannot change the root folder")?;
    chdir("/").context("cannot enter the root folder")
}

/// Sets the host's name, and how many files processes may open.
///
/// # Errors
/// The kernel refuses the name.
pub(super) fn set_up(host_name: &str) -> anyhow::Result<()> {
    sethostname(host_name).context("cannot set the host's name")?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1)
        .context("cannot raise the limit of open files")
}

/// Makes what the command has written reach the host. Nobody but this process is left.
pub(super) fn leave(spec: &GuestCommand) {
    let disk = matches!(spec.root, Root::Disk { readonly: false });
    if disk || spec.shares.iter().any(|share| share.writable) || Path::new("/sys/block/vda").exists() {
        sync();
    }
    if disk {
        // Leaves the file system clean. If it cannot, its journal does at the next mount.
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let _ = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    }
}

/// Makes the root folder of a share, and of memory over it.
///
/// # Errors
/// The kernel lacks a file system.
pub(super) fn mount_share_under_memory(tag: &str) -> anyhow::Result<()> {
    under_memory(|| virtiofs(tag, Path::new(LOWER), MsFlags::MS_RDONLY))
}

/// Makes the root folder of what `mount_lower` mounts, and of memory over it.
fn under_memory(mount_lower: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    make(LOWER, 0o755)?;
    make(LAYER, 0o755)?;
    mount_lower()?;
    attach("tmpfs", LAYER, MsFlags::empty(), "mode=0755")?;
    let (upper, work) = (format!("{LAYER}/upper"), format!("{LAYER}/work"));
    make(&upper, 0o755)?;
    make(&work, 0o755)?;
    // The root folder itself is the upper one's.
    let lower = fs::metadata(LOWER).context("cannot look at the root folder")?;
    let mode = Permissions::from_mode(lower.permissions().mode() & 0o7777);
    chown(&upper, Some(lower.uid()), Some(lower.gid()))
        .and_then(|()| fs::set_permissions(&upper, mode))
        .context("cannot make the root folder")?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    attach("overlay", NEW, MsFlags::empty(), &options)
}

fn mount_share(share: &Share) -> anyhow::Result<()> {
    let at = Path::new(&share.at);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(at)
        .with_context(|| format!("cannot make folder {} for a share", at.display()))?;
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, !share.writable);
    flags.set(MsFlags::MS_NOSUID, share.nosuid);
    virtiofs(&share.tag, at, flags)
}

/// Mounts a share, once its device is there.
pub(super) fn virtiofs(tag: &str, at: &Path, flags: MsFlags) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match mount(Some(tag), at, Some("virtiofs"), flags, None::<&str>) {
            Ok(()) => return Ok(()),
            // What the kernel says of a tag that it has not met yet.
            Err(Errno::EINVAL | Errno::ENOENT) if start.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(1))
            }
            Err(error) => return Err(lacking("virtiofs", error)),
        }
    }
}

fn attach(kind: &str, at: &str, flags: MsFlags, options: &str) -> anyhow::Result<()> {
    match mount(Some(kind), at, Some(kind), flags, Some(options)) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(lacking(kind, error)),
    }
}

fn lacking(kind: &str, error: Errno) -> anyhow::Error {
    let option = match kind {
        "virtiofs" => "CONFIG_VIRTIO_FS",
        "overlay" => "CONFIG_OVERLAY_FS",
        "erofs" => "CONFIG_EROFS_FS",
        "tmpfs" => "CONFIG_TMPFS",
        "devtmpfs" => "CONFIG_DEVTMPFS",
        _ => "",
    };
    match error {
        Errno::ENODEV if !option.is_empty() => {
            anyhow!("the guest's kernel has no {kind}: it needs {option}, built in or in its modules folder")
        }
        _ => anyhow!(error).context(format!("cannot mount {kind} in the guest")),
    }
}

/// Makes a folder, with exactly this mode, unless there is something.
pub(super) fn make(path: &str, mode: u32) -> anyhow::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .with_context(|| format!("cannot make folder {path} in the guest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_file_system_gets_one_line_that_names_its_option() {
        for (kind, option) in [("erofs", "CONFIG_EROFS_FS"), ("overlay", "CONFIG_OVERLAY_FS")] {
            let line = format!("{:#}", lacking(kind, Errno::ENODEV));
            assert!(line.contains(kind) && line.contains(option) && !line.contains('\n'), "{line}");
            assert!(!format!("{:#}", lacking(kind, Errno::EIO)).contains(option));
        }
    }
}
