//! ELF vmlinux: entered by PVH where it has the note, else by Linux's 64-bit protocol.
//!
//! System V ABI, "Object Files"; Xen `public/elfnote.h` for the PVH note.

use std::fs::File;
use std::sync::Arc;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr};
use vm_memory::ByteValued;

use super::{
    DEFAULT_CMDLINE_MAX, DEFAULT_INITRD_MAX, Error, Image, Kind, Protocol, Segment, check_segments,
    read_up_to,
};
use crate::Piece;

pub(super) const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
pub(super) const LITTLE_ENDIAN: u8 = 1;
pub(super) const MACHINE_X86_64: u16 = 62;
pub(super) const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
pub(super) const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Linux has five; a file with more than this is not a kernel.
pub(super) const MAX_PROGRAM_HEADERS: u16 = 64;
/// The size of an `Elf64_Shdr`.
const SECTION_HEADER: usize = 64;
const MAX_SECTION_HEADERS: u16 = 4096;
const MAX_NOTES: u64 = 64 << 10;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PVH_NOTE: u32 = 18;

const FORMAT: &str = "ELF image";

fn bad(why: &'static str) -> Error {
    Error::Bad { format: FORMAT, why }
}

/// One structure of the file.
fn get<T: ByteValued + Default>(file: &File, offset: u64, why: &'static str) -> Result<T, Error> {
    let mut value = T::default();
    let size = size_of::<T>();
    let got = read_up_to(file, value.as_mut_slice(), offset)?;
    if got == size { Ok(value) } else { Err(bad(why)) }
}

/// The ELF header and the program headers.
pub(super) fn program_headers(file: &File) -> Result<(Elf64_Ehdr, Vec<Elf64_Phdr>), Error> {
    let header: Elf64_Ehdr = get(file, 0, "it is truncated")?;
    if header.e_ident[4] != CLASS_64
        || header.e_ident[5] != LITTLE_ENDIAN
        || header.e_machine != MACHINE_X86_64
    {
        return Err(bad("it is not for x86-64"));
    }
    if ![EXECUTABLE, SHARED].contains(&header.e_type) {
        return Err(bad("it is not an executable (an object file or a module?)"));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(bad("its program headers make no sense"));
    }
    let program = |index: u64| {
        let at = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
        get(file, at.ok_or(bad("it is truncated"))?, "it is truncated")
    };
    let programs = (0..header.e_phnum.into()).map(program).collect::<Result<_, Error>>()?;
    Ok((header, programs))
}

pub(super) fn parse(file: &Arc<File>, len: u64) -> Result<Image, Error> {
    let (header, programs) = program_headers(file)?;
    let mut segments = Vec::new();
    let mut pvh = None;
    for program in &programs {
        match program.p_type {
            PT_LOAD if program.p_memsz > 0 => segments.push(segment(file, len, program)?),
            PT_NOTE => pvh = pvh.or(pvh_entry(file, program)?),
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(bad("it has nothing to load"));
    }
    let protocol = if pvh.is_some() { Protocol::Pvh } else { Protocol::Linux64 };
    let end = check_segments(&mut segments, protocol, FORMAT)?;
    let entry = pvh.unwrap_or(header.e_entry);
    let holds_entry = |s: &Segment| (s.addr..s.addr + s.piece.len()).contains(&entry);
    if !segments.iter().any(holds_entry) {
        return Err(bad("its entry point lies outside its segments (entry points are physical addresses)"));
    }
    let banner = banner_places(file, &header, &segments);
    Ok(Image {
        protocol,
        entry,
        segments,
        end,
        initrd_max: DEFAULT_INITRD_MAX,
        cmdline_max: DEFAULT_CMDLINE_MAX,
        header: None,
        file: file.clone(),
        kind: Kind::Elf { banner },
    })
}

pub(super) fn segment(file: &Arc<File>, len: u64, program: &Elf64_Phdr) -> Result<Segment, Error> {
    let end = program.p_offset.checked_add(program.p_filesz);
    if end.is_none_or(|end| end > len) || program.p_filesz > program.p_memsz {
        return Err(bad("it is truncated"));
    }
    let piece = Piece::File { file: file.clone(), offset: program.p_offset, len: program.p_filesz };
    Ok(Segment { addr: program.p_paddr, piece, mem_len: program.p_memsz })
}

/// The 32-bit entry point in a segment of notes, if it has one.
fn pvh_entry(file: &File, program: &Elf64_Phdr) -> Result<Option<u64>, Error> {
    if program.p_filesz > MAX_NOTES {
        return Ok(None);
    }
    let mut notes = vec![0; program.p_filesz as usize];
    if read_up_to(file, &mut notes, program.p_offset)? < notes.len() {
        return Err(bad("it is truncated"));
    }
    let mut rest = notes.as_slice();
    while let Some(note) = take(&mut rest, size_of::<Elf64_Nhdr>()) {
        let word = |at: usize| u32::from_le_bytes([note[at], note[at + 1], note[at + 2], note[at + 3]]);
        let (name_len, value_len, kind) = (word(0) as usize, word(4) as usize, word(8));
        let Some(name) = take(&mut rest, name_len) else { break };
        let Some(value) = take(&mut rest, value_len) else { break };
        if kind != PVH_NOTE || name != b"Xen\0" {
            continue;
        }
        return match value.len() {
            4 | 8 => {
                let mut entry = [0; 8];
                entry[..value.len()].copy_from_slice(value);
                Ok(Some(u64::from_le_bytes(entry)))
            }
            _ => Err(bad("its PVH note has no entry point")),
        };
    }
    Ok(None)
}

/// Cuts `len` bytes, padded to four, off the front.
fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let taken = rest.get(..len)?;
    let padded = len.checked_next_multiple_of(4)?.min(rest.len());
    *rest = &rest[padded..];
    Some(taken)
}

