//! `--disk`: its value as data, and the image or block device behind it, opened and locked.

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
use boot::GuestMemory;
use devices::virtio::block::disk::{Blocks, Disk, SECTOR, SERIAL};
use devices::virtio::block::{Block, MAX_QUEUES, QUEUE_SIZE, engine};
use devices::virtio::{Copies, VirtioDevice};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Queues that a disk has at most if nobody says how many.
const DEFAULT_QUEUES: u32 = 16;
/// What O_DIRECT wants aligned where the host does not tell.
const DIRECT_ALIGN: u32 = 4096;
/// The stack of a thread that does disk I/O: it calls nothing deep.
const STACK: usize = 64 << 10;

/// The value of `--disk`: `PATH`, or `path=PATH[,readonly][,ephemeral][,direct][,raw][,queues=N][,id=SERIAL]`.
///
/// A value that begins with one of these words and `=` is a list, and so is one that begins with `readonly,`,
/// `ephemeral,`, `direct,` or `raw,`; in a list `,,` stands for a comma. Any other value is a path as a whole, whatever it holds; if there is nothing of that
/// name, one that looks like a list is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// The image or block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub readonly: bool,
    /// The guest writes, and the file never changes.
    pub ephemeral: bool,
    /// Around the host's page cache.
    pub direct: bool,
    /// It is raw, whatever it looks like.
    pub raw: bool,
    /// How many queues; the number of vCPUs, at most 16, if none is given.
    pub queues: Option<u16>,
    /// The serial number that the guest sees.
    pub id: String,
}

/// A disk that is open. It outlives a guest's reboot, and with it what was written to an ephemeral one.
#[derive(Clone, Debug)]
pub struct Open {
    disk: Arc<Disk>,
    queues: u16,
}

/// Reads the value of `--disk`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn parse(text: &str) -> Result<Spec, String> {
    const KEYS: [&str; 3] = ["path=", "queues=", "id="];
    const FLAGS: [&str; 4] = ["readonly,", "ephemeral,", "direct,", "raw,"];
    let mut spec = Spec::default();
    if KEYS.iter().chain(&FLAGS).any(|word| text.starts_with(word)) {
        for part in split(text) {
            spec.set(&part)?;
        }
    } else if let Some(why) = meant_as_list(text) {
        return Err(why);
    } else {
        spec.path = text.into();
    }
    match spec.path.as_os_str().is_empty() {
        true => Err("it names no file; such as --disk disk.img or --disk path=disk.img,readonly".to_owned()),
        false => Ok(spec),
    }
}

/// Why a value that is the path of nothing looks like a list: it begins with another word and `=`, as QEMU's do, or ends
/// with an option.
fn meant_as_list(text: &str) -> Option<String> {
    if Path::new(text).exists() {
        return None;
    }
    if let Some(path) = text.strip_suffix(":ro").filter(|path| !path.is_empty()) {
        return Some(format!("options need a path by name: path={path},readonly"));
    }
    let (first, rest) = text.split_once(',').map_or((text, ""), |(first, rest)| (first, rest));
    let word = first.split_once('=').map_or("", |(word, _)| word);
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Some(unknown(first));
    }
    (Spec::default().set(rest.split(',').next()?).is_ok() && !first.is_empty())
        .then(|| format!("options need a path by name: path={text}"))
}

/// The parts between single commas; a double one stands for a comma.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(char);
        }
    }
    parts
}

fn unknown(part: &str) -> String {
    format!(
        "unknown option '{part}'; there are path=, readonly, ephemeral, direct, raw, queues= and id=, and a comma in a path \
         is written ',,'"
    )
}

