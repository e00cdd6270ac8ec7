//! Made tables in each layout, files, and the kernels that are at hand.

use std::fs;

use super::*;

/// Where the made kernel's memory begins.
const START: u64 = 0x123_0000;
const BASE: u64 = 0xffff_ffff_9a00_0000;

/// Memory that begins at [`START`].
struct Image(Vec<u8>);

impl Physical for Image {
    fn read(&self, address: u64, into: &mut [u8]) -> usize {
        let rest = address.checked_sub(START).and_then(|at| self.0.get(at as usize..)).unwrap_or_default();
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        len
    }
}

/// How far the made kernel's addresses are from the physical ones.
const MOVED: u64 = BASE - START;

fn find(memory: &Image, physical: u64) -> Option<Symbols> {
    Symbols::find(memory, Place { address: physical.wrapping_add(MOVED), physical })
}

/// The orders that the tables have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Until6_1,
    Until6_3,
    Until6_19,
    /// Without a base, and still aligned to eight.
    WithoutBase,
    /// Aligned to four.
    Now,
}

const LAYOUTS: [Layout; 5] =
    [Layout::Until6_1, Layout::Until6_3, Layout::Until6_19, Layout::WithoutBase, Layout::Now];
impl Layout {
    fn alignment(self) -> usize {
        if self == Self::Now { 4 } else { 8 }
    }
}

const COUNT: usize = 1500;
/// Its length takes two bytes.
const LONG: usize = 1003;

/// What a symbol is called in the made tables.
fn name(index: usize) -> String {
    match index {
        LONG => "x".repeat(300),
        _ => format!("function_{index}"),
    }
}

/// The tables, with `percpu` symbols at addresses from zero, and the others 16 bytes apart.
fn tables(layout: Layout, percpu: Option<usize>) -> Image {
    made(layout, percpu, COUNT, 100_000).0
}

/// The tables of `all` symbols behind `before` bytes, and where each table begins.
fn made(layout: Layout, percpu: Option<usize>, all: usize, before: usize) -> (Image, Vec<usize>) {
    let mut token_table = Vec::new();
    let mut token_index = Vec::new();
    for code in 0..=255u8 {
        token_index.extend((token_table.len() as u16).to_le_bytes());
        match code {
            1 => token_table.extend(b"tfunction_"),
            b'_' | b'x' | b'0'..=b'9' | b'a'..=b'z' => token_table.push(code),
            _ => {}
        }
        token_table.push(0);
    }
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for index in 0..all {
        if index % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        let codes = match index {
            LONG => [b"d".to_vec(), name(index).into_bytes()].concat(),
            _ => [vec![1], index.to_string().into_bytes()].concat(),
        };
        match codes.len() {
            short @ 0..128 => names.push(short as u8),
            long => names.extend([long as u8 | 0x80, (long >> 7) as u8]),
        }
        names.extend(codes);
    }
    let offset = |index: usize| match percpu {
        None => index as u32 * 16,
        Some(percpu) if index < percpu => index as u32 * 8,
        Some(percpu) => !((index - percpu) as u32 * 16),
    };
    let offsets: Vec<u8> = (0..all).flat_map(|index| offset(index).to_le_bytes()).collect();
    let (count, base) = ((all as u32).to_le_bytes().to_vec(), BASE.to_le_bytes().to_vec());
    let order = vec![0x55; 3 * all];
    let parts = match layout {
        Layout::Until6_1 => vec![offsets, base, count, names, markers, token_table, token_index],
        Layout::Until6_3 => vec![offsets, base, count, names, markers, order, token_table, token_index],
        Layout::Until6_19 => vec![count, names, markers, token_table, token_index, offsets, base, order],
        Layout::WithoutBase | Layout::Now => {
            vec![count, names, markers, token_table, token_index, offsets, order]
        }
    };
    let without_base = matches!(layout, Layout::WithoutBase | Layout::Now);
    // What precedes and follows is no table.
    let mut memory = vec![0x77; before];
    let mut places = Vec::new();
    for (index, mut part) in parts.into_iter().enumerate() {
        memory.resize(memory.len().next_multiple_of(layout.alignment()), 0);
        if without_base && index == 5 {
            let place = memory.len() as u32;
            for (index, offset) in (0u32..).zip(part.as_chunks_mut().0) {
                // All begin where memory does.
                *offset = (16 * index).wrapping_sub(place + 4 * index).to_le_bytes();
            }
        }
        places.push(memory.len());
        memory.extend(part);
    }
    memory.resize(memory.len().next_multiple_of(8), 0);
    memory.extend([0x77; 50_000]);
    (Image(memory), places)
}

