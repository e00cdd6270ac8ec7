//! bzImage: a real-mode setup part with a header, then the protected-mode kernel that decompresses itself.
//!
//! Linux `Documentation/arch/x86/boot.rst`, protocol 2.12 or newer (Linux 3.8) for the 64-bit entry.

use std::fs::File;
use std::sync::Arc;

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::{DEFAULT_CMDLINE_MAX, Error, Image, Kind, Protocol, Segment, check_segments, read_up_to};
use crate::Piece;
use crate::layout::HIGH_MEMORY;

const HEADER: usize = 0x1f1;
const SECTOR: u64 = 512;
/// `xloadflags` bit 0: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// "HdrS".
const SIGNATURE: u32 = 0x5372_6448;
const OLDEST_PROTOCOL: u16 = 0x020c;

/// Whether this is the start of a bzImage.
pub(super) fn is(head: &[u8]) -> bool {
    head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS")
}

pub(super) fn parse(file: &Arc<File>, len: u64, head: &[u8]) -> Result<Image, Error> {
    let bad = |why| Error::Bad { format: "bzImage", why };
    let mut header = setup_header::default();
    let bytes = head.get(HEADER..HEADER + size_of::<setup_header>()).ok_or(bad("its header is cut off"))?;
    header.as_mut_slice().copy_from_slice(bytes);
    debug_assert_eq!({ header.header }, SIGNATURE);
    if header.version < OLDEST_PROTOCOL || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(bad("it has no 64-bit entry point (a 32-bit kernel, or older than Linux 3.8)"));
    }
    if header.loadflags & 1 == 0 {
        return Err(bad("it is a zImage, which loads low"));
    }
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let offset = (sectors + 1) * SECTOR;
    let kernel = u64::from(header.syssize) * 16;
    // The last paragraph may be cut short: `syssize` is rounded up.
    let available = len.checked_sub(offset).filter(|len| *len + 16 > kernel && *len > ENTRY_64);
    let size = available.ok_or(bad("it is truncated"))?.min(kernel);
    if size <= ENTRY_64 {
        return Err(bad("it holds no kernel"));
    }
    let addr =
        if header.relocatable_kernel != 0 { header.pref_address } else { u64::from(header.code32_start) };
    let addr = addr.max(HIGH_MEMORY);
    let mem_len = u64::from(header.init_size).max(size);
    let piece = Piece::File { file: file.clone(), offset, len: size };
    let mut segments = [Segment { addr, piece, mem_len }];
    let end = check_segments(&mut segments, Protocol::Linux64, "bzImage")?;
    Ok(Image {
        protocol: Protocol::Linux64,
        entry: addr + ENTRY_64,
        segments: segments.to_vec(),
        end,
        initrd_max: header.initrd_addr_max.into(),
        cmdline_max: match header.cmdline_size {
            0 => 255, // boot.rst: what a kernel takes that does not say
            size => DEFAULT_CMDLINE_MAX.min(size as usize),
        },
        kind: Kind::BzImage { version: version(file, offset, header.kernel_version) },
        header: Some(Box::new(header)),
        file: file.clone(),
    })
}

/// The release: the first word of the string that the header points at, within the setup part.
fn version(file: &File, setup_len: u64, pointer: u16) -> Option<String> {
    let at = u64::from(pointer) + 0x200;
    if pointer == 0 || at >= setup_len {
        return None;
    }
    let mut text = [0; 256];
    let got = read_up_to(file, &mut text, at).ok()?;
    super::elf::first_word(&text[..got])
}