impl Spec {
    fn set(&mut self, part: &str) -> Result<(), String> {
        match part.split_once('=') {
            None if part == "readonly" => self.readonly = true,
            None if part == "ephemeral" => self.ephemeral = true,
            None if part == "direct" => self.direct = true,
            None if part == "raw" => self.raw = true,
            Some(("path", path)) if self.path.as_os_str().is_empty() => self.path = path.into(),
            Some(("path", _)) => return Err("a second path=; give --disk once for each disk".to_owned()),
            Some(("queues", count)) => {
                let count = count.parse().ok().filter(|count| (1..=MAX_QUEUES).contains(count));
                self.queues = Some(count.ok_or(format!("queues= is a number from 1 to {MAX_QUEUES}"))?);
            }
            Some(("id", id)) if id.len() <= SERIAL && id.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                self.id = id.to_owned();
            }
            Some(("id", _)) => {
                return Err(format!("id= has at most {SERIAL} characters, printable ASCII"));
            }
            _ => return Err(unknown(part)),
        }
        Ok(())
    }

    /// Opens and locks the disk, for a machine of so many vCPUs.
    ///
    /// # Errors
    /// It is neither an image nor a block device, or one that is not raw; it cannot be opened, or another machine has it.
    pub fn open(&self, cpus: u32) -> anyhow::Result<Open> {
        let open = || {
            let writable = !self.readonly && !self.ephemeral;
            let image = open(&self.path, writable, 0)?;
            lock::lock(&image, writable)?;
            let disk = self.disk(image)?;
            let queues = self.queues.unwrap_or(cpus.clamp(1, DEFAULT_QUEUES) as u16);
            anyhow::Ok(Open { disk: Arc::new(disk), queues })
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

impl Open {
    /// A device that shows the disk to a guest with this memory, of which there may be `copies`. Of one disk there is one device at a time.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn device(&self, memory: &GuestMemory, copies: Arc<Copies>) -> io::Result<Box<dyn VirtioDevice>> {
        let depth = usize::from(self.queues) * usize::from(QUEUE_SIZE);
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name("disk".to_owned()).stack_size(STACK).spawn(work).map(drop)
        };
        let engine = engine::start(&self.disk, memory, depth, Box::new(spawn))?;
        Ok(Box::new(Block::new(self.disk.clone(), engine, copies, self.queues)))
    }
}

/// Opens an image or block device. What it is, is looked at before it is opened, because opening others may do
/// something, and again after, because it may have been replaced; until then O_NONBLOCK keeps a FIFO from waiting.
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
    // Made by this call or not at all: what somebody else put there is not followed.
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

    fn image(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        file
    }

    fn spec(path: &Path, word: &str) -> Spec {
        parse(&format!("path={}{word}", path.display())).unwrap()
    }

    fn error(spec: &Spec) -> String {
        format!("{:#}", spec.open(1).unwrap_err())
    }

    #[test]
    fn values_are_paths_or_lists() {
        let path = |path: &str| Spec { path: path.into(), ..Spec::default() };
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("x,readonly");
        fs::write(&odd, "").unwrap();
        for text in ["disk.img", "a,b=c", "readonly", "/dev/vda", "=", odd.to_str().unwrap()] {
            assert_eq!(parse(text), Ok(path(text)));
        }
        for text in ["x,readonly", "x:ro", "file=", "file=x,format=raw", "paths=x"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("path=a,,b=c,,,readonly"), Ok(Spec { readonly: true, ..path("a,b=c,") }));
        let all = Spec {
            readonly: true,
            ephemeral: true,
            direct: true,
            queues: Some(64),
            id: "a=b,c d".to_owned(),
            ..path("x")
        };
        assert_eq!(parse("readonly,path=x,ephemeral,direct,queues=64,id=a=b,,c d"), Ok(all));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_in_one_line() {
        for text in [
            "",
            "path=",
            "queues=1",
            "path=x,queues=0",
            "path=x,queues=65",
            "path=x,queues=",
            "path=x,id=123456789012345678901",
            "path=x,id=\n",
            "path=x,id=é",
            "path=x,readonly=1",
            "path=x,",
            "path=x,path=y",
            "path=x,format=qcow2",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_disk_that_is_written_is_nobody_elses() {
        let file = image(&[0; 1024]);
        let [write, read, ephemeral] = ["", ",readonly", ",ephemeral"].map(|it| spec(file.path(), it));
        let open = write.open(1).unwrap();
        for other in [&write, &read, &ephemeral] {
            let error = error(other);
            assert!(error.contains(file.path().to_str().unwrap()) && error.contains("another"), "{error}");
        }
        drop(open);
        let shared = [read.open(1).unwrap(), ephemeral.open(1).unwrap(), read.open(1).unwrap()];
        assert!(error(&write).contains("another"));
        drop(shared);
        write.open(1).unwrap();
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
            let open = spec(&link, ",ephemeral").open(40).unwrap();
            assert_eq!((open.disk.sectors(), open.queues), (sectors, 16));
        }
    }
}
