//! Multiboot images: a header in the first 8 KiB of any executable, entered in 32-bit protected mode without paging.
//!
//! Multiboot Specification 0.6.96 §3.1: §3.1.1 on where the header is and the requirements that its flags make, §3.1.3 on
//! the addresses that it may have instead of an ELF header's.

use std::fs::File;
use std::sync::Arc;

use super::{
    DEFAULT_CMDLINE_MAX, Error, Image, Kind, Protocol, Segment, check_segments, elf, elf32, read_up_to,
};
use crate::Piece;

/// The header lies within so many bytes, and starts at a multiple of four.
pub(super) const SEARCHED: usize = 8192;
const MAGIC: u32 = 0x1bad_b002;

/// The header's addresses are valid, and an executable's own are not to be used.
const ADDRESSES: u32 = 1 << 16;

const FORMAT: &str = "Multiboot image";

pub(super) fn bad(why: &'static str) -> Error {
    Error::Bad { format: FORMAT, why }
}

/// A header as it is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where in the file.
    at: u64,
    flags: u32,
    addresses: Option<Addresses>,
}

/// §3.1.3, "the address fields"; guest-physical.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// What the start of a file holds.
pub(super) enum Found {
    Nothing,
    /// Something that is marked as a header, and is none.
    Broken(&'static str),
    Header(Header),
}

/// Looks for a header in the first bytes of a file.
pub(super) fn find(head: &[u8]) -> Found {
    let head = &head[..head.len().min(SEARCHED)];
    let mut found = Found::Nothing;
    for at in (0..head.len().saturating_sub(3)).step_by(4) {
        let word = |offset: usize| word(head, at + offset);
        if word(0) != Some(MAGIC) {
            continue;
        }
        let (Some(flags), Some(checksum)) = (word(4), word(8)) else {
            return Found::Broken("its header is cut off");
        };
        if MAGIC.wrapping_add(flags).wrapping_add(checksum) != 0 {
            found = Found::Broken("its header's checksum is wrong");
            continue;
        }
        let addresses = addresses(&head[at..]);
        if flags & ADDRESSES != 0 && addresses.is_none() {
            return Found::Broken("its header is cut off");
        }
        let addresses = addresses.filter(|_| flags & ADDRESSES != 0);
        return Found::Header(Header { at: at as u64, flags, addresses });
    }
    found
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

fn addresses(header: &[u8]) -> Option<Addresses> {
    // Magic, flags, checksum.
    const FIXED: usize = 12;
    // The same with the five addresses behind them.
    const WITH_ADDRESSES: usize = 32;
    let header = header.get(FIXED..WITH_ADDRESSES)?;
    let field = |index: usize| word(header, index * 4);
    Some(Addresses {
        header: field(0)?,
        load: field(1)?,
        load_end: field(2)?,
        bss_end: field(3)?,
        entry: field(4)?,
    })
}

pub(super) fn parse(file: &Arc<File>, len: u64, header: Header) -> Result<Image, Error> {
    // Flags: what is asked for in the low half must be granted, the rest may be ignored.
    const REQUIREMENTS: u32 = 0xffff;
    const PAGE_ALIGN: u32 = 1;
    const MEMORY_INFO: u32 = 1 << 1;
    const VIDEO_MODE: u32 = 1 << 2;
    match header.flags & REQUIREMENTS & !(PAGE_ALIGN | MEMORY_INFO) {
        0 => {}
        VIDEO_MODE => return Err(bad("it asks for a video mode, and this board has no screen")),
        _ => return Err(bad("it asks for something that is not in Multiboot 0.6.96")),
    }
    let (entry, mut segments) = match header.addresses {
        Some(addresses) => {
            let segment = addresses.segment(file, len, header.at)?;
            (addresses.entry.into(), vec![segment])
        }
        None => executable(file, len)?,
    };
    let end = check_segments(&mut segments, Protocol::Multiboot, FORMAT)?;
    let holds_entry = |s: &Segment| (s.addr..s.addr + s.piece.len()).contains(&entry);
    if !segments.iter().any(holds_entry) {
        return Err(bad("its entry point lies outside what is loaded"));
    }
    Ok(Image {
        protocol: Protocol::Multiboot,
        entry,
        segments,
        end,
        // What points at a module is 32 bits wide.
        initrd_max: u32::MAX.into(),
        cmdline_max: DEFAULT_CMDLINE_MAX,
        header: None,
        file: file.clone(),
        kind: Kind::Multiboot,
    })
}

impl Addresses {
    /// The only segment there is: of the file around the header, which lies at `at`.
    fn segment(&self, file: &Arc<File>, len: u64, at: u64) -> Result<Segment, Error> {
        let [header, load, load_end, bss_end] =
            [self.header, self.load, self.load_end, self.bss_end].map(u64::from);
        let offset = header.checked_sub(load).and_then(|before| at.checked_sub(before));
        let offset = offset.ok_or(bad("its header lies outside what it loads"))?;
        // The header was read from there, so the file is longer.
        let rest = len.saturating_sub(offset);
        let size = match load_end {
            0 => rest,
            end => end.checked_sub(load).ok_or(bad("its addresses make no sense"))?,
        };
        if size > rest {
            return Err(bad("it is truncated"));
        }
        let mem_len = match bss_end {
            0 => size,
            end => end
                .checked_sub(load)
                .filter(|mem_len| *mem_len >= size)
                .ok_or(bad("its addresses make no sense"))?,
        };
        Ok(Segment { addr: load, piece: Piece::File { file: file.clone(), offset, len: size }, mem_len })
    }
}

/// The entry point and the segments that an ELF header names.
fn executable(file: &Arc<File>, len: u64) -> Result<(u64, Vec<Segment>), Error> {
    let mut start = [0; 5];
    let got = read_up_to(file, &mut start, 0)?;
    if !start[..got].starts_with(elf::MAGIC) {
        return Err(bad("it has neither addresses nor an ELF header"));
    }
    let (entry, programs) = match start[4] {
        elf32::CLASS_32 => elf32::program_headers(file)?,
        _ => elf::program_headers(file).map(|(header, programs)| (header.e_entry, programs))?,
    };
    let loaded = || programs.iter().filter(|it| it.p_type == elf::PT_LOAD && it.p_memsz > 0);
    let segments = loaded().map(|it| elf::segment(file, len, it)).collect::<Result<Vec<_>, _>>()?;
    // Unlike all else, the entry point is a virtual address.
    let physical = loaded().find_map(|it| {
        let offset = entry.checked_sub(it.p_vaddr).filter(|offset| *offset < it.p_filesz)?;
        it.p_paddr.checked_add(offset)
    });
    Ok((physical.unwrap_or(entry), segments))
}