#[test]
fn symbols_are_found_wherever_tables_may_begin() {
    // The count, the names, the markers, the tokens, their index and the offsets, at odd multiples of four.
    let mut odd = [false; 6];
    for layout in LAYOUTS {
        for (all, before) in (COUNT..COUNT + 8).flat_map(|all| [(all, 100_000), (all, 100_004)]) {
            let (image, places) = made(layout, None, all, before);
            let symbols = find(&image, START).unwrap_or_else(|| panic!("{layout:?}, {all}, {before}"));
            assert_eq!(symbols.len(), all);
            let last = symbols.at(BASE + 16 * (all as u64 - 1)).unwrap();
            assert_eq!(last.name, name(all - 1), "{layout:?}");
            for (odd, place) in odd.iter_mut().zip(places).filter(|_| layout == Layout::Now) {
                *odd |= place % 8 == 4;
            }
        }
    }
    assert_eq!(odd, [true; 6]);
}

#[test]
fn symbols_are_found_in_every_layout() {
    for layout in LAYOUTS {
        for near in [START, START + 140_000, START + (100 << 20)] {
            let symbols = find(&tables(layout, None), near).unwrap_or_else(|| panic!("{layout:?}"));
            assert_eq!(symbols.len(), COUNT);
            for index in [0, 1, 255, 256, 257, LONG, COUNT - 1] {
                let symbol = symbols.at(BASE + 16 * index as u64 + 5).unwrap();
                assert_eq!((symbol.name, symbol.offset), (name(index), 5), "{layout:?}");
                assert_eq!(symbol.is_code, index != LONG);
            }
            assert_eq!(symbols.at(BASE + 16 * 77 + 3).unwrap().to_string(), "function_77+0x3/0x10");
            assert_eq!(symbols.at(BASE - 1), None);
        }
    }
}

#[test]
fn variables_of_each_cpu_are_no_addresses_of_the_kernel() {
    for layout in &LAYOUTS[..3] {
        let symbols = find(&tables(*layout, Some(40)), START).unwrap();
        assert_eq!(symbols.at(8), None);
        assert_eq!(symbols.at(BASE + 16 * 2 + 1).unwrap().to_string(), "function_42+0x1/0x10", "{layout:?}");
    }
}

#[test]
fn tables_that_are_cut_short_or_changed_give_nothing() {
    for layout in LAYOUTS {
        let whole = tables(layout, None).0;
        for cut in (100_000..whole.len() - 50_000 - 3 * COUNT - 16).step_by(997) {
            assert!(find(&Image(whole[..cut].to_vec()), START).is_none(), "{layout:?}, {cut}");
        }
        // The first bytes of the tables in this layout are the count, or addresses, which have no check but their order.
        for at in (100_000..whole.len() - 50_000).step_by(61) {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            if let Some(symbols) = find(&Image(changed), START) {
                for index in 0..symbols.len() as u64 {
                    let _any = symbols.at(BASE + 16 * index);
                }
            }
        }
    }
}

#[test]
fn memory_full_of_digits_is_given_up() {
    let digits = b"\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009".repeat(200_000);
    assert!(find(&Image(digits), START).is_none());
    assert!(find(&Image(vec![0; 1 << 20]), START).is_none());
    assert!(find(&Image(Vec::new()), u64::MAX).is_none());
}

#[test]
fn memory_full_of_counts_is_given_up() {
    let mut image = tables(Layout::Now, None).0;
    let tokens = image.windows(4).position(|it| it == b"0\x001\0").unwrap();
    for word in image[..(tokens - 200) & !7].as_chunks_mut().0 {
        *word = 600u64.to_le_bytes();
    }
    assert!(find(&Image(image), START).is_none());
}

