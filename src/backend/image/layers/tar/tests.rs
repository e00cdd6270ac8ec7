use std::io::Read;

use super::testing::{Item, archive, directory, file, hard_link, padded, record, summed, symlink};
use super::*;

/// All entries of an archive with their data.
fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let (mut data, size) = (Vec::new(), entry.pieces.iter().map(|piece| piece.size).sum());
        (&mut archive).take(size).read_to_end(&mut data)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn only(bytes: &[u8]) -> (Entry, Vec<u8>) {
    let mut all = entries(bytes).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn refusal(bytes: &[u8]) -> String {
    format!("{:#}", entries(bytes).unwrap_err())
}

/// A header that is changed, with the data behind it.
fn changed(item: &Item, change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut header = item.header();
    change(&mut header);
    [&summed(header)[..], &padded(&item.data), &[0; 1024]].concat()
}

#[test]
fn every_kind_of_entry_is_read() {
    let items = [
        file("file", "text").mode(0o104_755).owner(1000, 2_000_000),
        Item { data: vec![7; 1000], ..Item::new(0, "old") },
        Item::new(0, "old folder/"),
        Item::new(b'7', "contiguous"),
        directory("folder/"),
        symlink("symlink", "../target"),
        hard_link("link", "file"),
        Item::new(b'3', "character").device(5, 1),
        Item::new(b'4', "block").device(8, 16),
        Item::new(b'6', "fifo"),
    ];
    let read = entries(&archive(&items)).unwrap();
    let kinds: Vec<_> = read.iter().map(|(entry, _)| entry.entry_type).collect();
    use EntryType::*;
    assert_eq!(
        kinds,
        [File, File, Directory, File, Directory, Symlink, HardLink, CharacterDevice, BlockDevice, Fifo]
    );
    for ((entry, data), item) in read.iter().zip(&items) {
        assert_eq!((&entry.path, data, &entry.target), (&item.name, &item.data, &item.target));
        assert_eq!((entry.uid, entry.gid), item.owner);
        assert_eq!(entry.mode, (item.mode & 0o7777) as u16);
        assert_eq!(entry.device, item.device);
        assert_eq!(entry.modified, Time { seconds: 1_600_000_000, nanoseconds: 0 });
    }
}

#[test]
fn an_entry_that_is_not_read_is_skipped() {
    let mut archive = archive(&[file("a", vec![1; 5000]), file("b", vec![2; 513]), file("c", "c")]);
    let mut reader = Archive::new(archive.as_slice());
    reader.next_entry().unwrap();
    reader.read_exact(&mut [0; 3]).unwrap();
    reader.next_entry().unwrap();
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"c");
    assert!(reader.next_entry().unwrap().is_none());
    // What follows the end is not looked at.
    archive.extend(b"anything");
    assert_eq!(entries(&archive).unwrap().len(), 3);
}

#[test]
fn an_archive_ends_with_two_blocks_of_zeros_or_without_them() {
    let bytes = file("a", "text").bytes();
    for zeros in [0, 512, 1024, 10_240] {
        assert_eq!(entries(&[&bytes[..], &vec![0; zeros]].concat()).unwrap().len(), 1);
    }
    assert_eq!(entries(b"").unwrap().len(), 0);
    assert!(refusal(&[&bytes[..], &[0; 512], &bytes].concat()).contains("goes on behind a block of zeros"));
}

#[test]
fn an_archive_that_is_cut_anywhere_but_behind_an_entry_is_refused() {
    let bytes = archive(&[file("first", "text"), file("a", vec![1; 700]).record("mtime", "1.5")]);
    let whole = bytes.len() - 1024;
    let (first, second) = (512 + 4, whole - 1024 + 700);
    for len in 0..whole {
        // An entry may lack what pads it, if nothing follows.
        let expected = match len {
            0 => Some(0),
            _ if (first..=1024).contains(&len) => Some(1),
            _ if len >= second => Some(2),
            _ => None,
        };
        match (entries(&bytes[..len]), expected) {
            (Ok(read), Some(expected)) => assert_eq!(read.len(), expected, "{len}"),
            (Err(error), None) => assert!(format!("{error:#}").contains("cut short"), "{len}: {error:#}"),
            (read, _) => panic!("{len}: {read:?}"),
        }
    }
}

