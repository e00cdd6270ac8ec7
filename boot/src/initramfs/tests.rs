//! The archive, read back by a small reader that follows Linux's: zeros between entries are skipped.

use super::*;
use std::io::Seek;

/// One entry as the reader finds it.
#[derive(Debug, PartialEq)]
struct Found {
    name: String,
    inode: u32,
    mode: u32,
    links: u32,
    time: u32,
    device: (u32, u32),
    /// Where in the archive the data begins.
    at: usize,
    data: Vec<u8>,
}

fn bytes(archive: &Archive) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.write_to(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, archive.len);
    assert_eq!(archive.pieces.iter().map(Piece::len).sum::<u64>(), archive.len);
    bytes
}

fn entries(archive: &Archive) -> Vec<Found> {
    let bytes = bytes(archive);
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        while bytes[at] == 0 {
            at += 1;
        }
        assert_eq!(at % 4, 0, "a header begins at a multiple of four");
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |index: usize| {
            let digits = &bytes[at + 6 + 8 * index..at + 14 + 8 * index];
            u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        let name_end = at + 110 + field(11) as usize;
        assert_eq!(bytes[name_end - 1], 0);
        let name = String::from_utf8(bytes[at + 110..name_end - 1].to_vec()).unwrap();
        let data = name_end.next_multiple_of(4);
        let data_end = data + field(6) as usize;
        if name == TRAILER {
            assert_eq!(data_end, bytes.len(), "nothing is behind the trailer");
            return found;
        }
        found.push(Found {
            name,
            inode: field(0),
            mode: field(1),
            links: field(4),
            time: field(5),
            device: (field(9), field(10)),
            at: data,
            data: bytes[data..data_end].to_vec(),
        });
        at = data_end;
    }
}

fn on_disk(content: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    Arc::new(file)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8 + 1).collect()
}

#[test]
fn an_archive_gives_back_what_went_in() {
    let mut archive = Initramfs::new();
    archive.dir("/dev", 0o755).unwrap().device("/dev/console", 0o600, 5, 1).unwrap();
    archive.file("/hello", 0o640, b"hello").unwrap().file("/empty", 0o644, b"").unwrap();
    let found = entries(&archive.finish());
    let expected = [
        ("dev", 0o040_755, 2, (0, 0), &b""[..]),
        ("dev/console", 0o020_600, 1, (5, 1), b""),
        ("hello", 0o100_640, 1, (0, 0), b"hello"),
        ("empty", 0o100_644, 1, (0, 0), b""),
    ];
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let seen = (found.name.as_str(), found.mode, found.links, found.device, found.data.as_slice());
        assert_eq!(seen, expected);
        assert_eq!((found.inode as usize, found.time), (index + 1, 0));
    }
}

#[test]
fn an_empty_archive_is_a_trailer() {
    assert!(entries(&Initramfs::new().finish()).is_empty());
}

#[test]
fn big_files_begin_on_pages_whatever_is_before_them() {
    for before in 0..5 {
        let mut archive = Initramfs::new();
        archive.file("/before", 0o644, &pattern(PAGE as usize - before)).unwrap();
        let contents = [pattern(16384), pattern(40_001), pattern(70_003)];
        for (name, content) in ["/a", "/some-longer-name", "/c"].into_iter().zip(&contents) {
            archive.file_from(name, 0o755, on_disk(content)).unwrap();
        }
        let archive = archive.finish();
        let files = archive.pieces.iter().filter(|piece| matches!(piece, Piece::File { .. }));
        assert_eq!(files.count(), 3);
        let found = entries(&archive);
        for (found, content) in found[1..].iter().zip(&contents) {
            assert_eq!(found.at % PAGE as usize, 0, "{}", found.name);
            assert!(found.data == *content);
        }
    }
}

#[test]
fn small_files_waste_no_page() {
    let mut archive = Initramfs::new();
    for name in ["/a", "/b", "/c"] {
        archive.file_from(name, 0o644, on_disk(&pattern(333))).unwrap();
    }
    let archive = archive.finish();
    assert!(archive.len < PAGE);
    assert!(entries(&archive).iter().all(|found| found.data == pattern(333)));
}

