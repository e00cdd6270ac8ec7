//! The command's root folder: what kite shares under a layer of memory, or a disk; and the file systems that programs
//! expect in it.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot, sethostname, sync};

use crate::spec::wire::{GuestCommand, Root, Share};

/// The guest's own name.
pub(super) const HOST_NAME: &str = "kite";
/// The shared folder as it is.
const LOWER: &str = "/lower";
/// The memory that takes what is written.
const LAYER: &str = "/layer";
/// What becomes the root folder.
pub(super) const NEW: &str = "/new";
/// The file systems that a root disk may have; those that the kernel knows are tried.
const DISK_KINDS: [&str; 6] = ["ext4", "xfs", "btrfs", "f2fs", "erofs", "squashfs"];
/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many files a process may have open: what it is given, and what it may ask for, as login sessions have it.
pub(super) const OPEN_FILES: (u64, u64) = (1024, 1 << 20);

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Makes the root folder and enters it.
///
/// # Errors
/// The kernel lacks a file system, or a disk has none.
pub(super) fn enter(spec: &GuestCommand) -> anyhow::Result<()> {
    make(NEW, 0o755)?;
    match &spec.root {
        Root::Share { tag } => mount_share_under_memory(tag)?,
        Root::Disk { readonly } => mount_disk(*readonly)?,
    }
    mount_pseudo()?;
    chdir(NEW).context("cannot enter the root folder")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the root folder")?;
    chroot(".").context("cannot change the root folder")?;
    chdir("/").context("cannot enter the root folder")?;
    // From inside, so that no symbolic link leads elsewhere.
    spec.shares.iter().try_for_each(mount_share)?;
    sethostname(HOST_NAME).context("cannot set the host's name")?;
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

pub(super) fn mount_share_under_memory(tag: &str) -> anyhow::Result<()> {
    make(LOWER, 0o755)?;
    make(LAYER, 0o755)?;
    virtiofs(tag, Path::new(LOWER), MsFlags::MS_RDONLY)?;
    attach("tmpfs", LAYER, MsFlags::empty(), "mode=0755")?;
    let (upper, work) = (format!("{LAYER}/upper"), format!("{LAYER}/work"));
    make(&upper, 0o755)?;
    make(&work, 0o755)?;
    // The root folder itself is the upper one's.
    let mode = fs::metadata(LOWER).context("cannot look at the root folder")?.permissions().mode();
    fs::set_permissions(&upper, Permissions::from_mode(mode & 0o7777))
        .context("cannot make the root folder")?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    attach("overlay", NEW, MsFlags::empty(), &options)
}

/// Mounts the first disk, or the first of its partitions that has a file system.
fn mount_disk(readonly: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !Path::new("/dev/vda").exists() {
        if start.elapsed() > PATIENCE {
            bail!("no disk /dev/vda: the kernel needs CONFIG_VIRTIO_BLK");
        }
        sleep(Duration::from_millis(1));
    }
    let known =
        fs::read_to_string("/proc/filesystems").context("cannot read which file systems there are")?;
    let kinds: Vec<&str> = known.lines().filter_map(|line| line.strip_prefix('\t')).collect();
    let kinds = DISK_KINDS.iter().filter(|kind| kinds.contains(kind));
    let partitions = (1..=16).map(|number| format!("/dev/vda{number}"));
    let disks = std::iter::once("/dev/vda".to_owned()).chain(partitions.filter(|it| Path::new(it).exists()));
    let flags = if readonly { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    for disk in disks {
        for kind in kinds.clone() {
            if mount(Some(disk.as_str()), NEW, Some(*kind), flags, None::<&str>).is_ok() {
                return Ok(());
            }
        }
    }
    bail!("the first disk has no file system that this kernel knows of: {}", DISK_KINDS.join(", "))
}

/// What is not on a disk. Those without `needed` are there if the kernel has them.
fn mount_pseudo() -> anyhow::Result<()> {
    let list = [
        ("proc", "proc", SAFE, "", true),
        ("sysfs", "sys", SAFE, "", true),
        ("devtmpfs", "dev", MsFlags::MS_NOSUID, "", true),
        ("devpts", "dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=620,gid=5,ptmxmode=666", true),
        ("tmpfs", "dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777", true),
        ("tmpfs", "run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755", true),
        ("mqueue", "dev/mqueue", SAFE, "", false),
        ("cgroup2", "sys/fs/cgroup", SAFE, "", false),
        ("bpf", "sys/fs/bpf", SAFE, "mode=700", false),
        ("securityfs", "sys/kernel/security", SAFE, "", false),
        ("debugfs", "sys/kernel/debug", SAFE, "", false),
        ("tracefs", "sys/kernel/tracing", SAFE, "", false),
    ];
    for (kind, folder, flags, options, needed) in list {
        let at = format!("{NEW}/{folder}");
        // In /sys the kernel itself has made what it has.
        let made = if folder.starts_with("sys/") { Ok(()) } else { make(&at, 0o755) };
        let mounted = made.and_then(|()| attach(kind, &at, flags, options));
        if needed {
            mounted?;
        }
    }
    let temporary = format!("{NEW}/tmp");
    make(&temporary, 0o1777)?;
    // What is there stays visible; programs that want a mount there, to make it private, find one.
    let itself = Some(temporary.as_str());
    mount(itself, temporary.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("cannot mount /tmp")?;
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        // Some kernels make them themselves.
        let _ = symlink(target, format!("{NEW}/dev/{link}"));
    }
    Ok(())
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
