//! Boot parameters: the memory map, and what tells the kernel where command line, initrd and ACPI tables are.

use linux_loader::bootparam::{boot_e820_entry, boot_params, screen_info};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use crate::kernel::{Image, Protocol};
use crate::layout::{
    ACPI_END, CMDLINE, FRAME_BUFFER, HIGH_MEMORY, HIGH_RAM_START, LOW_RAM_END, LOW_TABLES, PVH_INFO,
    ZERO_PAGE,
};
use crate::{GuestMemory, multiboot};

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const _: () = assert!(ACPI_END == HIGH_MEMORY, "the tables end where usable memory goes on");

/// A range of the memory map (ACPI 6.5 §15, "e820").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first guest-physical address.
    pub start: u64,
    /// The length in bytes.
    pub len: u64,
    /// 1: RAM, 2: reserved.
    pub kind: u32,
}

/// The RAM of a guest with `size` bytes, as (start, length): below the hole, and above it what does not fit.
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HIGH_RAM_START, size - low));
    }
    ranges
}

/// The memory map of a guest with `size` bytes of RAM.
pub fn memory_map(size: u64) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, len: LOW_TABLES, kind: RAM },
        Range { start: LOW_TABLES, len: HIGH_MEMORY - LOW_TABLES, kind: RESERVED },
    ];
    for (start, len) in ram(size) {
        let end = start + len;
        let start = start.max(HIGH_MEMORY);
        map.push(Range { start, len: end - start, kind: RAM });
    }
    map
}

/// What a kernel is given besides where it is.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// The command line; it has been checked against the image's limit and holds no NUL.
    pub cmdline: &'a str,
    /// The initrd's address and length in bytes.
    pub initrd: Option<(u64, u64)>,
    /// What the initrd is called; only a Multiboot image is given that.
    pub module: &'a str,
    /// Where the ACPI root pointer is.
    pub rsdp: Option<u64>,
    /// The guest's RAM in bytes.
    pub ram: u64,
    /// What it can draw on from its first line on. The PVH protocol has no room to say so.
    pub frame_buffer: Option<FrameBuffer>,
}

/// A linear frame buffer at [`FRAME_BUFFER`], of 32 bits a pixel: blue, green, red, and a byte that is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameBuffer {
    /// Pixels of a row, below 16384; rows follow each other without a gap.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl FrameBuffer {
    /// The length in bytes.
    pub fn len(self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * 4
    }

    /// Whether it has no pixel.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// What says so in the zero page (Linux `include/uapi/linux/screen_info.h`): as an EFI's, whose driver asks for no more
    /// than memory.
    fn describe(self) -> screen_info {
        const VIDEO_TYPE_EFI: u8 = 0x70;
        screen_info {
            orig_video_isVGA: VIDEO_TYPE_EFI,
            lfb_width: self.width,
            lfb_height: self.height,
            lfb_depth: 32,
            // Both fit: it ends below 4 GiB.
            lfb_base: FRAME_BUFFER as u32,
            lfb_size: self.len() as u32,
            lfb_linelength: 4 * self.width,
            blue_size: 8,
            green_size: 8,
            green_pos: 8,
            red_size: 8,
            red_pos: 16,
            rsvd_size: 8,
            rsvd_pos: 24,
            ..Default::default()
        }
    }
}