#[test]
fn an_address_of_user_space_is_no_symbols() {
    let symbols = find(&tables(Layout::Now, None), START).unwrap();
    for address in [0, 0x7fff_ffff_ffff, KERNEL_HALF, BASE + (1 << 30), u64::MAX] {
        assert_eq!(symbols.at(address), None, "{address:#x}");
    }
}

fn system_map() -> Vec<u8> {
    let lines =
        (0..500u64).map(|index| format!("{:016x} T symbol_{index}\n", 0xffff_ffff_8100_0000 + 32 * index));
    let percpu = "0000000000000000 D __per_cpu_start\n".to_owned();
    std::iter::once(percpu).chain(lines).collect::<String>().into_bytes()
}

#[test]
fn a_system_map_tells_names_where_the_kernel_has_moved() {
    let symbols = Symbols::from_system_map(system_map()).unwrap();
    assert_eq!(symbols.at(0xffff_ffff_8100_0021).unwrap().to_string(), "symbol_1+0x1/0x20");
    let symbols = symbols.moved("symbol_3", 0xffff_ffff_9a00_0060);
    assert_eq!(symbols.at(0xffff_ffff_9a00_0021).unwrap().to_string(), "symbol_1+0x1/0x20");
    assert_eq!(symbols.at(0xffff_ffff_8100_0021), None);
    let symbols = symbols.moved("no_such_symbol", 1);
    assert_eq!(symbols.at(0xffff_ffff_8100_0021).unwrap().name, "symbol_1");
}

#[test]
fn a_list_of_nothing_is_none() {
    let debian = "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n";
    for text in [debian, "", "\n\n", "ffffffff81000000", "ffffffff81000000 T", "ü"] {
        assert!(Symbols::from_system_map(text.as_bytes().to_vec()).is_none(), "{text}");
    }
}

#[test]
fn names_are_printable() {
    let mut text = system_map();
    text.extend(b"ffffffff82000000 t evil\x1b[2J\xff\nffffffff82000010 t end\n");
    let symbols = Symbols::from_system_map(text).unwrap();
    assert_eq!(symbols.at(0xffff_ffff_8200_0000).unwrap().to_string(), "evil?[2J?+0x0/0x10");
}

/// How many symbols the first file has that has any.
fn beside(root: &Path, kernel: &Path, version: Option<&str>) -> Option<usize> {
    Files::below(root, kernel, version, None).symbols().map(|symbols| symbols.len())
}

#[test]
fn symbols_beside_a_kernel_are_found_up_its_tree() {
    let tree = tempfile::tempdir().unwrap();
    let boot = tree.path().join("arch/x86/boot");
    fs::create_dir_all(&boot).unwrap();
    let (root, kernel) = (tree.path().join("root"), boot.join("bzImage"));
    fs::write(&kernel, "MZ no symbols").unwrap();
    assert_eq!(beside(&root, &kernel, Some("6.1.0-none")), None);
    fs::write(tree.path().join("System.map"), system_map()).unwrap();
    assert_eq!(beside(&root, &kernel, Some("6.1.0-none")), Some(500));
    // The map of this version in the kernel's folder comes first.
    let more = [system_map(), b"ffffffff82000000 t one\n".to_vec()].concat();
    fs::write(boot.join("System.map-6.1.0-none"), more).unwrap();
    assert_eq!(beside(&root, &kernel, Some("6.1.0-none")), Some(501));
    assert_eq!(beside(&root, &kernel, None), Some(500));
}

