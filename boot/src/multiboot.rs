//! What a Multiboot image is given: memory, command line, its module, and who loaded it.
//!
//! Multiboot Specification 0.6.96 §3.3, "boot information format".

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::GuestMemory;
use crate::layout::{HIGH_MEMORY, LOW_RAM_END, LOW_TABLES, MULTIBOOT_INFO};
use crate::params::{Params, memory_map};

/// The information up to the video fields, which are not given.
const INFO: usize = 88;
/// Flags: which fields are given.
const MEMORY: u32 = 1;
const CMDLINE: u32 = 1 << 2;
const MODULES: u32 = 1 << 3;
const MEMORY_MAP: u32 = 1 << 6;
const LOADER_NAME: u32 = 1 << 9;

const LOADER: &[u8] = b"kite";
/// The longest name that a module keeps, in bytes: as long as a file's can be.
const MODULE_NAME_MAX: usize = 255;

/// The information's page, filled from its start.
struct Page(Vec<u8>);

impl Page {
    /// Appends `bytes` at a multiple of four; returns where they are.
    fn push(&mut self, bytes: &[u8]) -> u32 {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let at = MULTIBOOT_INFO as u32 + self.0.len() as u32;
        self.0.extend_from_slice(bytes);
        at
    }

    /// The same with a NUL behind them.
    fn push_text(&mut self, text: &[u8]) -> u32 {
        let at = self.push(text);
        self.0.push(0);
        at
    }

    fn put(&mut self, field: usize, value: u32) {
        self.0[field..field + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// Writes the information; returns its address.
///
/// # Errors
/// Guest memory ends below it.
pub(crate) fn write(params: &Params<'_>, memory: &GuestMemory) -> Result<u64, GuestMemoryError> {
    let mut page = Page(vec![0; INFO]);
    page.put(0, MEMORY | CMDLINE | MODULES | MEMORY_MAP | LOADER_NAME);
    // In KiB: from 0, and from 1 MiB up to the first hole.
    page.put(4, (LOW_TABLES / 1024) as u32);
    page.put(8, (params.ram.min(LOW_RAM_END).saturating_sub(HIGH_MEMORY) / 1024) as u32);
    let cmdline = page.push_text(params.cmdline.as_bytes());
    page.put(16, cmdline);
    if let Some((start, len)) = params.initrd {
        let name = params.module.as_bytes();
        let name = page.push_text(&name[..name.len().min(MODULE_NAME_MAX)]);
        // The module ends below 4 GiB: `initrd_max` has it so.
        let module = [start as u32, (start + len) as u32, name, 0].map(u32::to_le_bytes).concat();
        let module = page.push(&module);
        page.put(20, 1);
        page.put(24, module);
    }
    let map: Vec<u8> =
        memory_map(params.ram).iter().flat_map(|it| entry(it.start, it.len, it.kind)).collect();
    let at = page.push(&map);
    page.put(44, map.len() as u32);
    page.put(48, at);
    let loader = page.push_text(LOADER);
    page.put(64, loader);
    memory.write_slice(&page.0, GuestAddress(MULTIBOOT_INFO))?;
    Ok(MULTIBOOT_INFO)
}

/// An entry of the memory map: the length of what follows, then that.
fn entry(start: u64, len: u64, kind: u32) -> Vec<u8> {
    [&20u32.to_le_bytes()[..], &start.to_le_bytes(), &len.to_le_bytes(), &kind.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::multiboot_image;
    use crate::layout::CMDLINE_MAX;

    const GIB: u64 = 1 << 30;

    fn written(params: &Params<'_>) -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert_eq!(params.write(&memory, &multiboot_image()).unwrap(), MULTIBOOT_INFO);
        memory
    }

    fn word(memory: &GuestMemory, at: u64) -> u32 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn text(memory: &GuestMemory, at: u32) -> String {
        let mut text = vec![0; 4096];
        memory.read_slice(&mut text, GuestAddress(at.into())).unwrap();
        String::from_utf8(text.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
    }

    const PARAMS: Params<'_> = Params {
        cmdline: "tiny.elf a b",
        initrd: Some((0x3f0_0000, 0x1234)),
        module: "env",
        rsdp: None,
        ram: 5 * GIB,
        frame_buffer: None,
    };

    #[test]
    fn the_information_says_where_everything_is() {
        let memory = written(&PARAMS);
        let field = |offset: u64| word(&memory, MULTIBOOT_INFO + offset);
        assert_eq!(field(0), 0b10_0100_1101);
        assert_eq!((field(4), field(8)), (639, 3 * 1024 * 1024 - 1024));
        assert_eq!(text(&memory, field(16)), "tiny.elf a b");
        assert_eq!(text(&memory, field(64)), "kite");
        let module = u64::from(field(24));
        assert_eq!(field(20), 1);
        assert_eq!((word(&memory, module), word(&memory, module + 4)), (0x3f0_0000, 0x3f0_1234));
        assert_eq!(
            (text(&memory, word(&memory, module + 8)).as_str(), word(&memory, module + 12)),
            ("env", 0)
        );
        let (map, len) = (u64::from(field(48)), field(44));
        let expected = memory_map(PARAMS.ram);
        assert_eq!(len as usize, 24 * expected.len());
        for (index, range) in (0..).zip(&expected) {
            let at = map + 24 * index;
            let number = |offset: u64| memory.read_obj::<u64>(GuestAddress(at + offset)).unwrap();
            assert_eq!((word(&memory, at), number(4), number(12)), (20, range.start, range.len));
            assert_eq!(word(&memory, at + 20), range.kind);
        }
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let memory = written(&Params { initrd: None, ..PARAMS });
        assert_eq!((word(&memory, MULTIBOOT_INFO + 20), word(&memory, MULTIBOOT_INFO + 24)), (0, 0));
    }

    #[test]
    fn the_longest_texts_stay_within_the_page() {
        let (line, name) = ("x".repeat(CMDLINE_MAX), "é".repeat(4000));
        let memory = written(&Params { cmdline: &line, module: &name, ..PARAMS });
        assert_eq!(text(&memory, word(&memory, MULTIBOOT_INFO + 16)), line);
        let loader = word(&memory, MULTIBOOT_INFO + 64);
        assert_eq!(text(&memory, loader), "kite");
        assert!(u64::from(loader) + 5 <= MULTIBOOT_INFO + 0x1000);
        assert_eq!(word(&memory, MULTIBOOT_INFO - 4), 0);
    }
}
