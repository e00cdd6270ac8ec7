//! Images that are written and read again.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::reader::{Node, read};
use super::superblock::{OFFSET, checksum};
use super::*;

const UUID: [u8; 16] = *b"0123456789abcdef";
const MIB: u64 = 1 << 20;

fn metadata(mode: u16) -> Metadata {
    Metadata { mode, ..Metadata::default() }
}

fn tree() -> Tree {
    Tree::new(metadata(0o755), 64 * MIB)
}

fn inline(bytes: &[u8]) -> Kind {
    Kind::File(Content::Inline(bytes.into()))
}

fn xattrs(attributes: &[(&str, &[u8])]) -> Xattrs {
    let attributes = attributes.iter().map(|(name, value)| (name.as_bytes().into(), (*value).into()));
    Xattrs::new(&attributes.collect()).unwrap()
}

/// The image of a tree whose files are all inline.
fn image(tree: &Tree) -> (File, Vec<Node>) {
    let file = tempfile::tempfile().unwrap();
    let summary = Writer::new(&file, u64::MAX).unwrap().finish(tree, UUID).unwrap();
    assert_eq!(file.metadata().unwrap().len(), summary.size);
    let nodes = read(&file).unwrap();
    (file, nodes)
}

fn node<'a>(nodes: &'a [Node], path: &str) -> &'a Node {
    nodes
        .iter()
        .find(|node| node.path == path.as_bytes())
        .unwrap_or_else(|| panic!("no {path:?} in {nodes:?}"))
}

#[test]
fn every_kind_of_file_is_read_as_it_was_added() {
    let mut tree = tree();
    let modified = Time { seconds: -3, nanoseconds: 999_999_999 };
    let all = Metadata { mode: 0o4751, uid: 70_000, gid: u32::MAX - 1, modified, xattrs: Xattrs::default() };
    let kinds = [
        ("directory", 0o040_000, Kind::directory()),
        ("file", 0o100_000, inline(b"text")),
        ("empty", 0o100_000, inline(b"")),
        ("symlink", 0o120_000, Kind::symlink(b"../target").unwrap()),
        ("character", 0o020_000, Kind::CharacterDevice(Device::new(0xfff, 0xfffff).unwrap())),
        ("block", 0o060_000, Kind::BlockDevice(Device::new(8, 0x101).unwrap())),
        ("fifo", 0o010_000, Kind::Fifo),
        ("socket", 0o140_000, Kind::Socket),
    ];
    let modes: Vec<_> = kinds.iter().map(|(name, mode, _)| (*name, *mode)).collect();
    for (name, _, kind) in kinds {
        tree.add(Tree::ROOT, name.as_bytes(), 0, all.clone(), kind).unwrap();
    }
    let (file, nodes) = image(&tree);
    for (name, kind) in modes {
        let node = node(&nodes, name);
        assert_eq!(node.mode, kind | 0o4751, "{name}");
        assert_eq!((node.uid, node.gid, node.modified), (70_000, u32::MAX - 1, modified), "{name}");
    }
    let data = |name| node(&nodes, name).data(&file).unwrap();
    assert_eq!((data("file"), data("empty"), data("symlink")), (b"text".into(), vec![], b"../target".into()));
    assert_eq!(node(&nodes, "character").device, (0xfff, 0xfffff));
    assert_eq!(node(&nodes, "block").device, (8, 0x101));
    assert_eq!(node(&nodes, "").links, 3);
    assert_eq!(nodes.len(), 9);
}

#[test]
fn data_of_any_size_is_in_blocks_of_its_own() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(&file, u64::MAX).unwrap();
    let mut tree = tree();
    let sizes = [0, 1, 4095, 4096, 4097, 8192, 300_000, 1_000_001];
    let content = |size: usize| (0..size).map(|at| (at / 4096 % 3 * at % 251) as u8).collect::<Vec<_>>();
    for size in sizes {
        let extent = writer.allocate(size as u64).unwrap();
        // In pieces that end somewhere in a block.
        for (index, piece) in content(size).chunks(70_001).enumerate() {
            writer.write(extent, index as u64 * 70_001, piece).unwrap();
        }
        let kind = Kind::File(Content::Blocks(extent));
        tree.add(Tree::ROOT, size.to_string().as_bytes(), 0, metadata(0o644), kind).unwrap();
    }
    writer.finish(&tree, UUID).unwrap();
    let nodes = read(&file).unwrap();
    for size in sizes {
        let node = node(&nodes, &size.to_string());
        assert_eq!(node.size, size as u64);
        assert!(node.data(&file).unwrap() == content(size), "{size} bytes");
    }
}