impl Params<'_> {
    /// Writes the command line and what points at it, as the image's protocol wants it; returns the address that
    /// the entry register is to hold.
    ///
    /// # Errors
    /// Guest memory ends below 1 MiB.
    pub fn write(&self, memory: &GuestMemory, image: &Image) -> Result<u64, GuestMemoryError> {
        if image.protocol == Protocol::Multiboot {
            return multiboot::write(self, memory);
        }
        let mut cmdline = Vec::with_capacity(self.cmdline.len() + 1);
        cmdline.extend_from_slice(self.cmdline.as_bytes());
        cmdline.push(0);
        memory.write_slice(&cmdline, GuestAddress(CMDLINE))?;
        match image.protocol {
            Protocol::Pvh => self.write_start_info(memory),
            _ => self.write_zero_page(memory, image),
        }
    }

    fn write_zero_page(&self, memory: &GuestMemory, image: &Image) -> Result<u64, GuestMemoryError> {
        let mut params = boot_params::default();
        match &image.header {
            Some(header) => params.hdr = **header,
            // An ELF kernel has no setup header of its own; these fields say that there is a boot loader at all.
            None => {
                params.hdr.boot_flag = 0xaa55;
                params.hdr.header = 0x5372_6448;
                params.hdr.kernel_alignment = 0x0100_0000;
            }
        }
        params.hdr.type_of_loader = 0xff; // no registered id
        params.hdr.cmd_line_ptr = CMDLINE as u32;
        params.hdr.cmdline_size = self.cmdline.len() as u32;
        if let Some((start, len)) = self.initrd {
            // Below 4 GiB, as `initrd_max` has it.
            params.hdr.ramdisk_image = start as u32;
            params.hdr.ramdisk_size = len as u32;
        }
        params.acpi_rsdp_addr = self.rsdp.unwrap_or(0);
        params.screen_info = self.frame_buffer.map(FrameBuffer::describe).unwrap_or_default();
        let map = memory_map(self.ram);
        params.e820_entries = map.len() as u8;
        for (entry, range) in params.e820_table.iter_mut().zip(&map) {
            *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind };
        }
        memory.write_slice(params.as_slice(), GuestAddress(ZERO_PAGE))?;
        Ok(ZERO_PAGE)
    }

    fn write_start_info(&self, memory: &GuestMemory) -> Result<u64, GuestMemoryError> {
        let map = memory_map(self.ram);
        let map_at = PVH_INFO + size_of::<hvm_start_info>() as u64;
        let modules_at = map_at + (map.len() * size_of::<hvm_memmap_table_entry>()) as u64;
        let info = hvm_start_info {
            magic: 0x336e_c578, // XEN_HVM_START_MAGIC_VALUE
            version: 1,
            nr_modules: self.initrd.is_some().into(),
            modlist_paddr: if self.initrd.is_some() { modules_at } else { 0 },
            cmdline_paddr: CMDLINE,
            rsdp_paddr: self.rsdp.unwrap_or(0),
            memmap_paddr: map_at,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        let mut bytes = info.as_slice().to_vec();
        for range in &map {
            let entry =
                hvm_memmap_table_entry { addr: range.start, size: range.len, type_: range.kind, reserved: 0 };
            bytes.extend_from_slice(entry.as_slice());
        }
        if let Some((paddr, size)) = self.initrd {
            let module = hvm_modlist_entry { paddr, size, ..Default::default() };
            bytes.extend_from_slice(module.as_slice());
        }
        memory.write_slice(&bytes, GuestAddress(PVH_INFO))?;
        Ok(PVH_INFO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_that_does_not_fit_below_the_hole_goes_on_above_it() {
        assert_eq!(ram(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ram(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
    }

    #[test]
    fn the_map_covers_all_ram_in_order_and_keeps_the_tables() {
        for size in [64 * MIB, 3 * GIB, 3 * GIB + 4096, 5 * GIB] {
            let map = memory_map(size);
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start), "{map:x?}");
            let usable: u64 = map.iter().filter(|range| range.kind == RAM).map(|range| range.len).sum();
            assert_eq!(usable, size - (HIGH_MEMORY - LOW_TABLES));
        }
    }

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    const PARAMS: Params<'_> = Params {
        cmdline: "quiet",
        initrd: Some((0x3f0_0000, 0x1234)),
        module: "",
        rsdp: Some(0xe_0000),
        ram: 5 * GIB,
        frame_buffer: None,
    };

    fn get<T: ByteValued>(memory: &GuestMemory, at: u64) -> T {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn assert_command_line(memory: &GuestMemory, at: u64) {
        let mut text = [0xff; 6];
        memory.read_slice(&mut text, GuestAddress(at)).unwrap();
        assert_eq!(&text, b"quiet\0");
    }

    /// By the offsets of `zero-page.rst` and `boot.rst`, not by the structure.
    #[test]
    fn the_zero_page_says_where_everything_is() {
        let [bzimage, elf, _] = crate::kernel::tests::images();
        for image in [bzimage, elf] {
            let memory = memory();
            let page = PARAMS.write(&memory, &image).unwrap();
            assert_eq!(get::<u64>(&memory, page + 0x70), 0xe_0000);
            assert_eq!(get::<u16>(&memory, page + 0x1fe), 0xaa55);
            assert_eq!(get::<[u8; 4]>(&memory, page + 0x202), *b"HdrS");
            assert_eq!(get::<u8>(&memory, page + 0x210), 0xff);
            assert_eq!(get::<[u32; 2]>(&memory, page + 0x218), [0x3f0_0000, 0x1234]);
            assert_command_line(&memory, get::<u32>(&memory, page + 0x228).into());
            let map = memory_map(PARAMS.ram);
            assert_eq!(usize::from(get::<u8>(&memory, page + 0x1e8)), map.len());
            for (index, range) in (0..).zip(&map) {
                let entry = page + 0x2d0 + 20 * index;
                assert_eq!(get::<[u64; 2]>(&memory, entry), [range.start, range.len]);
                assert_eq!(get::<u32>(&memory, entry + 16), range.kind);
            }
        }
    }

    #[test]
    fn the_zero_page_says_where_the_frame_buffer_is() {
        let [bzimage, elf, _] = crate::kernel::tests::images();
        for image in [bzimage, elf] {
            let memory = memory();
            let page = PARAMS.write(&memory, &image).unwrap();
            assert_eq!(get::<[u64; 8]>(&memory, page), [0; 8]);
            let frame_buffer = Some(FrameBuffer { width: 1366, height: 768 });
            Params { frame_buffer, ..PARAMS }.write(&memory, &image).unwrap();
            assert_eq!(get::<u8>(&memory, page + 0xf), 0x70);
            assert_eq!(get::<[u16; 3]>(&memory, page + 0x12), [1366, 768, 32]);
            assert_eq!(get::<[u32; 2]>(&memory, page + 0x18), [0xe000_0000, 1366 * 768 * 4]);
            assert_eq!(get::<u16>(&memory, page + 0x24), 4 * 1366);
            // Sizes and places of red, green, blue and nothing.
            assert_eq!(get::<[u8; 8]>(&memory, page + 0x26), [8, 16, 8, 8, 8, 0, 8, 24]);
            assert_eq!(get::<[u16; 5]>(&memory, page + 0x36), [0; 5]);
        }
    }

    #[test]
    fn a_bzimage_gets_its_own_header_back() {
        let [bzimage, elf, _] = crate::kernel::tests::images();
        for (image, version) in [(bzimage, 0x20f), (elf, 0)] {
            let memory = memory();
            let page = PARAMS.write(&memory, &image).unwrap();
            assert_eq!(get::<u16>(&memory, page + 0x206), version);
        }
    }

    /// By the offsets of `pvh.pandoc`.
    #[test]
    fn pvh_start_information_says_where_everything_is() {
        let [.., pvh] = crate::kernel::tests::images();
        let memory = memory();
        let info = PARAMS.write(&memory, &pvh).unwrap();
        assert_eq!(get::<[u32; 4]>(&memory, info), [0x336e_c578, 1, 0, 1]);
        let [modules, cmdline, rsdp, map_at] = get::<[u64; 4]>(&memory, info + 16);
        assert_eq!(get::<[u64; 2]>(&memory, modules), [0x3f0_0000, 0x1234]);
        assert_command_line(&memory, cmdline);
        assert_eq!(rsdp, 0xe_0000);
        let map = memory_map(PARAMS.ram);
        assert_eq!(get::<u32>(&memory, info + 48) as usize, map.len());
        for (index, range) in (0..).zip(&map) {
            assert_eq!(get::<[u64; 2]>(&memory, map_at + 24 * index), [range.start, range.len]);
            assert_eq!(get::<u32>(&memory, map_at + 24 * index + 16), range.kind);
        }
        assert!(map_at + 24 * map.len() as u64 <= modules && modules + 32 <= ZERO_PAGE);
    }

    #[test]
    fn what_is_not_there_is_not_pointed_at() {
        let params = Params { initrd: None, rsdp: None, ..PARAMS };
        let [bzimage, _, pvh] = crate::kernel::tests::images();
        let memory = memory();
        let page = params.write(&memory, &bzimage).unwrap();
        assert_eq!(get::<u64>(&memory, page + 0x70), 0);
        assert_eq!(get::<[u32; 2]>(&memory, page + 0x218), [0, 0]);
        let info = params.write(&memory, &pvh).unwrap();
        assert_eq!(get::<u32>(&memory, info + 12), 0);
        assert_eq!((get::<u64>(&memory, info + 16), get::<u64>(&memory, info + 32)), (0, 0));
    }

    #[test]
    fn the_longest_command_line_touches_nothing_else() {
        let line = "x".repeat(crate::layout::CMDLINE_MAX);
        for image in crate::kernel::tests::images() {
            let memory = memory();
            Params { cmdline: &line, ..PARAMS }.write(&memory, &image).unwrap();
            let end = CMDLINE + line.len() as u64;
            assert_eq!(get::<[u8; 2]>(&memory, end - 1), *b"x\0");
            assert!(end < LOW_TABLES);
        }
    }
}
