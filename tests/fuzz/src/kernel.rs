//! Kernel images that say anything: read, placed into guest memory, and told to the guest in the zero page.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use arbitrary::{Arbitrary, Unstructured};
use boot::kernel::{Image, Protocol};
use boot::layout::{HIGH_MEMORY, IDENTITY_MAP, LOW_SEGMENTS, MULTIBOOT_INFO, PM_TIMER_PORT, VIRTIO_MAX};
use boot::params::Params;
use boot::{GuestMemory, Piece, acpi, mptable};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use crate::list;

/// Guest RAM in bytes.
const RAM: u64 = 64 << 20;

/// A file: what it starts from, and what is put into it.
#[derive(Arbitrary, Debug)]
struct Content<'a> {
    base: Base<'a>,
    #[arbitrary(with = list)]
    bytes: Vec<(u16, u8)>,
    #[arbitrary(with = list)]
    numbers: Vec<(u16, u64)>,
    /// Cut, or lengthened by a hole.
    len: Option<u32>,
}

#[derive(Arbitrary, Debug)]
enum Base<'a> {
    Elf { notes: bool, segments: u8 },
    BzImage,
    Multiboot { elf: bool, at: u16, flags: u32 },
    Raw(&'a [u8]),
}

/// What the kernel is put into.
#[derive(Arbitrary, Debug)]
struct Machine {
    /// MiB of RAM, less one.
    mib: u8,
    /// The initrd's length in bytes, before it is shifted right by so many bits.
    initrd: (u32, u8),
    acpi: bool,
    pm_timer: bool,
    /// CPUs, less one.
    cpus: u8,
    virtio: u8,
    /// The command line's length in bytes, if the kernel takes that.
    cmdline: u16,
}

impl Content<'_> {
    fn write(&self) -> Vec<u8> {
        let mut content = match self.base {
            Base::Elf { notes, segments } => elf(notes, segments % 8),
            Base::BzImage => bzimage(),
            Base::Multiboot { elf, at, flags } => {
                multiboot(elf, usize::from(at % 2048) * 4, flags & 0x1_0003)
            }
            Base::Raw(bytes) => bytes.to_vec(),
        };
        let bytes = self.bytes.iter().map(|(at, byte)| (at, vec![*byte]));
        let numbers = self.numbers.iter().map(|(at, number)| (at, number.to_le_bytes().to_vec()));
        for (at, bytes) in bytes.chain(numbers) {
            // Most of what matters is in the first KiB.
            let at = usize::from(*at) % content.len().clamp(1, 1024);
            let end = content.len().min(at + bytes.len());
            content[at..end].copy_from_slice(&bytes[..end - at]);
        }
        content
    }
}

fn put(content: &mut [u8], at: usize, bytes: &[u8]) {
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An ELF executable with segments of a page at 1 MiB and on, and a PVH note if asked for.
fn elf(notes: bool, segments: u8) -> Vec<u8> {
    let mut content = vec![0; 0x1000 * (usize::from(segments) + 2)];
    put(&mut content, 0, b"\x7fELF\x02\x01\x01");
    put(&mut content, 16, &[2, 0, 62, 0, 1]);
    put(&mut content, 24, &HIGH_MEMORY.to_le_bytes());
    put(&mut content, 32, &64u64.to_le_bytes());
    put(&mut content, 52, &[64, 0, 56, 0, segments + u8::from(notes), 0]);
    for index in 0..u64::from(segments) {
        let (offset, address) = (0x1000 * (index + 1), HIGH_MEMORY + 0x2000 * index);
        let at = 64 + 56 * index as usize;
        put(&mut content, at, &[1, 0, 0, 0, 7]);
        for (field, value) in [(8, offset), (16, address), (24, address), (32, 0x1000), (40, 0x2000)] {
            put(&mut content, at + field, &value.to_le_bytes());
        }
    }
    if notes {
        // XEN_ELFNOTE_PHYS32_ENTRY.
        put(&mut content, 0x800, b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\0\0\x10\0\0\0\0\0");
        let at = 64 + 56 * usize::from(segments);
        put(&mut content, at, &[4, 0, 0, 0, 4]);
        for (field, value) in [(8, 0x800u64), (32, 24), (40, 24)] {
            put(&mut content, at + field, &value.to_le_bytes());
        }
    }
    content
}

/// A bzImage of protocol 2.15 with a 64-bit entry (Linux `Documentation/arch/x86/boot.rst`).
fn bzimage() -> Vec<u8> {
    let mut content = vec![0; 0x5000];
    put(&mut content, 0x1f1, &[4]);
    put(&mut content, 0x1f4, &0x400u32.to_le_bytes());
    put(&mut content, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6c]);
    put(&mut content, 0x202, b"HdrS\x0f\x02");
    put(&mut content, 0x20e, &0x100u16.to_le_bytes());
    put(&mut content, 0x211, &[1]);
    put(&mut content, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut content, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut content, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut content, 0x234, &[1, 21, 3, 0, 0xff, 0x07, 0, 0]);
    put(&mut content, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut content, 0x260, &0x2_0000u32.to_le_bytes());
    put(&mut content, 0x300, b"6.1.0 (fuzz)\0");
    content
}

/// A Multiboot image: a header `at` somewhere, with addresses that load the file from its start at 1 MiB, and before it
/// the headers of a 32-bit executable if asked for.
fn multiboot(elf: bool, at: usize, flags: u32) -> Vec<u8> {
    let mut content = vec![0; 0x3000];
    if elf {
        put(&mut content, 0, b"\x7fELF\x01\x01\x01");
        put(&mut content, 16, &[2, 0, 3, 0, 1]);
        put(&mut content, 24, &(HIGH_MEMORY as u32).to_le_bytes());
        put(&mut content, 28, &52u32.to_le_bytes());
        put(&mut content, 40, &[52, 0, 32, 0, 1, 0]);
        let program = [1, 0, HIGH_MEMORY as u32, HIGH_MEMORY as u32, 0x2000, 0x4000, 7, 0x1000];
        put(&mut content, 52, &program.map(u32::to_le_bytes).concat());
    }
    let start = HIGH_MEMORY as u32;
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let header = [0x1bad_b002, flags, checksum, start + at as u32, start, 0, start + 0x8000, start + 0x40];
    put(&mut content, at, &header.map(u32::to_le_bytes).concat());
    content
}

thread_local! {
    /// One file and one memory for all inputs.
    static KEPT: RefCell<Option<(NamedTempFile, GuestMemory)>> = const { RefCell::new(None) };
}

pub fn run(data: &[u8]) {
    let Ok((content, machine)) = <(Content<'_>, Machine)>::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    KEPT.with_borrow_mut(|kept| {
        let (file, memory) = kept.get_or_insert_with(|| {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
            (NamedTempFile::new().unwrap(), memory)
        });
        let bytes = content.write();
        let len = content.len.map_or(bytes.len() as u64, u64::from);
        file.as_file().set_len(0).unwrap();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        file.as_file().set_len(len).unwrap();
        if let Ok(image) = Image::open(file.path()) {
            assert_sound(&image, len);
            load(&image, &machine, memory);
        }
    });
}