#[test]
fn what_is_written_in_any_order_is_in_its_place_and_the_rest_is_zeros() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(&file, u64::MAX).unwrap();
    let mut tree = tree();
    let extent = writer.allocate(50_000).unwrap();
    for (offset, bytes) in [(40_000, "last"), (5000, "middle"), (0, "first")] {
        writer.write(extent, offset, bytes.as_bytes()).unwrap();
    }
    assert!(matches!(writer.write(extent, 49_998, b"123"), Err(Error::Outside)));
    assert!(matches!(writer.write(extent, u64::MAX, b"1"), Err(Error::Outside)));
    tree.add(Tree::ROOT, b"file", 0, metadata(0), Kind::File(Content::Blocks(extent))).unwrap();
    writer.finish(&tree, UUID).unwrap();
    let mut expected = vec![0; 50_000];
    expected[..5].copy_from_slice(b"first");
    expected[5000..5006].copy_from_slice(b"middle");
    expected[40_000..40_004].copy_from_slice(b"last");
    assert!(node(&read(&file).unwrap(), "file").data(&file).unwrap() == expected);
}

#[test]
fn a_file_of_more_than_4_gib_takes_no_room_for_its_holes() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(&file, u64::MAX).unwrap();
    let mut tree = tree();
    let size = (5 << 30) + 17;
    let extent = writer.allocate(size).unwrap();
    writer.write(extent, size - 3, b"end").unwrap();
    writer.write(extent, 1 << 20, &[0; 1 << 20]).unwrap();
    tree.add(Tree::ROOT, b"big", 0, metadata(0), Kind::File(Content::Blocks(extent))).unwrap();
    let behind = writer.allocate(3).unwrap();
    writer.write(behind, 0, b"abc").unwrap();
    tree.add(Tree::ROOT, b"small", 0, metadata(0), Kind::File(Content::Blocks(behind))).unwrap();
    let summary = writer.finish(&tree, UUID).unwrap();
    let nodes = read(&file).unwrap();
    assert_eq!(node(&nodes, "big").size, size);
    let mut end = [0; 3];
    file.read_exact_at(&mut end, extent.offset() + size - 3).unwrap();
    assert_eq!(&end, b"end");
    assert_eq!(node(&nodes, "small").data(&file).unwrap(), b"abc");
    assert!(summary.size > 5 << 30);
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "{:?}", file.metadata());
}

#[test]
fn directories_of_any_size_are_in_the_order_of_their_bytes() {
    for count in [0, 1, 100, 250, 5000] {
        let mut tree = tree();
        let folder = tree.add(Tree::ROOT, b"folder", 0, metadata(0o755), Kind::directory()).unwrap();
        // In an order that is none, of lengths that differ, and some that sort around `.` and `..`.
        let mut names: Vec<Vec<u8>> = (0..count)
            .map(|index| format!("{:x}", index * 7919 % 10_007).repeat(1 + index % 9).into())
            .collect();
        let around: [&[u8]; 8] = [b"-", b"!", b".-", b"...", b".a", b"\xff", b"\x01", b".\x01"];
        names.extend(around.map(Vec::from));
        names.push(vec![b'x'; NAME_MAX]);
        names.sort();
        names.dedup();
        for name in names.iter().rev() {
            tree.add(folder, name, 0, metadata(0o600), inline(name)).unwrap();
        }
        let (file, nodes) = image(&tree);
        let found: Vec<_> = nodes.iter().filter(|node| node.path.starts_with(b"folder/")).collect();
        assert_eq!(found.len(), names.len());
        for (node, name) in found.iter().zip(&names) {
            assert_eq!(&node.path[7..], name.as_slice());
            assert_eq!(&node.data(&file).unwrap(), name);
        }
    }
}