/// Where in the file the banner may be, likeliest first: the read-only data, where Linux has it near the start,
/// then all that is loaded.
fn banner_places(file: &File, header: &Elf64_Ehdr, segments: &[Segment]) -> Vec<(u64, u64)> {
    let named = (usize::from(header.e_shentsize) == SECTION_HEADER).then(|| read_only_data(file, header));
    let loaded = segments.iter().filter_map(|segment| match segment.piece {
        Piece::File { offset, len, .. } => Some((offset, len)),
        Piece::Bytes(_) => None,
    });
    named.flatten().into_iter().chain(loaded).collect()
}

/// Offset and length of `.rodata`.
fn read_only_data(file: &File, header: &Elf64_Ehdr) -> Option<(u64, u64)> {
    let mut sections = vec![0; usize::from(header.e_shnum.min(MAX_SECTION_HEADERS)) * SECTION_HEADER];
    let got = read_up_to(file, &mut sections, header.e_shoff).ok()?;
    let (sections, _) = sections[..got].as_chunks::<SECTION_HEADER>();
    let field = |section: &[u8; SECTION_HEADER], at: usize| {
        u64::from_le_bytes(section[at..at + 8].try_into().expect("eight bytes"))
    };
    let offset = |section| field(section, 24);
    let names = offset(sections.get(usize::from(header.e_shstrndx))?);
    let found = sections.iter().find(|section| {
        let mut name = [0; 8];
        let at = names.saturating_add(field(section, 0) & u64::from(u32::MAX));
        read_up_to(file, &mut name, at).is_ok() && &name == b".rodata\0"
    })?;
    Some((offset(found), field(found, 32)))
}

/// The release from Linux's banner, "Linux version RELEASE (...".
pub(super) fn version(file: &File, places: &[(u64, u64)]) -> Option<String> {
    /// No more than this is searched, in bytes: Linux has a tenth of it before the banner.
    const SEARCH: u64 = 256 << 20;
    const BANNER: &[u8] = b"Linux version ";
    const CHUNK: usize = 16 << 10;
    // Enough behind the banner for the longest release.
    const TAIL: usize = 256;
    let mut buffer = vec![0; CHUNK + TAIL];
    let mut left = SEARCH;
    for (start, len) in places {
        let mut offset = 0;
        while offset < (*len).min(left) {
            let at = start.checked_add(offset)?;
            let got = read_up_to(file, &mut buffer, at).ok()?;
            let banners =
                buffer[..got].windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER);
            let mut versions = banners.filter_map(|(at, _)| first_word(&buffer[at + BANNER.len()..got]));
            if let Some(version) = versions.next() {
                return Some(version);
            }
            if got < buffer.len() {
                break;
            }
            offset += CHUNK as u64;
        }
        left = left.saturating_sub(offset);
    }
    None
}

/// The first word, if it can be a release: what names a folder below `/lib/modules`.
pub(super) fn first_word(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|byte| !byte.is_ascii_graphic())?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    (word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(plain)).then(|| word.to_owned())
}