/// What an image that was accepted promises to whoever loads it, for a file of `len` bytes.
fn assert_sound(image: &Image, len: u64) {
    let mut free = if image.protocol == Protocol::Multiboot { LOW_SEGMENTS } else { HIGH_MEMORY };
    for segment in &image.segments {
        assert!(segment.addr >= free && segment.piece.len() <= segment.mem_len, "{image:x?}");
        free = segment.addr.checked_add(segment.mem_len).unwrap();
        assert!(segment.addr >= HIGH_MEMORY || free <= MULTIBOOT_INFO, "{image:x?}");
        if let Piece::File { offset, len: part, .. } = &segment.piece {
            assert!(offset.checked_add(*part).unwrap() <= len, "{image:x?}");
        }
    }
    assert_eq!(free.max(HIGH_MEMORY), image.end, "{image:x?}");
    let addressable = if image.protocol == Protocol::Linux64 { IDENTITY_MAP } else { 1 << 32 };
    assert!(image.end <= addressable && image.initrd_max < 1 << 32, "{image:x?}");
    let holds = |it: &boot::kernel::Segment| (it.addr..it.addr + it.piece.len()).contains(&image.entry);
    assert!(image.segments.iter().any(holds), "{image:x?}");
    image.version();
}

/// Loads what fits as `kite` does: the kernel, of each part a KiB of each end, the initrd, the tables and what points at
/// them. What comes later touches nothing of what came before.
fn load(image: &Image, machine: &Machine, memory: &GuestMemory) {
    let ram = u64::from(machine.mib % 64 + 1) << 20;
    let mut placed: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut put = |at: u64, bytes: Vec<u8>| {
        memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        placed.push((at, bytes));
    };
    for segment in &image.segments {
        let Piece::File { file, offset, len } = &segment.piece else { continue };
        if segment.addr + segment.mem_len > ram {
            return;
        }
        let part = (*len).min(1024);
        for at in [0, len - part] {
            let mut bytes = vec![0; part as usize];
            file.read_exact_at(&mut bytes, offset + at).unwrap();
            put(segment.addr + at, bytes);
        }
    }
    let mut initrd = None;
    let len = u64::from(machine.initrd.0 >> (machine.initrd.1 % 32));
    if len > 0 {
        let Some(start) = image.initrd_start(ram, len) else { return };
        assert!(
            start >= image.end && start + len <= ram && start + len <= image.initrd_max + 1,
            "{start:#x}"
        );
        assert!(start.is_multiple_of(0x1000), "{start:#x}");
        put(start, vec![0xaa]);
        put(start + len - 1, vec![0xaa]);
        initrd = Some((start, len));
    }
    let cpus = u32::from(machine.cpus) + 1;
    let virtio = match u32::from(machine.virtio) % (VIRTIO_MAX + 2) {
        count @ 0..=VIRTIO_MAX => acpi::Virtio::Mmio(count),
        _ => acpi::Virtio::Pci,
    };
    let mut rsdp = None;
    if machine.acpi {
        rsdp = Some(acpi::write(memory, cpus, virtio, machine.pm_timer.then_some(PM_TIMER_PORT)).unwrap());
    } else if mptable::write(memory, cpus).is_err() {
        return; // It has no place for so many CPUs.
    }
    let cmdline = "x".repeat(image.cmdline_max.min(machine.cmdline.into()));
    let params = Params { cmdline: &cmdline, initrd, module: &cmdline, rsdp, ram, frame_buffer: None };
    params.write(memory, image).unwrap();
    for (at, bytes) in placed {
        let mut now = vec![0; bytes.len()];
        memory.read_slice(&mut now, GuestAddress(at)).unwrap();
        assert_eq!(now, bytes, "overwritten at {at:#x}: {image:x?}");
    }
}