#[test]
fn a_directory_that_fills_its_last_block_is_read() {
    // `.` and `..` take 27 bytes; 13 entries of 12 + 255 bytes, one of the rest.
    for rest in 1..=252 {
        let mut tree = tree();
        for index in 0..14 {
            let name = format!("{index:03}{}", "n".repeat(if index < 13 { 252 } else { rest }));
            tree.add(Tree::ROOT, name.as_bytes(), 0, metadata(0), Kind::Fifo).unwrap();
        }
        for fill in 0..2 {
            tree.add(Tree::ROOT, format!("z{fill}").repeat(100).as_bytes(), 0, metadata(0), Kind::Fifo)
                .unwrap();
        }
        assert_eq!(image(&tree).1.len(), 17);
    }
}

#[test]
fn deep_directories_are_written_and_removed_without_recursion() {
    let mut tree = tree();
    let mut folder = Tree::ROOT;
    for _ in 0..100_000 {
        folder = tree.add(folder, b"d", 0, metadata(0o755), Kind::directory()).unwrap();
    }
    let file = tempfile::tempfile().unwrap();
    assert_eq!(Writer::new(&file, u64::MAX).unwrap().finish(&tree, UUID).unwrap().inodes, 100_001);
    assert_eq!(tree.remove(Tree::ROOT, b"d"), []);
    assert!(tree.is_empty());
}

#[test]
fn links_are_counted_and_lead_to_one_inode() {
    let mut tree = tree();
    let folder = tree.add(Tree::ROOT, b"folder", 0, metadata(0o755), Kind::directory()).unwrap();
    tree.add(folder, b"sub", 0, metadata(0o755), Kind::directory()).unwrap();
    let file = tree.add(Tree::ROOT, b"file", 0, metadata(0o644), inline(b"text")).unwrap();
    tree.link(folder, b"link", 0, file).unwrap();
    tree.link(Tree::ROOT, b"another", 0, file).unwrap();
    let fifo = tree.add(Tree::ROOT, b"fifo", 0, metadata(0), Kind::Fifo).unwrap();
    tree.link(Tree::ROOT, b"fifo 2", 0, fifo).unwrap();
    let (_, nodes) = image(&tree);
    let links = |path| node(&nodes, path).links;
    assert_eq!((links("file"), links("fifo"), links("folder"), links("")), (3, 2, 3, 3));
    assert_eq!(node(&nodes, "file").nid, node(&nodes, "folder/link").nid);

    tree.remove(Tree::ROOT, b"folder");
    let (_, nodes) = image(&tree);
    assert_eq!((node(&nodes, "file").links, node(&nodes, "").links), (2, 2));
}

#[test]
fn blocks_are_unused_when_the_last_name_is_removed() {
    let mut tree = tree();
    let extents = [1, 2, 3].map(|block| Extent { block, size: 10 });
    let blocks = |index: usize| Kind::File(Content::Blocks(extents[index]));
    let folder = tree.add(Tree::ROOT, b"folder", 0, metadata(0o755), Kind::directory()).unwrap();
    tree.add(folder, b"0", 0, metadata(0), blocks(0)).unwrap();
    let linked = tree.add(folder, b"1", 0, metadata(0), blocks(1)).unwrap();
    tree.link(Tree::ROOT, b"link", 0, linked).unwrap();
    tree.add(Tree::ROOT, b"2", 0, metadata(0), blocks(2)).unwrap();
    assert_eq!(tree.remove(Tree::ROOT, b"folder"), [extents[0]]);
    assert_eq!(tree.remove(Tree::ROOT, b"missing"), []);
    assert_eq!(tree.remove(linked, b"no directory"), []);
    assert_eq!(tree.remove(Tree::ROOT, b"link"), [extents[1]]);
    assert_eq!(tree.len(), 2);
}

