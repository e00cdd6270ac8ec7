//! Lists of kernel modules that say anything: the modules found in them, and the initramfs made of those.

use std::cell::RefCell;
use std::fs::{self, File};
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use boot::initramfs;
use boot::modules::Modules;
use tempfile::TempDir;

use crate::{bytes, list};

/// What lists are made of.
#[derive(Arbitrary, Debug)]
enum Word<'a> {
    Known(u8),
    Raw(#[arbitrary(with = bytes)] &'a [u8]),
    /// One byte, so many times.
    Run(u8, u16),
}

const KNOWN: [&[u8]; 16] = [
    b"\n",
    b": ",
    b":",
    b" ",
    b"kernel/a.ko",
    b"kernel/b-c.ko.xz",
    b"kernel/b_c.ko",
    b"kernel/",
    b"../",
    b"/",
    b"./",
    b".ko",
    b".ko.gz",
    b"\0",
    b"\xff",
    b"a",
];

/// The names that are asked for.
const NAMES: [&str; 6] = ["a", "b-c", "b_c", "", "..", "kernel/a"];

#[derive(Arbitrary, Debug)]
struct Lists<'a> {
    #[arbitrary(with = list)]
    dep: Vec<Word<'a>>,
    #[arbitrary(with = list)]
    more: Vec<Word<'a>>,
    #[arbitrary(with = list)]
    builtin: Vec<Word<'a>>,
    names: u8,
}

fn text<'a>(words: impl Iterator<Item = &'a Word<'a>>) -> Vec<u8> {
    let words = words.map(|word| match word {
        Word::Known(index) => KNOWN[usize::from(*index) % KNOWN.len()].to_vec(),
        Word::Raw(bytes) => bytes.to_vec(),
        Word::Run(byte, count) => vec![*byte; usize::from(*count)],
    });
    // As much as makes the reader go round a few times.
    words.flatten().take(200_000).collect()
}

thread_local! {
    /// A folder for all inputs, with files for the names that lists know.
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("kernel")).unwrap();
    for name in ["a.ko", "b-c.ko.xz", "b_c.ko"] {
        // The header of an ELF file without sections.
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        fs::write(folder.path().join("kernel").join(name), header).unwrap();
    }
    folder
}

pub fn run(data: &[u8]) {
    let Ok(lists) = Lists::arbitrary(&mut Unstructured::new(data)) else { return };
    FOLDER.with_borrow_mut(|kept| {
        let folder = kept.get_or_insert_with(folder).path();
        fs::write(folder.join("modules.dep"), text(lists.dep.iter().chain(&lists.more))).unwrap();
        let builtin = folder.join("modules.builtin");
        match lists.builtin.len() {
            0 => _ = fs::remove_file(&builtin),
            _ => fs::write(&builtin, text(lists.builtin.iter())).unwrap(),
        }
        let names = NAMES.iter().enumerate().filter(|(bit, _)| lists.names & 1 << bit != 0);
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        let Ok(files) = Modules::open(folder).unwrap().resolve(&names, &[]) else { return };
        for file in &files {
            let inside = file.path.strip_prefix(folder).unwrap();
            assert!(inside.components().all(|part| part.as_os_str() != ".."), "{file:?}");
            assert!(!file.name.contains(|c: char| c.is_whitespace() || c.is_control()), "{file:?}");
        }
        let init = Arc::new(File::open(folder.join("kernel/a.ko")).unwrap());
        if let Ok(archive) = initramfs::standard(init, &files, &[]) {
            let mut bytes = Vec::new();
            archive.write_to(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, archive.len);
        }
    });
}
