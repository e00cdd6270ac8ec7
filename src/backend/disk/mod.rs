//! Disks: the image or block device behind one, opened and locked.

mod format;
mod lock;

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow, bail, ensure};
use devices::virtio::VirtioDevice;
use devices::virtio::block::disk::{Blocks, Disk, SECTOR};
use devices::virtio::block::{Block, KIND, QUEUE_SIZE, engine};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::image::cache::Root;
use super::{Backend, Calls, Modules};
use crate::spec::disk::DiskSpec;
use crate::spec::wire::IMAGE_SERIAL;
use crate::vm::memory::GuestRam;

/// Queues that a disk has at most if no option says how many.
const DEFAULT_QUEUES: u32 = 16;
/// What O_DIRECT wants aligned where the host does not tell.
const DIRECT_ALIGN: u32 = 4096;
/// How many threads one has at most.
const THREADS: usize = 8;
/// The stack of a thread that does disk I/O: it calls nothing deep.
const STACK: usize = 64 << 10;

/// A disk that is open. It outlives a guest's reboot, and with it what was written to an ephemeral one.
#[derive(Clone, Debug)]
pub struct OpenDisk {
    name: String,
    disk: Arc<Disk>,
    queues: u16,
    /// The modules of its file system, where kite's own `/init` mounts it.
    modules: &'static [&'static str],
}

impl DiskSpec {
    /// Opens and locks the disk, the `index`-th of a machine of so many vCPUs.
    ///
    /// # Errors
    /// It is neither an image nor a block device, or one that is not raw; it cannot be opened, or another machine has it.
    pub fn open(&self, index: usize, cpus: u32) -> anyhow::Result<OpenDisk> {
        let open = || {
            let writable = !self.readonly && !self.ephemeral;
            let image = open(&self.path, writable, 0)?;
            lock::lock(&image, writable)?;
            let disk = self.disk(image)?;
            let queues = self.queues.unwrap_or(default_queues(cpus));
            anyhow::Ok(OpenDisk { name: format!("disk{index}"), disk: Arc::new(disk), queues, modules: &[] })
        };
        open().with_context(|| format!("cannot open disk {}", self.path.display()))
    }

    fn disk(&self, mut image: File) -> anyhow::Result<Disk> {
        let metadata = image.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        // A block device's metadata has no length.
        let bytes = image.seek(SeekFrom::End(0)).context("its size is not known")?;
        if let Some(why) = format::refusal(&image, bytes, &self.path)?.filter(|_| !self.raw) {
            bail!(why);
        }
        if !bytes.is_multiple_of(SECTOR) {
            log::warn!(
                "disk {}: the last {} bytes are no whole sector: the guest does not see them",
                self.path.display(),
                bytes % SECTOR
            );
        }
        let device = if is_device { metadata.rdev() } else { metadata.dev() };
        let blocks = if is_device { device_blocks(device) } else { Blocks::default() };
        let direct = match self.direct {
            true => {
                let writable = !self.readonly && !self.ephemeral;
                let file = open(&self.path, writable, libc::O_DIRECT)
                    .context("its file system may know no direct I/O; leave out 'direct'")?;
                let same = file.metadata()?;
                ensure!(
                    (same.dev(), same.ino()) == (metadata.dev(), metadata.ino()),
                    "it was replaced meanwhile"
                );
                Some((file, limit(device, "logical_block_size").unwrap_or(DIRECT_ALIGN)))
            }
            false => None,
        };
        let mut disk = Disk::new(image, bytes).with_blocks(blocks).with_serial(&self.id);
        if let Some((file, align)) = direct {
            disk = disk.direct(file, align);
        }
        if self.readonly {
            disk = disk.read_only();
        } else if self.ephemeral {
            disk = disk.ephemeral(scratch()?).context("cannot make the file for what the guest writes")?;
        }
        Ok(disk)
    }
}

impl OpenDisk {
    /// The root file system of an image, read-only, which the guest knows by its serial number.
    ///
    /// # Errors
    /// Its length is not known.
    pub fn of_image(root: &Root, cpus: u32) -> anyhow::Result<Self> {
        let file = root.file().try_clone().context("cannot share a descriptor")?;
        // An io_uring would answer EAGAIN.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).context("cannot let it wait")?;
        let bytes = file.metadata().context("cannot look at an image's root file system")?.len();
        let disk = Disk::new(file, bytes).with_serial(IMAGE_SERIAL).read_only();
        Ok(Self {
            name: "image".to_owned(),
            disk: Arc::new(disk),
            queues: default_queues(cpus),
            modules: &["erofs", "overlay"],
        })
    }
}

/// How many queues a disk has unless the user says how many.
fn default_queues(cpus: u32) -> u16 {
    cpus.clamp(1, DEFAULT_QUEUES) as u16
}