#[test]
fn xattrs_of_every_namespace_are_read_and_others_dropped() {
    let mut tree = tree();
    let attributes: [(&str, &[u8]); 6] = [
        ("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("system.posix_acl_access", b"\x02\0\0\0"),
        ("system.posix_acl_default", b""),
        ("trusted.overlay.opaque", b"y"),
        ("user.name", b"value"),
        ("user.empty", b""),
    ];
    let others: [(&str, &[u8]); 4] =
        [("system.other", b"x"), ("user.", b"x"), ("com.apple.quarantine", b"x"), ("security", b"x")];
    assert!(attributes.iter().all(|(name, _)| Xattrs::can_be(name.as_bytes())));
    assert!(!others.iter().any(|(name, _)| Xattrs::can_be(name.as_bytes())));
    let with = |xattrs| Metadata { mode: 0o644, xattrs, ..Metadata::default() };
    let all = xattrs(&[&attributes[..], &others].concat());
    tree.add(Tree::ROOT, b"file", 0, with(all.clone()), inline(b"text")).unwrap();
    tree.add(Tree::ROOT, b"none", 0, with(xattrs(&others)), inline(b"text")).unwrap();
    tree.set_metadata(Tree::ROOT, with(all)).unwrap();
    let (file, nodes) = image(&tree);
    let expected: BTreeMap<_, _> =
        attributes.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
    assert_eq!(node(&nodes, "file").xattrs, expected);
    assert_eq!(node(&nodes, "").xattrs, expected);
    assert_eq!(node(&nodes, "none").xattrs, BTreeMap::new());
    assert_eq!(node(&nodes, "file").data(&file).unwrap(), b"text");
}

#[test]
fn xattrs_as_large_as_the_format_allows_are_read_and_larger_ones_refused() {
    let value = vec![7; u16::MAX as usize];
    let names = ["user.a", "user.b", "user.c"];
    let three = xattrs(&names.map(|name| (name, value.as_slice())));
    let mut tree = tree();
    let metadata = Metadata { xattrs: three, ..metadata(0o700) };
    tree.set_metadata(Tree::ROOT, metadata.clone()).unwrap();
    tree.add(Tree::ROOT, b"file", 0, metadata, inline(b"text")).unwrap();
    let (file, nodes) = image(&tree);
    for path in ["", "file"] {
        assert!(node(&nodes, path).xattrs.values().all(|read| *read == value));
        assert_eq!(node(&nodes, path).xattrs.len(), 3);
    }
    assert_eq!(node(&nodes, "file").data(&file).unwrap(), b"text");

    let of = |count: usize, len: usize| {
        let name = |index| format!("user.{index}").into_bytes().into();
        Xattrs::new(&(0..count).map(|index| (name(index), vec![0; len].into())).collect())
    };
    assert!(matches!(of(1, 65_536), Err(Error::XattrValue(_, 65_536))));
    assert!(matches!(of(5, 65_000), Err(Error::Xattrs(_))));
}

#[test]
fn inline_data_of_any_size_behind_xattrs_of_any_size_is_in_one_block() {
    let mut tree = tree();
    for index in 0..600_usize {
        let value = vec![1; index * 37 % 5000];
        let xattrs = xattrs(&[("user.x", value.as_slice())]);
        let target = vec![b'a' + (index % 26) as u8; 1 + index * 101 % TARGET_MAX];
        let metadata = Metadata { xattrs, ..metadata(0o777) };
        let name = format!("{index:03}");
        tree.add(Tree::ROOT, name.as_bytes(), 0, metadata, Kind::symlink(&target).unwrap()).unwrap();
    }
    let (file, nodes) = image(&tree);
    for node in &nodes[1..] {
        let index: usize = std::str::from_utf8(&node.path).unwrap().parse().unwrap();
        assert_eq!(node.data(&file).unwrap().len(), 1 + index * 101 % TARGET_MAX);
        assert_eq!(node.xattrs[&b"user.x"[..]].len(), index * 37 % 5000);
    }
}

#[test]
fn the_same_tree_is_the_same_image_whatever_order_it_was_made_in() {
    let names: Vec<String> = (0..300).map(|index| format!("name {index}")).collect();
    let make = |names: &mut dyn Iterator<Item = &String>| {
        let mut tree = tree();
        let gone = tree.add(Tree::ROOT, b"gone", 0, metadata(0), Kind::directory()).unwrap();
        tree.add(gone, b"too", 0, metadata(0), Kind::Fifo).unwrap();
        for name in names {
            tree.add(Tree::ROOT, name.as_bytes(), 0, metadata(0o644), inline(name.as_bytes())).unwrap();
            tree.remove(Tree::ROOT, b"gone");
        }
        let (file, _) = image(&tree);
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(make(&mut names.iter()) == make(&mut names.iter().rev()));
}

#[test]
fn names_targets_and_devices_that_cannot_be_are_refused() {
    let mut tree = tree();
    let folder = tree.add(Tree::ROOT, b"folder", 0, metadata(0), Kind::directory()).unwrap();
    let file = tree.add(Tree::ROOT, b"file", 0, metadata(0), inline(b"")).unwrap();
    let long = [b'n'; NAME_MAX + 1];
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &long] {
        let refused = tree.add(Tree::ROOT, name, 0, metadata(0), Kind::Fifo);
        assert!(matches!(refused, Err(Error::Name(_))), "{name:?}");
        assert!(matches!(tree.link(folder, name, 0, file), Err(Error::Name(_))), "{name:?}");
    }
    let mut add = |directory, name: &[u8]| tree.add(directory, name, 0, metadata(0), Kind::Fifo).map(drop);
    assert!(matches!(add(Tree::ROOT, b"folder"), Err(Error::Twice(_))));
    assert!(matches!(add(file, b"in a file"), Err(Error::Link(_))));
    assert!(matches!(tree.link(Tree::ROOT, b"link", 0, folder), Err(Error::Link(_))));
    for target in [&b""[..], b"a\0b", &[b't'; TARGET_MAX + 1]] {
        assert!(matches!(Kind::symlink(target), Err(Error::Target(_))));
    }
    assert!(matches!(Device::new(0x1000, 0), Err(Error::Device(0x1000, 0))));
    assert!(matches!(Device::new(0, 0x10_0000), Err(Error::Device(0, 0x10_0000))));
    // Nothing of it was added.
    assert_eq!(tree.len(), 3);
    assert_eq!(image(&tree).1.len(), 3);
}

#[test]
fn memory_is_bounded_and_returned() {
    let mut tree = Tree::new(metadata(0o755), MIB);
    let fill = |tree: &mut Tree| {
        let mut count = 0;
        loop {
            let name = format!("{count}");
            match tree.add(Tree::ROOT, name.as_bytes(), 0, metadata(0), inline(&[1; 1000])) {
                Ok(_) => count += 1,
                Err(Error::Memory(MIB)) => return count,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let first = fill(&mut tree);
    assert!((500..1049).contains(&first), "{first}");
    for count in 0..first {
        tree.remove(Tree::ROOT, format!("{count}").as_bytes());
    }
    assert_eq!(fill(&mut tree), first);
}

#[test]
fn an_image_is_no_larger_than_allowed() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(&file, 10 * BLOCK).unwrap();
    let extent = writer.allocate(8 * BLOCK).unwrap();
    assert!(matches!(writer.allocate(2 * BLOCK), Err(Error::Size(size)) if size == 10 * BLOCK));
    assert!(matches!(writer.allocate(u64::MAX), Err(Error::Size(_))));
    writer.write(extent, 0, b"data").unwrap();
    let mut tree = tree();
    tree.add(Tree::ROOT, b"file", 0, metadata(0), Kind::File(Content::Blocks(extent))).unwrap();
    writer.allocate(1).unwrap();
    assert!(matches!(writer.finish(&tree, UUID), Err(Error::Size(_))));
    assert!(read(&file).is_err(), "an image that was not finished is none");
    let mut writer = Writer::new(&file, u64::MAX).unwrap();
    assert!(matches!(writer.allocate(1 << 44), Err(Error::Size(_))));
}

#[test]
fn the_checksum_is_crc32c_and_over_the_first_block() {
    let mut block = vec![0; OFFSET];
    block.extend_from_slice(b"123456789");
    // The check value of CRC-32C, which is inverted at the end.
    assert_eq!(!checksum(&block), 0xe306_9283);

    let (file, _) = image(&tree());
    file.write_all_at(b"!", 4000).unwrap();
    assert_eq!(read(&file).unwrap_err(), "another checksum");
}
