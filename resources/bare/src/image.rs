//! Just enough of a kernel's headers to know what goes where: ELF with a PVH note (Xen `public/elfnote.h`) or
//! without (Linux's 64-bit entry), and bzImage (Linux `Documentation/arch/x86/boot.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PVH_NOTE: u32 = 18;

/// A range of the file and its guest-physical address.
pub struct Segment {
    pub address: u64,
    pub offset: u64,
    pub len: u64,
}

/// Where a kernel's parts go, and how it is entered.
pub struct Image {
    pub entry: u64,
    /// Entered in long mode, or else in flat protected mode.
    pub long_mode: bool,
    pub segments: Vec<Segment>,
}

impl Image {
    /// Reads the headers.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut head = [0; 4096];
        read_at(file, &mut head, 0)?;
        if head.starts_with(b"\x7fELF") { Self::elf(file, &head) } else { Ok(Self::bz_image(file, &head)?) }
    }

    fn elf(file: &File, head: &[u8; 4096]) -> io::Result<Self> {
        let (table, count) = (u64_at(head, 32) as usize, u16_at(head, 56));
        let mut image = Self { entry: u64_at(head, 24), long_mode: true, segments: Vec::new() };
        for header in (0..count).map(|index| head.get(table + usize::from(index) * 56..).unwrap_or_default())
        {
            let (offset, address, len) = (u64_at(header, 8), u64_at(header, 24), u64_at(header, 32));
            match u32_at(header, 0) {
                PT_LOAD => image.segments.push(Segment { address, offset, len }),
                PT_NOTE => {
                    let mut notes = vec![0; (len as usize).min(1 << 16)];
                    read_at(file, &mut notes, offset)?;
                    if let Some(entry) = pvh_entry(&notes) {
                        (image.entry, image.long_mode) = (entry, false);
                    }
                }
                _ => {}
            }
        }
        Ok(image)
    }

    fn bz_image(file: &File, head: &[u8; 4096]) -> io::Result<Self> {
        let offset = (u64::from(head[0x1f1]) + 1) * 512;
        let address = u64_at(head, 0x258);
        let len = file.metadata()?.len().saturating_sub(offset).min(u64::from(u32_at(head, 0x1f4)) * 16);
        Ok(Self { entry: address + 0x200, long_mode: true, segments: vec![Segment { address, offset, len }] })
    }
}

fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    loop {
        let (name, content) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize);
        let value = 12 + name.next_multiple_of(4);
        if u32_at(notes, 8) == PVH_NOTE && notes.get(12..16)? == b"Xen\0" {
            return Some(u32_at(notes, value).into());
        }
        notes = notes.get(value + content.next_multiple_of(4)..)?;
    }
}

/// Fills as much of `buffer` as the file has.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64)? {
            0 => break,
            more => got += more,
        }
    }
    Ok(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}