impl Backend for OpenDisk {
    fn device(&self, ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        let depth = usize::from(self.queues) * usize::from(QUEUE_SIZE);
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name("disk".to_owned()).stack_size(STACK).spawn(work).map(drop)
        };
        let engine = engine::start(&self.disk, ram.memory(), depth, Box::new(spawn));
        let engine = engine.with_context(|| format!("cannot set up {}", self.name))?;
        let (name, disk) = (self.name.clone(), self.disk.clone());
        Ok(Box::new(Block::new(name, disk, engine, ram.copies().clone(), self.queues)))
    }

    fn modules(&self) -> Modules {
        Modules { needed: [&[KIND.module], self.modules].concat(), optional: Vec::new() }
    }

    fn calls(&self) -> Calls {
        Calls::Disk
    }

    fn threads(&self) -> usize {
        THREADS
    }
}

fn open(path: &Path, writable: bool, flags: i32) -> anyhow::Result<File> {
    check(&fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true).write(writable).custom_flags(flags | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if writable => {
            anyhow!("{error}; with 'readonly' or 'ephemeral' it need not be writable")
        }
        _ => error.into(),
    })?;
    check(&file.metadata()?)?;
    // An io_uring tells EAGAIN where a file that may not block would have to wait.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags))).context("cannot let it wait")?;
    Ok(file)
}

fn check(metadata: &fs::Metadata) -> anyhow::Result<()> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    bail!("it is {what}; a disk is an image file or a block device")
}

/// An empty file without a name: it goes when kite does.
fn scratch() -> anyhow::Result<File> {
    let named = env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    // Not first in /tmp: that is often memory.
    let folders = named.into_iter().chain(["/var/tmp".into(), "/tmp".into()]);
    let mut failed = None;
    for folder in folders {
        match nameless(&folder) {
            Ok(file) => return Ok(file),
            Err(error) => failed = Some(anyhow!("{}: {error}", folder.display())),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow!("there is no folder"))).context(
        "no folder for what the guest writes to an ephemeral disk; set TMPDIR to one that can be written to",
    )
}

/// A file in `folder` that has no name, or had one for a moment where the file system knows no others (overlayfs before
/// Linux 6.3).
fn nameless(folder: &Path) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    };
    match options().custom_flags(libc::O_TMPFILE).open(folder) {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        result => return result,
    }
    let mut random = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let path = folder.join(format!("kite-{:016x}", u64::from_le_bytes(random)));
    // Made by this call or not at all: what another process put there is not followed.
    let file = options().create_new(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The blocks of a host's block device.
fn device_blocks(device: u64) -> Blocks {
    let logical = limit(device, "logical_block_size").unwrap_or(SECTOR as u32);
    let physical = limit(device, "physical_block_size").unwrap_or(logical).max(logical);
    Blocks { logical, physical }
}

/// A limit of a block device, or of the one that a file's file system is on: a power of two from 512 on.
fn limit(device: u64, name: &str) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let folder = format!("/sys/dev/block/{major}:{minor}");
    // A partition has its disk's.
    let read = |queue: &str| fs::read_to_string(format!("{folder}/{queue}/{name}")).ok();
    let number: u32 = read("queue").or_else(|| read("../queue"))?.trim().parse().ok()?;
    (number.is_power_of_two() && (512..=1 << 16).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::disk::parse;

    fn image(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        file
    }

    fn spec(path: &Path, word: &str) -> DiskSpec {
        parse(&format!("path={}{word}", path.display())).unwrap()
    }

    fn error(spec: &DiskSpec) -> String {
        format!("{:#}", spec.open(0, 1).unwrap_err())
    }

    #[test]
    fn a_disk_that_is_written_is_nobody_elses() {
        let file = image(&[0; 1024]);
        let [write, read, ephemeral] = ["", ",readonly", ",ephemeral"].map(|it| spec(file.path(), it));
        let open = write.open(0, 1).unwrap();
        for other in [&write, &read, &ephemeral] {
            let error = error(other);
            assert!(error.contains(file.path().to_str().unwrap()) && error.contains("another"), "{error}");
        }
        drop(open);
        let shared = [read.open(0, 1).unwrap(), ephemeral.open(0, 1).unwrap(), read.open(0, 1).unwrap()];
        assert!(error(&write).contains("another"));
        drop(shared);
        write.open(0, 1).unwrap();
    }

    #[test]
    fn only_images_and_block_devices_are_disks() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let missing = folder.path().join("missing");
        for (path, what) in [
            (folder.path(), "a directory"),
            (&fifo, "a pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/null"), "a character device"),
            (&missing, "No such file"),
        ] {
            let error = error(&spec(path, ""));
            assert!(error.starts_with("cannot open disk ") && error.contains(what), "{error}");
        }
    }

    #[test]
    fn sectors_are_whole_and_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        for (bytes, sectors) in [(0, 0), (511, 0), (512, 1), (1100, 2)] {
            let file = image(&vec![0; bytes]);
            let link = folder.path().join(bytes.to_string());
            std::os::unix::fs::symlink(file.path(), &link).unwrap();
            let open = spec(&link, ",ephemeral").open(0, 40).unwrap();
            assert_eq!((open.disk.sectors(), open.queues), (sectors, 16));
        }
    }
}