#[test]
fn what_is_no_header_is_refused() {
    assert!(refusal(&[b'x'; 512]).contains("checksum is wrong"));
    let mut bytes = archive(&[file("a", "text")]);
    bytes[0] = b'b';
    assert!(refusal(&bytes).contains("checksum is wrong"));
    let numbers = [(100, "mode"), (108, "user"), (116, "group"), (124, "size"), (136, "time")];
    for (at, what) in numbers {
        let error = refusal(&changed(&file("a", ""), |header| header[at..at + 3].copy_from_slice(b"12x")));
        assert!(error.starts_with("entry 'a'") && error.contains(what), "{error}");
    }
}

#[test]
fn a_checksum_of_signed_bytes_is_right() {
    let mut header = file(b"\xff\xfe", "").header();
    header[148..156].fill(b' ');
    let sum: i64 = header.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(only(&header).0.path, b"\xff\xfe");
}

#[test]
fn a_size_that_is_negative_or_wraps_is_refused() {
    for size in
        [b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"]
    {
        for flag in [b'0', b'x', b'L'] {
            let bytes = changed(&Item::new(flag, "a"), |header| header[124..136].copy_from_slice(size));
            assert!(entries(&bytes).is_err(), "{}", flag as char);
        }
    }
    for size in ["18446744073709551615", "18446744073709551000", "9223372036854775807"] {
        let bytes = archive(&[file("a", "text").record("size", size)]);
        assert!(entries(&bytes).is_err(), "{size}");
    }
}

#[test]
fn types_that_no_layer_has_are_refused_by_name() {
    for flag in [b'V', b'M', b'D', b'N', b'X', b'A', b's', b'8', 0xff] {
        let error = refusal(&archive(&[Item::new(flag, "a\x1b[2Jname")]));
        let flag = shown(&[flag]);
        assert_eq!(
            error,
            format!("entry 'a\\u{{1b}}[2Jname': its type '{flag}' is none that a layer can have")
        );
    }
}

#[test]
fn a_name_may_be_in_two_fields() {
    let item = file("name", "");
    let with = |prefix: &[u8], magic: &[u8], trailer: &[u8]| {
        let bytes = changed(&item, |header| {
            header[345..345 + prefix.len()].copy_from_slice(prefix);
            header[257..257 + magic.len()].copy_from_slice(magic);
            header[508..508 + trailer.len()].copy_from_slice(trailer);
        });
        only(&bytes).0.path
    };
    assert_eq!(with(b"a/b", b"ustar\x0000", b""), b"a/b/name");
    assert_eq!(with(&[b'p'; 155], b"ustar\x0000", b""), [&[b'p'; 155][..], b"/name"].concat());
    assert_eq!(with(&[b'p'; 155], b"ustar\x0000", b"tar\0"), [&[b'p'; 131][..], b"/name"].concat());
    assert_eq!(with(b"a/b", b"ustar  \0", b""), b"name");
    assert_eq!(with(b"a/b", b"\0\0\0\0\0\0\0\0", b""), b"name");
    assert_eq!(only(&file([b'n'; 100], "").bytes()).0.path, [b'n'; 100]);
}

#[test]
fn gnu_s_long_names_are_those_of_the_next_entry() {
    let (name, target) = (vec![b'n'; 5000], vec![b't'; 300]);
    let long = |flag, text: &[u8]| Item { data: [text, b"\0"].concat(), ..Item::new(flag, "././@LongLink") };
    let bytes =
        archive(&[long(b'K', &target), long(b'L', &name), symlink("short", "short"), file("another", "")]);
    let read = entries(&bytes).unwrap();
    assert_eq!((&read[0].0.path, &read[0].0.target), (&name, &target));
    assert_eq!(read[1].0.path, b"another");
    let too_long = archive(&[long(b'L', &vec![b'n'; 1 << 20]), file("a", "")]);
    assert!(refusal(&too_long).contains("1048577 bytes of names"));
}

#[test]
fn pax_records_replace_what_the_header_says() {
    let item = symlink("short", "short")
        .record("path", "a\u{e4}/b")
        .record("linkpath", vec![b't'; 3000])
        .record("uid", "3000000000")
        .record("gid", "7")
        .record("mtime", "-1.25")
        .record("SCHILY.xattr.user.a", "\0\n=")
        .record("SCHILY.acl.access", "ignored")
        .record("LIBARCHIVE.xattr.user.b", "ignored");
    let (entry, _) = only(&archive(&[item]));
    assert_eq!((entry.path, entry.target), ("a\u{e4}/b".into(), vec![b't'; 3000]));
    assert_eq!((entry.uid, entry.gid), (3_000_000_000, 7));
    assert_eq!(entry.modified, Time { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(entry.xattrs.into_iter().collect::<Vec<_>>(), [(b"user.a"[..].into(), b"\0\n="[..].into())]);
}

#[test]
fn pax_s_size_counts_and_not_the_header_s() {
    let data = vec![5; 2000];
    let bytes = [
        Item { data: record(b"size", b"2000"), ..Item::new(b'x', "pax") }.bytes(),
        file("a", "").bytes(),
        padded(&data),
        file("b", "b").bytes(),
    ];
    let read = entries(&bytes.concat()).unwrap();
    assert_eq!((read[0].0.size, &read[0].1), (2000, &data));
    assert_eq!(read[1].0.path, b"b");
}

#[test]
fn records_are_for_the_next_entry_only() {
    let bytes = archive(&[file("a", "").record("uid", "5"), file("b", "")]);
    let uids: Vec<_> = entries(&bytes).unwrap().iter().map(|(entry, _)| entry.uid).collect();
    assert_eq!(uids, [5, 0]);
}

#[test]
fn a_comment_for_all_entries_is_skipped_and_more_refused() {
    let global = |key: &[u8]| Item { data: record(key, b"5"), ..Item::new(b'g', "pax_global_header") };
    assert_eq!(entries(&archive(&[global(b"comment"), file("a", "")])).unwrap().len(), 1);
    assert!(refusal(&archive(&[global(b"uid"), file("a", "")])).contains("for all entries"));
}

#[test]
fn owners_that_linux_cannot_have_are_refused() {
    for uid in ["4294967295", "4294967296", "9223372036854775807"] {
        let error = refusal(&archive(&[file("a", "").record("uid", uid)]));
        assert!(error.contains(&format!("the user's number: {uid} is none")), "{error}");
    }
    assert_eq!(only(&archive(&[file("a", "").record("gid", "4294967294")])).0.gid, 4_294_967_294);
}

#[test]
fn links_and_folders_have_no_data_whatever_size_they_say() {
    for flag in *b"123456" {
        let bytes = changed(&Item { target: b"t".into(), ..Item::new(flag, "a") }, |header| {
            header[124..135].copy_from_slice(b"00000001000");
        });
        let (entry, data) = only(&bytes);
        assert_eq!((entry.size, data.len()), (0, 0), "{}", flag as char);
    }
}

/// The data of a sparse file, and where it belongs.
const PIECES: [Piece; 3] =
    [Piece { offset: 512, size: 5 }, Piece { offset: 1000, size: 600 }, Piece { offset: 5000, size: 0 }];
const SPARSE_SIZE: u64 = 5000;

fn sparse_data() -> Vec<u8> {
    [&b"first"[..], &[9; 600]].concat()
}

fn check_sparse(bytes: &[u8], name: &str) {
    let read = entries(bytes).unwrap();
    let (entry, data) = &read[0];
    assert_eq!((entry.path.as_slice(), entry.size), (name.as_bytes(), SPARSE_SIZE));
    assert_eq!((&entry.pieces[..], data), (&PIECES[..], &sparse_data()));
    assert_eq!(read[1].0.path, b"next");
}

#[test]
fn sparse_files_of_pax_0_0_are_read() {
    let mut item =
        file("a", sparse_data()).record("GNU.sparse.size", "5000").record("GNU.sparse.numblocks", "3");
    for piece in PIECES {
        item = item.record("GNU.sparse.offset", piece.offset.to_string());
        item = item.record("GNU.sparse.numbytes", piece.size.to_string());
    }
    check_sparse(&archive(&[item, file("next", "")]), "a");
}

#[test]
fn sparse_files_of_pax_0_1_are_read() {
    let item = file("GNUSparseFile.1/a", sparse_data())
        .record("GNU.sparse.size", "5000")
        .record("GNU.sparse.name", "real name")
        .record("GNU.sparse.map", "512,5,1000,600,5000,0");
    check_sparse(&archive(&[item, file("next", "")]), "real name");
}

#[test]
fn sparse_files_of_pax_1_0_are_read() {
    let map = padded(b"3\n512\n5\n1000\n600\n5000\n0\n");
    let item = file("GNUSparseFile.1/a", [map, sparse_data()].concat())
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", "real name")
        .record("GNU.sparse.realsize", "5000");
    check_sparse(&archive(&[item, file("next", "")]), "real name");
}

/// A sparse file of GNU's own format: the header has so many of the pieces, blocks behind it the others.
fn gnu_sparse(pieces: &[Piece], size: u64, data: &[u8]) -> Vec<u8> {
    let field = |number: u64| format!("{number:011o}\0").into_bytes();
    let place = |piece: &Piece| [field(piece.offset), field(piece.size)].concat();
    let (first, rest) = pieces.split_at(pieces.len().min(4));
    let mut header = Item { data: data.to_vec(), ..Item::new(b'S', "a") }.header();
    header[257..265].copy_from_slice(b"ustar  \0");
    header[345..].fill(0);
    let places: Vec<u8> = first.iter().flat_map(place).collect();
    header[386..386 + places.len()].copy_from_slice(&places);
    header[482] = u8::from(!rest.is_empty());
    header[483..495].copy_from_slice(&field(size));
    let mut bytes = summed(header).to_vec();
    let blocks: Vec<_> = rest.chunks(21).collect();
    for (index, pieces) in blocks.iter().enumerate() {
        let mut block: Vec<u8> = pieces.iter().flat_map(place).collect();
        block.resize(512, 0);
        block[504] = u8::from(index + 1 < blocks.len());
        bytes.extend(block);
    }
    [bytes, padded(data), archive(&[file("next", "")])].concat()
}

#[test]
fn sparse_files_of_gnu_s_format_are_read() {
    check_sparse(&gnu_sparse(&PIECES, SPARSE_SIZE, &sparse_data()), "a");
    for count in [0, 4, 5, 25, 26, 100] {
        let pieces: Vec<_> = (0..count).map(|index| Piece { offset: index * 1024, size: 1 }).collect();
        let data = vec![3; count as usize];
        let read = entries(&gnu_sparse(&pieces, 1 << 32, &data)).unwrap();
        assert_eq!((&read[0].0.pieces, read[0].0.size, &read[0].1), (&pieces, 1 << 32, &data));
        assert_eq!(read[1].0.path, b"next");
    }
}

#[test]
fn maps_that_lie_are_refused() {
    let piece = |offset, size| Piece { offset, size };
    for (pieces, size, expected) in [
        (vec![piece(0, 3), piece(2, 2)], 10, "overlap"),
        (vec![piece(5, 2), piece(0, 3)], 10, "overlap"),
        (vec![piece(0, 5)], 4, "behind its end"),
        (vec![piece(u64::MAX >> 1, 5)], u64::MAX >> 1, "behind its end"),
        (vec![piece(0, 4)], 10, "the archive has 5"),
        (vec![piece(0, 6)], 10, "the archive has 5"),
        (vec![], 10, "the archive has 5"),
    ] {
        let map: Vec<_> =
            pieces.iter().flat_map(|piece| [piece.offset, piece.size]).map(|it| it.to_string()).collect();
        let item = file("a", "12345").record("GNU.sparse.size", size.to_string());
        let error = refusal(&archive(&[item.record("GNU.sparse.map", map.join(","))]));
        assert!(error.contains(expected), "{pieces:?}: {error}");
        if size < 1 << 33 {
            let error = refusal(&gnu_sparse(&pieces, size, b"12345"));
            assert!(error.contains(expected), "{pieces:?}: {error}");
        }
    }
}

#[test]
fn maps_in_front_of_data_that_make_no_sense_are_refused() {
    let item = |data: &[u8]| {
        let item = file("a", data).record("GNU.sparse.realsize", "10");
        item.record("GNU.sparse.major", "1").record("GNU.sparse.minor", "0")
    };
    for (map, expected) in [
        ("1\n0\n", "no number"),
        ("1\nx\n", "no number"),
        ("999999999\n", "pieces"),
        ("000000000000000000000000001\n", "makes no sense"),
        ("262145\n", "pieces"),
        ("", "no number"),
    ] {
        // Zeros follow the map, which are no number.
        let mut data = map.as_bytes().to_vec();
        data.extend(b"\n\n\n\n");
        let error = refusal(&archive(&[item(&padded(&data))]));
        assert!(error.contains(expected), "{map:?}: {error}");
    }
    assert!(refusal(&archive(&[item(b"1\n")])).contains("cut short"));
    let unknown = file("a", "").record("GNU.sparse.major", "2").record("GNU.sparse.minor", "0");
    assert!(refusal(&archive(&[unknown])).contains("format 2.0"));
}

#[test]
fn any_number_of_extensions_takes_the_memory_of_one() {
    let pax = Item { data: record(b"path", &vec![b'p'; 1 << 19]), ..Item::new(b'x', "pax") }.bytes();
    let endless = pax.repeat(50);
    assert_eq!(entries(&[&endless[..], &archive(&[file("a", "")])].concat()).unwrap().len(), 1);
}
