//! The ELF kernel inside a bzImage (Linux `Documentation/arch/x86/boot.rst`, fields `payload_offset` and
//! `payload_length`, protocol 2.08), and a copy of it whose PVH entry point is not found.

use std::io::Read;

use anyhow::{Context, Result, bail};

/// No kernel is larger than this when decompressed, in bytes.
const KERNEL_MAX: usize = 512 << 20;
/// Decompressed bytes of one block of the legacy LZ4 frame (`lz4 -l`).
const LZ4_BLOCK: usize = 8 << 20;
/// ELF program header type: notes.
const PT_NOTE: u32 = 4;
/// The note that names the PVH entry point: `XEN_ELFNOTE_PHYS32_ENTRY`.
const PVH_NOTE: u32 = 18;

/// The ELF kernel that a bzImage decompresses.
///
/// # Errors
/// This is no bzImage, or its payload is damaged or compressed in a way not known here.
pub fn extract(image: &[u8]) -> Result<Vec<u8>> {
    if image.get(0x202..0x206) != Some(b"HdrS".as_slice()) || u16_at(image, 0x206)? < 0x208 {
        bail!("not a bzImage of boot protocol 2.08 or later");
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + u32_at(image, 0x248)? as usize;
    let length = u32_at(image, 0x24c)? as usize;
    let payload = image.get(start..start.saturating_add(length)).context("the payload is cut short")?;
    let kernel = decompress(payload)?;
    if !kernel.starts_with(b"\x7fELF") {
        bail!("the payload is no ELF file");
    }
    Ok(kernel)
}

/// The kernel build appends the decompressed size, four bytes, to formats that do not end with it themselves.
/// Unpacks what is compressed in one of the kernel's formats, which its first bytes tell.
///
/// # Errors
/// It is in none of them, or broken.
pub fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(payload),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => all(lzma_rust2::XzReader::new(payload, false), "xz"),
        [0x1f, 0x8b, ..] => all(flate2::read::GzDecoder::new(payload), "gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            all(ruzstd::decoding::StreamingDecoder::new(payload).context("reading zstd")?, "zstd")
        }
        _ => bail!("the compression is neither lz4, xz, gzip nor zstd"),
    }
}

fn all(reader: impl Read, format: &str) -> Result<Vec<u8>> {
    let mut kernel = Vec::new();
    reader
        .take(KERNEL_MAX as u64)
        .read_to_end(&mut kernel)
        .with_context(|| format!("decompressing {format}"))?;
    Ok(kernel)
}

/// Blocks, each behind its compressed length, up to the appended size: there is no end mark.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>> {
    let end = payload.len().saturating_sub(4);
    let size = u32_at(payload, end)? as usize;
    if size > KERNEL_MAX {
        bail!("the payload claims to hold {size} bytes");
    }
    let mut kernel = vec![0; size];
    let (mut from, mut to) = (4, 0);
    while from < end {
        let length = u32_at(payload, from)? as usize;
        from += 4;
        let block = payload.get(from..from.saturating_add(length)).context("an lz4 block is cut short")?;
        let room = LZ4_BLOCK.min(size - to);
        to += lz4_flex::block::decompress_into(block, &mut kernel[to..to + room])
            .context("decompressing lz4")?;
        from += length;
    }
    if to != size {
        bail!("decompressing lz4: {to} bytes instead of {size}");
    }
    Ok(kernel)
}

/// Gives the PVH entry's note a type that nobody looks for; answers whether there was one.
///
/// # Errors
/// This is no 64-bit ELF file, or a header points outside it.
pub fn hide_pvh(elf: &mut [u8]) -> Result<bool> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit little-endian ELF file");
    }
    let headers = u64_at(elf, 32)? as usize;
    let (size, count) = (usize::from(u16_at(elf, 54)?), usize::from(u16_at(elf, 56)?));
    let mut found = false;
    for index in 0..count {
        let header = headers.saturating_add(index * size);
        if u32_at(elf, header)? == PT_NOTE {
            let start = u64_at(elf, header + 8)? as usize;
            let end = start.saturating_add(u64_at(elf, header + 32)? as usize);
            found |= hide_in(elf.get_mut(start..end).context("the notes are cut short")?)?;
        }
    }
    Ok(found)
}

/// Looks through one segment of notes: lengths of name and content, type, name, content, padded to words.
fn hide_in(notes: &mut [u8]) -> Result<bool> {
    let mut at = 0;
    let mut found = false;
    while at + 12 <= notes.len() {
        let (name, content) = (u32_at(notes, at)? as usize, u32_at(notes, at + 4)? as usize);
        let is_xen = notes.get(at + 12..at + 16) == Some(b"Xen\0".as_slice());
        if name == 4 && is_xen && u32_at(notes, at + 8)? == PVH_NOTE {
            notes[at + 8..at + 12].fill(0xff);
            found = true;
        }
        at += 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
    }
    Ok(found)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let end = at.saturating_add(N);
    bytes.get(at..end).and_then(|bytes| bytes.try_into().ok()).context("the file is cut short")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn a_legacy_lz4_payload_ends_at_the_appended_size() {
        // One block of six literals: token 0x60, then the bytes.
        let payload =
            [&[0x02, 0x21, 0x4c, 0x18, 7, 0, 0, 0, 0x60][..], b"\x7fELF\x02\x01", &6u32.to_le_bytes()]
                .concat();
        assert_eq!(extract(&bz_image(&payload)).unwrap(), b"\x7fELF\x02\x01");
        assert!(extract(&bz_image(&payload[..payload.len() - 6])).is_err());
    }

    #[test]
    fn something_else_is_refused() {
        assert!(extract(b"MZ").is_err());
        assert!(extract(&bz_image(b"BZh9")).is_err());
        assert!(hide_pvh(&mut b"\x7fELF\x02\x01".to_vec()).is_err());
    }

    #[test]
    fn only_the_pvh_note_is_hidden() {
        let note = |kind: u32| {
            [&4u32.to_le_bytes()[..], &4u32.to_le_bytes(), &kind.to_le_bytes(), b"Xen\0abcd"].concat()
        };
        let notes = [note(1), note(PVH_NOTE)].concat();
        let mut elf = vec![0; 120];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = PT_NOTE as u8;
        elf[72] = 120;
        elf[96] = notes.len() as u8;
        elf.extend_from_slice(&notes);
        assert!(hide_pvh(&mut elf).unwrap());
        assert_eq!(u32_at(&elf, 120 + 8).unwrap(), 1);
        assert_eq!(u32_at(&elf, 120 + 20 + 8).unwrap(), u32::MAX);
        assert!(!hide_pvh(&mut elf).unwrap());
    }
}
