//! Kernel images: what they are, by their content, and where their parts go in guest memory.

mod bzimage;
mod elf;
mod elf32;
mod find;
mod multiboot;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use linux_loader::bootparam::setup_header;

use crate::Piece;
use crate::layout::{CMDLINE_MAX, HIGH_MEMORY, IDENTITY_MAP, LOW_SEGMENTS, MULTIBOOT_INFO};

pub use find::{BUILT, Installed, NotFound, built, choose, installed};

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`): long mode, `boot_params` in RSI.
    Linux64,
    /// PVH (Xen `docs/misc/pvh.pandoc`): 32-bit protected mode without paging, `hvm_start_info` in EBX.
    Pvh,
    /// Multiboot 0.6.96: 32-bit protected mode without paging, the Multiboot information in EBX.
    Multiboot,
}

/// A part of the image and the guest memory it fills.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The guest-physical address.
    pub addr: u64,
    /// The bytes; what follows them up to `mem_len` is zero.
    pub piece: Piece,
    /// How much memory belongs to the segment, in bytes, at least the piece's length.
    pub mem_len: u64,
}

/// A kernel ready to be placed.
#[derive(Clone, Debug)]
pub struct Image {
    /// How to enter it.
    pub protocol: Protocol,
    /// The guest-physical address of the first instruction.
    pub entry: u64,
    /// What to place where, by ascending address, without overlap, all of it from 1 MiB up; a Multiboot image's
    /// may also lie between [`LOW_SEGMENTS`] and [`MULTIBOOT_INFO`].
    pub segments: Vec<Segment>,
    /// Where the memory ends that the kernel uses before it has read the memory map.
    pub end: u64,
    /// The last address at which the kernel can find its initrd.
    pub initrd_max: u64,
    /// The longest command line it takes, in bytes without the NUL.
    pub cmdline_max: usize,
    /// The bzImage's own setup header, which goes into the zero page.
    pub header: Option<Box<setup_header>>,
    file: Arc<File>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    BzImage { version: Option<String> },
    Elf { banner: Vec<(u64, u64)> },
    Multiboot,
}

/// Why a kernel image is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// It is a folder, a device or the like.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is none of the formats that are accepted.
    #[error(
        "it looks like {looks_like}; accepted are a bzImage (x86-64), an ELF vmlinux (x86-64) and a Multiboot image"
    )]
    Unknown {
        /// What the content looks like instead.
        looks_like: &'static str,
    },
    /// It is one of the accepted formats and broken, or one that lacks what we need.
    #[error("this {format} is unusable: {why}")]
    Bad {
        /// The format.
        format: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Image {
    /// Reads the headers of the image at `path`, and no more of it than that.
    ///
    /// # Errors
    /// The file cannot be read, or is no kernel that can be booted.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // Before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(Error::NotAFile);
        }
        let file = File::open(path)?;
        let mut head = [0; multiboot::SEARCHED];
        let got = read_up_to(&file, &mut head, 0)?;
        let (len, head) = (file.metadata()?.len(), &head[..got]);
        let file = Arc::new(file);
        if bzimage::is(head) {
            return bzimage::parse(&file, len, head);
        }
        let elf = head.starts_with(elf::MAGIC).then(|| elf::parse(&file, len));
        match (elf, multiboot::find(head)) {
            // PVH tells an image that has both entries more: where the ACPI tables are.
            (Some(Ok(image)), _) if image.protocol == Protocol::Pvh => Ok(image),
            (_, multiboot::Found::Header(header)) => multiboot::parse(&file, len, header),
            (Some(Ok(image)), _) => Ok(image),
            (_, multiboot::Found::Broken(why)) => Err(multiboot::bad(why)),
            (Some(refused), _) => refused,
            (None, _) => Err(Error::Unknown { looks_like: looks_like(head) }),
        }
    }

    /// The kernel's release, such as `6.1.0-37-cloud-amd64`, if the image tells it.
    ///
    /// A bzImage has it in its header; an ELF image is searched for its banner, read-only data first, so ask only
    /// when it is needed.
    pub fn version(&self) -> Option<String> {
        match &self.kind {
            Kind::BzImage { version } => version.clone(),
            Kind::Elf { banner } => elf::version(&self.file, banner),
            Kind::Multiboot => None,
        }
    }

    /// Where an initrd of `len` bytes goes: as high below `end`, where low RAM ends, as the kernel can find it, behind the
    /// kernel, at the start of a page. Nothing if it has no room.
    pub fn initrd_start(&self, end: u64, len: u64) -> Option<u64> {
        let end = end.min(self.initrd_max.saturating_add(1));
        end.checked_sub(len).map(|start| start & !0xfff).filter(|start| *start >= self.end)
    }

    /// Whether this is Linux for all we know: a bare ELF program need not be.
    pub fn is_linux(&self) -> bool {
        matches!(self.kind, Kind::BzImage { .. }) || self.version().is_some()
    }
}

/// Fills as much of `buffer` as the file has at `offset`.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    // No file is that long, and the system call refuses to look.
    if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
        return Ok(0);
    }
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// What a file is that is no kernel, for the error message.
fn looks_like(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 12] = [
        (b"\x1f\x8b", "gzip-compressed data (decompress it first)"),
        (b"\xfd7zXZ\0", "xz-compressed data (decompress it first)"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data (decompress it first)"),
        (b"\x02\x21\x4c\x18", "lz4-compressed data (decompress it first)"),
        (b"070701", "a cpio archive (an initrd?)"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"!<arch>\n", "a Debian package or an ar archive (unpack it first)"),
        (b"#!", "a script"),
        (b"MZ", "a PE/EFI program"),
        (b"\0asm", "WebAssembly"),
        (b"PK", "a zip archive"),
        (b"\xca\xfe\xba\xbe", "a Mach-O or Java file"),
    ];
    if head.is_empty() {
        return "an empty file";
    }
    if let Some((_, name)) = KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return name;
    }
    if head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        "text"
    } else {
        "unknown data"
    }
}

/// Checks that the segments lie where no boot data goes, within what the protocol can address at entry, and do not
/// overlap; returns where they end, at 1 MiB at least.
fn check_segments(segments: &mut [Segment], protocol: Protocol, format: &'static str) -> Result<u64, Error> {
    let bad = |why| Error::Bad { format, why };
    segments.sort_by_key(|segment| segment.addr);
    let mut end = 0;
    for segment in segments.iter() {
        let beyond = segment.addr.checked_add(segment.mem_len).ok_or(bad("a segment wraps around"))?;
        let low = protocol == Protocol::Multiboot && segment.addr >= LOW_SEGMENTS && beyond <= MULTIBOOT_INFO;
        if segment.addr < HIGH_MEMORY && !low {
            return Err(bad("a segment lies below 1 MiB, where boot data goes"));
        }
        if segment.addr < end {
            return Err(bad("its segments overlap"));
        }
        end = beyond;
    }
    let end = end.max(HIGH_MEMORY);
    match protocol {
        Protocol::Linux64 if end > IDENTITY_MAP => Err(bad("a segment ends above 1 GiB")),
        Protocol::Pvh | Protocol::Multiboot if end > 1 << 32 => Err(bad("a segment ends above 4 GiB")),
        _ => Ok(end),
    }
}

/// What Linux takes when the image does not say.
const DEFAULT_CMDLINE_MAX: usize = CMDLINE_MAX;
/// Linux's `initrd_addr_max` when the image does not say.
const DEFAULT_INITRD_MAX: u64 = 0x7fff_ffff;

#[cfg(test)]
pub(crate) mod tests;
