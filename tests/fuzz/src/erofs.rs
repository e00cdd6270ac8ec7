//! Trees of files that are made and changed in any way, written as an EROFS image, and read again by a reader that is strict.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;

use arbitrary::Arbitrary;
use boot::erofs::reader::{self, Node};
use boot::erofs::{Content, Device, InodeId, Kind, Metadata, Time, Tree, Writer, Xattrs};

use crate::{bytes, each};

/// What trees may take in memory: little, so that it is reached.
const MEMORY: u64 = 256 << 10;
/// What images may take.
const IMAGE: u64 = 4 << 20;

/// The kind of directories in a mode.
const DIRECTORY: u16 = 0o040_000;

/// Some bytes, so many of them.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Text<'a> {
    Known(u8),
    Raw(#[arbitrary(with = bytes)] &'a [u8]),
    Run(u8, u16),
}

const KNOWN: [&[u8]; 12] = [b"a", b"b", b"c", b"d", b".", b"..", b"", b"/", b"a/b", b"-", b"...", b"user.a"];

impl Text<'_> {
    fn bytes(self, most: usize) -> Vec<u8> {
        match self {
            Self::Known(index) => KNOWN[usize::from(index) % KNOWN.len()].to_vec(),
            Self::Raw(bytes) => bytes.to_vec(),
            Self::Run(byte, count) => vec![byte; usize::from(count) % (most + 2)],
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Described<'a> {
    mode: u16,
    uid: u32,
    gid: u32,
    seconds: i64,
    xattr: Option<(u8, Text<'a>, Text<'a>)>,
}

const NAMESPACES: [&str; 6] =
    ["user.", "trusted.", "security.", "system.posix_acl_access", "system.other", ""];

#[derive(Arbitrary, Debug)]
enum New<'a> {
    Directory,
    Inline(Text<'a>),
    /// Data in blocks, at an offset, in a file that is so much longer.
    Blocks(Text<'a>, u16, u16),
    Symlink(Text<'a>),
    Device(u32, u32),
    Fifo,
    Socket,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Add(u8, Text<'a>, Described<'a>, New<'a>),
    Link(u8, Text<'a>, u8),
    Remove(u8, Text<'a>),
    Change(u8, Described<'a>),
}

/// Extended attributes by their names.
type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;
/// What an inode is added as: its kind, that in a mode, its data, and a device's number.
type Shape = (Kind, u16, Vec<u8>, (u32, u32));

/// What an inode should be read as.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    mode: u16,
    uid: u32,
    gid: u32,
    modified: Time,
    xattrs: Attributes,
    data: Vec<u8>,
    device: (u32, u32),
}

/// A tree, and what it should be.
struct Model<'a> {
    tree: Tree,
    writer: Writer<'a>,
    /// The inodes by their paths; the root's is empty.
    paths: BTreeMap<Vec<u8>, InodeId>,
    inodes: HashMap<InodeId, Expected>,
}

fn metadata(attributes: &Described<'_>) -> Option<(Metadata, Attributes)> {
    let mut all = BTreeMap::new();
    if let Some((namespace, name, value)) = &attributes.xattr {
        let namespace = NAMESPACES[usize::from(*namespace) % NAMESPACES.len()].as_bytes();
        let name = [namespace, &name.bytes(255)].concat();
        all.insert(name, value.bytes(66_000));
    }
    let boxed = all.iter().map(|(name, value)| (name.as_slice().into(), value.as_slice().into()));
    let xattrs = Xattrs::new(&boxed.collect()).ok()?;
    all.retain(|name, _| Xattrs::can_be(name));
    let modified = Time { seconds: attributes.seconds, nanoseconds: 7 };
    let (uid, gid) = (attributes.uid, attributes.gid);
    Some((Metadata { mode: attributes.mode & 0o7777, uid, gid, modified, xattrs }, all))
}

impl Model<'_> {
    fn directory(&self, index: u8) -> (Vec<u8>, InodeId) {
        let all: Vec<_> = self.paths.iter().filter(|(_, inode)| self.tree.is_directory(**inode)).collect();
        let (path, inode) = all[usize::from(index) % all.len()];
        (path.clone(), *inode)
    }

    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Add(directory, name, attributes, new) => {
                if let Some((metadata, xattrs)) = metadata(&attributes) {
                    self.add(directory, &name.bytes(255), (metadata, xattrs), &new);
                }
            }
            Step::Link(directory, name, target) => {
                let (mut path, directory) = self.directory(directory);
                let target = *self.paths.values().nth(usize::from(target) % self.paths.len()).unwrap();
                let name = name.bytes(255);
                if self.tree.link(directory, &name, 1, target).is_ok() {
                    join(&mut path, &name);
                    assert_eq!(self.paths.insert(path, target), None);
                }
            }
            Step::Remove(directory, name) => {
                let (mut path, directory) = self.directory(directory);
                let name = name.bytes(255);
                let is_there = self.tree.entry(directory, &name).is_some();
                self.tree.remove(directory, &name);
                if is_there {
                    join(&mut path, &name);
                    let below = [path.as_slice(), b"/"].concat();
                    self.paths.retain(|other, _| *other != path && !other.starts_with(&below));
                }
            }
            Step::Change(target, attributes) => {
                let inode = *self.paths.values().nth(usize::from(target) % self.paths.len()).unwrap();
                let Some((metadata, xattrs)) = metadata(&attributes) else { return };
                if self.tree.set_metadata(inode, metadata.clone()).is_ok() {
                    let expected = self.inodes.get_mut(&inode).unwrap();
                    expected.mode = expected.mode & 0o170_000 | metadata.mode;
                    (expected.uid, expected.gid) = (metadata.uid, metadata.gid);
                    (expected.modified, expected.xattrs) = (metadata.modified, xattrs);
                }
            }
        }
    }

    fn add(&mut self, directory: u8, name: &[u8], (metadata, xattrs): (Metadata, Attributes), new: &New<'_>) {
        let Some((kind, mode, data, device)) = self.kind(new) else { return };
        let (mut path, directory) = self.directory(directory);
        let Metadata { uid, gid, modified, .. } = metadata;
        let expected = Expected { mode: mode | metadata.mode, uid, gid, modified, xattrs, data, device };
        if let Ok(inode) = self.tree.add(directory, name, 0, metadata, kind) {
            join(&mut path, name);
            assert_eq!(self.paths.insert(path, inode), None);
            self.inodes.insert(inode, expected);
        }
    }

    fn kind(&mut self, new: &New<'_>) -> Option<Shape> {
        let none = (0, 0);
        Some(match new {
            New::Directory => (Kind::directory(), DIRECTORY, Vec::new(), none),
            New::Inline(text) => {
                let data = text.bytes(10_000);
                (Kind::File(Content::Inline(data.as_slice().into())), 0o100_000, data, none)
            }
            New::Blocks(text, offset, more) => {
                let text = text.bytes(20_000);
                let (start, end) = (usize::from(*offset), usize::from(*offset) + text.len());
                let mut data = vec![0; end + usize::from(*more)];
                data[start..end].copy_from_slice(&text);
                let extent = self.writer.allocate(data.len() as u64).ok()?;
                self.writer.write(extent, start as u64, &text).unwrap();
                (Kind::File(Content::Blocks(extent)), 0o100_000, data, none)
            }
            New::Symlink(text) => {
                let target = text.bytes(4095);
                (Kind::symlink(&target).ok()?, 0o120_000, target, none)
            }
            New::Device(major, minor) => {
                let device = Device::new(*major % 5000, *minor % 2_000_000).ok()?;
                let number = (*major % 5000, *minor % 2_000_000);
                (Kind::CharacterDevice(device), 0o020_000, Vec::new(), number)
            }
            New::Fifo => (Kind::Fifo, 0o010_000, Vec::new(), none),
            New::Socket => (Kind::Socket, 0o140_000, Vec::new(), none),
        })
    }
}

/// Checks that the image's nodes are these.
fn check(
    (nodes, image): (&[Node], &File),
    paths: &BTreeMap<Vec<u8>, InodeId>,
    inodes: &HashMap<InodeId, Expected>,
) {
    assert_eq!(nodes.len(), paths.len());
    let mut numbers = HashMap::new();
    for node in nodes {
        let inode = paths[&node.path];
        assert_eq!(*numbers.entry(inode).or_insert(node.nid), node.nid, "{:?}", node.path);
        let read = Expected {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            modified: node.modified,
            xattrs: node.xattrs.clone(),
            data: if node.kind() == DIRECTORY { Vec::new() } else { node.data(image).unwrap() },
            device: node.device,
        };
        assert_eq!(read, inodes[&inode], "{:?}", node.path);
    }
}

fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name);
}