#[test]
fn symbols_are_found_where_distributions_have_them() {
    for place in [
        "boot/System.map-7.3.4",
        "usr/lib/modules/7.3.4/System.map",
        "lib/modules/7.3.4/System.map",
        "usr/lib/modules/7.3.4/build/vmlinux",
        "usr/lib/debug/lib/modules/7.3.4/System.map",
        "usr/lib/debug/lib/modules/7.3.4/vmlinux",
        "usr/lib/debug/boot/System.map-7.3.4",
        "usr/lib/debug/boot/vmlinux-7.3.4",
    ] {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("boot/vmlinuz-7.3.4");
        let file = root.path().join(place);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, system_map()).unwrap();
        assert_eq!(beside(root.path(), &kernel, Some("7.3.4")), Some(500), "{place}");
        assert_eq!(beside(root.path(), &kernel, Some("7.3.5")), None, "{place}");
    }
}

#[test]
fn a_map_that_refers_to_a_package_is_passed_over_and_that_package_named() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("usr/lib/modules/7.3.4");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("vmlinuz"), "MZ no symbols").unwrap();
    let files = || Files::below(root.path(), &folder.join("vmlinuz"), Some("7.3.4"), Some(&folder));
    assert!(files().lack().starts_with("no System.map or vmlinux of it"), "{}", files().lack());
    let stub = "ffffffffffffffff B The real System.map is in the linux-image-7.3.4-dbg package\n";
    fs::write(folder.join("System.map"), stub).unwrap();
    let says =
        format!("{}/System.map says that the package linux-image-7.3.4-dbg has them", folder.display());
    assert!(files().symbols().is_none());
    assert_eq!(files().lack(), says);
    let debug = root.path().join("usr/lib/debug/lib/modules/7.3.4");
    fs::create_dir_all(&debug).unwrap();
    fs::write(debug.join("System.map"), system_map()).unwrap();
    assert_eq!(files().symbols().unwrap().len(), 500);
}

#[test]
fn this_programs_own_table_of_symbols_is_read() {
    // Made for another address than a kernel's, it has none that count.
    let own = std::env::current_exe().unwrap();
    assert!(Symbols::from_file(&own).is_none());
    // Moved there, it has this test's own.
    let mut elf = fs::read(own).unwrap();
    lift_symbols(&mut elf);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &elf).unwrap();
    let symbols = Symbols::from_file(file.path()).unwrap();
    assert!((0..symbols.len()).any(|index| symbols.names.get(index).unwrap().0.contains("kallsyms")));
    // Cut short anywhere it is none, and no panic.
    for cut in (0..elf.len()).step_by(elf.len() / 50) {
        fs::write(file.path(), &elf[..cut]).unwrap();
        let _any = Symbols::from_file(file.path());
    }
}

/// Moves the symbols of an ELF file into the kernel's half.
fn lift_symbols(elf: &mut [u8]) {
    let word = |elf: &[u8], at: usize| u64::from_le_bytes(*elf[at..].first_chunk().unwrap()) as usize;
    let (sections, count) = (word(elf, 40), usize::from(elf[60]));
    for header in (0..count).map(|index| sections + 64 * index) {
        if elf[header + 4] == 2 {
            let (start, len) = (word(elf, header + 24), word(elf, header + 32));
            for symbol in (start..start + len).step_by(24) {
                elf[symbol + 13..symbol + 16].fill(0xff);
            }
        }
    }
}

#[test]
fn stock_kernels_name_their_functions() {
    let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/kernels");
    let mut seen = 0;
    for name in ["6.1", "6.12", "7.3", "lab"] {
        let path = format!("{kernels}/{name}/vmlinux");
        let Ok(kernel) = fs::read(&path) else {
            eprintln!("skipped: stock_kernels_name_their_functions ({name}): no {path}");
            continue;
        };
        let symbols = find(&Image(kernel), START).unwrap_or_else(|| panic!("{path}"));
        assert!(symbols.len() > 50_000, "{}", symbols.len());
        let index = (0..symbols.len()).find(|&index| symbols.names.is(index, "sysrq_handle_crash")).unwrap();
        let symbol = symbols.at(symbols.addresses[index] + 1).unwrap();
        assert!(symbol.to_string().starts_with("sysrq_handle_crash+0x1/0x"), "{symbol}");
        assert!(symbol.is_code && symbol.size < 0x100);
        seen += 1;
    }
    if seen == 0 {
        eprintln!("skipped: stock_kernels_name_their_functions: no kernel in {kernels}");
    }
}