#[test]
fn a_file_is_taken_whole_wherever_its_reader_stands() {
    let file = on_disk(b"all of it");
    (&*file).seek(io::SeekFrom::Start(4)).unwrap();
    let mut archive = Initramfs::new();
    archive.file_from("/file", 0o644, file).unwrap();
    assert_eq!(entries(&archive.finish())[0].data, b"all of it");
}

#[test]
fn unusable_names_are_refused() {
    let long = format!("/{}", "x".repeat(PATH_MAX));
    let names =
        ["", "/", "relative", "//x", "/x/", "/a//b", "/.", "/..", "/x/../y", "/a\0b", "/TRAILER!!!", &long];
    for name in names {
        assert!(matches!(Initramfs::new().file(name, 0, b""), Err(Error::Name(_))), "{name:?}");
    }
    let longest = format!("/{}", "x".repeat(PATH_MAX - 1));
    assert!(Initramfs::new().file(&longest, 0, b"").is_ok());
}

#[test]
fn a_folder_comes_before_what_is_in_it() {
    let mut archive = Initramfs::new();
    assert!(matches!(archive.file("/etc/passwd", 0o644, b""), Err(Error::NoParent(_))));
    archive.file("/etc", 0o644, b"").unwrap();
    assert!(
        matches!(archive.file("/etc/passwd", 0o644, b""), Err(Error::NoParent(_))),
        "a file is no folder"
    );
}

#[test]
fn a_name_is_there_once() {
    let mut archive = Initramfs::new();
    archive.dir("/x", 0o755).unwrap();
    assert!(matches!(archive.file("/x", 0o644, b""), Err(Error::Twice(_))));
}

#[test]
fn four_gib_are_too_many() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 32).unwrap();
    let file = Arc::new(file);
    assert!(matches!(Initramfs::new().file_from("/x", 0, file.clone()), Err(Error::TooLarge(_))));
    file.set_len((1 << 32) - 1).unwrap();
    let mut archive = Initramfs::new();
    archive.file_from("/x", 0, file).unwrap();
    assert!(archive.finish().len > u64::from(u32::MAX));
}

#[test]
fn a_folder_is_no_file() {
    let folder = Arc::new(File::open("/").unwrap());
    assert!(matches!(Initramfs::new().file_from("/x", 0, folder), Err(Error::NotRegular(_))));
}

#[test]
fn a_file_that_shrank_fails_the_writing() {
    let file = on_disk(&pattern(20_000));
    let mut archive = Initramfs::new();
    archive.file_from("/x", 0o644, file.clone()).unwrap();
    let archive = archive.finish();
    file.set_len(19_999).unwrap();
    let error = archive.write_to(&mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// The header of an ELF file without sections.
const EMPTY_ELF: &[u8] = &{
    let mut header = [0; 64];
    let magic = b"\x7fELF\x02\x01";
    let mut at = 0;
    while at < magic.len() {
        header[at] = magic[at];
        at += 1;
    }
    header
};

#[test]
fn a_guest_gets_its_init_console_and_modules_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let modules: Vec<ModuleFile> = [("virtio_ring", "virtio_ring.ko"), ("virtio_rng", "virtio-rng.ko.xz")]
        .map(|(name, file)| ModuleFile { name: name.into(), path: dir.path().join(file) })
        .into();
    for module in &modules {
        std::fs::write(&module.path, [EMPTY_ELF, module.name.as_bytes()].concat()).unwrap();
    }
    let found = entries(&standard(on_disk(&pattern(50_000)), &modules, &[]).unwrap());
    let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
    let folders = ["dev", "dev/console", "dev/null", "proc", "sys", "modules"];
    let files = ["modules/list", "modules/virtio_ring.ko", "modules/virtio-rng.ko.xz", "init"];
    assert_eq!(names, [&folders[..], &files[..]].concat());
    assert_eq!(found[6].data, b"virtio_ring.ko\nvirtio-rng.ko.xz\n");
    assert_eq!(found[8].data, [EMPTY_ELF, b"virtio_rng"].concat());
    assert_eq!((found[9].at % PAGE as usize, found[9].mode), (0, 0o100_755));
}

#[test]
fn a_guest_without_modules_gets_no_manifest() {
    let found = entries(&standard(on_disk(b"init"), &[], &[]).unwrap());
    assert!(found.iter().all(|found| !found.name.starts_with("modules")));
}