thread_local! {
    /// A file for all images.
    static IMAGE_FILE: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// Does something with an empty file.
pub fn with_image(work: impl FnOnce(&File)) {
    IMAGE_FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| tempfile::tempfile().unwrap());
        file.set_len(0).unwrap();
        work(file);
    });
}

/// Writes a tree that the bytes say, and reads it again.
pub fn run(data: &[u8]) {
    run_and(data, &|_| ());
}

/// Does the same, and more with what was written.
pub fn run_and(data: &[u8], look: &dyn Fn(&File)) {
    with_image(|file| {
        let root = Expected {
            mode: DIRECTORY,
            uid: 0,
            gid: 0,
            modified: Time::default(),
            xattrs: BTreeMap::new(),
            data: Vec::new(),
            device: (0, 0),
        };
        let mut model = Model {
            tree: Tree::new(Metadata::default(), MEMORY),
            writer: Writer::new(file, IMAGE).unwrap(),
            paths: BTreeMap::from([(Vec::new(), Tree::ROOT)]),
            inodes: HashMap::from([(Tree::ROOT, root)]),
        };
        for step in each(data, 200) {
            model.step(step);
        }
        let Model { tree, writer, paths, inodes } = model;
        // It may be larger than is allowed.
        if writer.finish(&tree, [7; 16]).is_ok() {
            check((&reader::read(file).unwrap(), file), &paths, &inodes);
            look(file);
        }
    });
}
