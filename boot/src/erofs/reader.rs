//! A reader of images for tests. It is independent of the writer, and strict: whatever the format does not allow, or Linux
//! would stumble over, is an error.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::superblock::{MAGIC, OFFSET, checksum};
use super::{BLOCK, Time};

/// A name in an image, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The path from the root directory on, without a slash in front; the root's is empty.
    pub path: Vec<u8>,
    /// The inode's number.
    pub nid: u64,
    /// Kind and permissions, as `st_mode` has them.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When it was last changed.
    pub modified: Time,
    /// How many links it has.
    pub links: u32,
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// The size of its data in bytes.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where data is in the image's file, in bytes.
    places: Vec<Range<u64>>,
}

impl Node {
    /// The bits of the mode that name the kind.
    pub fn kind(&self) -> u16 {
        self.mode & 0o170_000
    }

    /// The data: a file's content, a symbolic link's target.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn data(&self, image: &File) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        for place in &self.places {
            let start = data.len();
            data.resize(start + (place.end - place.start) as usize, 0);
            image.read_exact_at(&mut data[start..], place.start)?;
        }
        Ok(data)
    }
}

const DIRECTORY: u16 = 0o040_000;

/// All that an image has, parents first; directories' entries in their order.
///
/// # Errors
/// What is wrong with the image.
pub fn read(image: &File) -> Result<Vec<Node>, String> {
    let reader = Reader::open(image)?;
    let root = Node { path: Vec::new(), ..reader.inode(reader.root)? };
    let mut nodes = Vec::new();
    let mut waiting = VecDeque::from([(root, reader.root)]);
    while let Some((node, parent)) = waiting.pop_front() {
        if node.kind() == DIRECTORY {
            for (name, nid, file_type) in reader.entries(&node, parent)? {
                let mut path = node.path.clone();
                path.extend(if path.is_empty() { &b""[..] } else { b"/" });
                path.extend(&name);
                let child = Node { path, ..reader.inode(nid)? };
                let expected = file_type_of(child.kind())?;
                ensure(file_type == expected, || format!("{:?} has type {file_type}", child.path))?;
                waiting.push_back((child, node.nid));
            }
        }
        nodes.push(node);
    }
    check_links(&nodes)?;
    ensure(reader.inodes == inodes(&nodes).len() as u64, || "another number of inodes".into())?;
    check_overlap(&nodes, reader.metadata, reader.size)?;
    Ok(nodes)
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn inodes(nodes: &[Node]) -> HashMap<u64, Vec<&Node>> {
    let mut inodes: HashMap<u64, Vec<&Node>> = HashMap::new();
    for node in nodes {
        inodes.entry(node.nid).or_default().push(node);
    }
    inodes
}

/// Each inode has as many links as it says.
fn check_links(nodes: &[Node]) -> Result<(), String> {
    let mut subdirectories: HashMap<&[u8], u32> = HashMap::new();
    for node in nodes.iter().filter(|node| node.kind() == DIRECTORY && !node.path.is_empty()) {
        let parent = node.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        *subdirectories.entry(&node.path[..parent]).or_default() += 1;
    }
    for names in inodes(nodes).values() {
        let node = names[0];
        let links = match node.kind() {
            DIRECTORY => {
                ensure(names.len() == 1, || format!("directory {:?} has several names", node.path))?;
                2 + subdirectories.get(node.path.as_slice()).copied().unwrap_or(0)
            }
            _ => names.len() as u32,
        };
        ensure(node.links == links, || format!("{:?} has {links} links", node.path))?;
    }
    Ok(())
}

/// No byte belongs to two inodes, and none is in the superblock's block or behind the end.
fn check_overlap(nodes: &[Node], metadata: u64, size: u64) -> Result<(), String> {
    let mut places: Vec<_> = std::iter::once(0..BLOCK).collect();
    for names in inodes(nodes).values() {
        let node = names[0];
        let at = metadata + node.nid * 32;
        places.push(at..at + 64);
        places.extend(node.places.iter().filter(|place| !place.is_empty()).cloned());
    }
    places.sort_by_key(|place| (place.start, place.end));
    let clash = places.windows(2).find(|pair| pair[0].end > pair[1].start);
    ensure(clash.is_none(), || format!("{clash:?} is in two inodes"))?;
    ensure(places.last().is_none_or(|last| last.end <= size), || "something is behind the end".into())
}

fn file_type_of(kind: u16) -> Result<u8, String> {
    let kinds = [0o100_000, 0o040_000, 0o020_000, 0o060_000, 0o010_000, 0o140_000, 0o120_000];
    let index = kinds.iter().position(|known| *known == kind);
    index.map(|index| index as u8 + 1).ok_or_else(|| format!("an inode of kind {kind:o}"))
}

struct Reader<'a> {
    image: &'a File,
    root: u64,
    inodes: u64,
    /// Where inodes' numbers count from, in bytes.
    metadata: u64,
    /// The image's size in bytes.
    size: u64,
}

/// A number in little endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl<'a> Reader<'a> {
    fn open(image: &'a File) -> Result<Self, String> {
        let len = image.metadata().map_err(|error| error.to_string())?.len();
        let mut reader = Self { image, root: 0, inodes: 0, metadata: 0, size: len };
        let mut block = reader.bytes(0..BLOCK)?;
        let sb = block[OFFSET..OFFSET + 128].to_vec();
        ensure(number(&sb[..4]) == u64::from(MAGIC), || "another magic number".into())?;
        block[OFFSET + 4..OFFSET + 8].fill(0);
        ensure(number(&sb[4..8]) == u64::from(checksum(&block)), || "another checksum".into())?;
        ensure(number(&sb[80..84]) == 0 && sb[12] == 12 && sb[90] == 0, || "features".into())?;
        reader.root = number(&sb[14..16]);
        reader.inodes = number(&sb[16..24]);
        reader.size = number(&sb[36..40]) * BLOCK;
        reader.metadata = number(&sb[40..44]) * BLOCK;
        ensure(reader.size == len, || format!("{} bytes instead of {len}", reader.size))?;
        Ok(reader)
    }

    fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>, String> {
        ensure(range.start <= range.end && range.end <= self.size, || format!("{range:?} is outside"))?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.image.read_exact_at(&mut bytes, range.start).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn inode(&self, nid: u64) -> Result<Node, String> {
        ensure(nid > 0, || "an inode with the number 0".into())?;
        let at = nid.checked_mul(32).and_then(|offset| offset.checked_add(self.metadata));
        let at = at.ok_or("an inode's number is too large")?;
        let inode = self.bytes(at..at.saturating_add(64))?;
        let (mode, size) = (number(&inode[4..6]) as u16, number(&inode[8..16]));
        let address = number(&inode[16..20]) as u32;
        let is_inline = match number(&inode[..2]) {
            1 => false,
            5 => true,
            format => return Err(format!("inode {nid} has the format {format}")),
        };
        let count = number(&inode[2..4]);
        let xattr_size = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let xattrs = self.xattrs(at + 64..at + 64 + xattr_size)?;
        let has_data = matches!(mode & 0o170_000, 0o040_000 | 0o100_000 | 0o120_000);
        let places = match has_data {
            true => data_places(size, address, is_inline.then_some(at + 64 + xattr_size))?,
            false => Vec::new(),
        };
        let outside = places.iter().find(|place| place.end > self.size);
        ensure(outside.is_none(), || format!("inode {nid} has data at {outside:?}"))?;
        let modified = Time {
            seconds: number(&inode[32..40]).cast_signed(),
            nanoseconds: number(&inode[40..44]) as u32,
        };
        ensure(modified.nanoseconds < 1_000_000_000, || format!("inode {nid} has a wrong time"))?;
        let device = if has_data { 0 } else { address };
        Ok(Node {
            path: Vec::new(),
            nid,
            mode,
            uid: number(&inode[24..28]) as u32,
            gid: number(&inode[28..32]) as u32,
            modified,
            links: number(&inode[44..48]) as u32,
            // Linux `new_decode_dev`.
            device: ((device & 0xfff00) >> 8, device & 0xff | device >> 12 & 0xfff00),
            size,
            xattrs,
            places,
        })
    }

    fn xattrs(&self, range: Range<u64>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
        let mut xattrs = BTreeMap::new();
        let bytes = self.bytes(range)?;
        if bytes.is_empty() {
            return Ok(xattrs);
        }
        ensure(bytes[..12].iter().all(|byte| *byte == 0), || "shared attributes".into())?;
        let mut rest = &bytes[12..];
        while !rest.is_empty() {
            let (name_len, value_len) = (rest[0] as usize, number(&rest[2..4]) as usize);
            let prefix = match rest[1] {
                1 => "user.",
                2 => "system.posix_acl_access",
                3 => "system.posix_acl_default",
                4 => "trusted.",
                6 => "security.",
                other => return Err(format!("an attribute with the prefix {other}")),
            };
            let end = 4 + name_len + value_len;
            ensure(end.next_multiple_of(4) <= rest.len(), || "an attribute is cut".into())?;
            let name = [prefix.as_bytes(), &rest[4..4 + name_len]].concat();
            let before = xattrs.insert(name, rest[4 + name_len..end].to_vec());
            ensure(before.is_none(), || "an attribute is there twice".into())?;
            rest = &rest[end.next_multiple_of(4)..];
        }
        Ok(xattrs)
    }

    /// The entries of a directory but `.` and `..`: names, inodes' numbers and types.
    fn entries(&self, node: &Node, parent: u64) -> Result<Vec<(Vec<u8>, u64, u8)>, String> {
        let data = node.data(self.image).map_err(|error| error.to_string())?;
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in data.chunks(BLOCK as usize) {
            for entry in block_entries(block)? {
                let is_behind = entries.last().is_none_or(|last| last.0 < entry.0);
                ensure(is_behind, || format!("{:?} is out of order", entry.0))?;
                entries.push(entry);
            }
        }
        for (name, nid) in [(&b"."[..], node.nid), (b"..", parent)] {
            let found = entries.iter().position(|entry| entry.0 == name && entry.1 == nid && entry.2 == 2);
            entries.remove(found.ok_or_else(|| format!("no {name:?} in {:?}", node.path))?);
        }
        Ok(entries)
    }
}

/// Where data of so many bytes is, with what is `inline` in the last block's place.
fn data_places(size: u64, block: u32, inline: Option<u64>) -> Result<Vec<Range<u64>>, String> {
    let start = u64::from(block) * BLOCK;
    let Some(at) = inline else {
        let end = start.checked_add(size).ok_or("a size is too large")?;
        return Ok(std::iter::once(start..end).collect());
    };
    let tail = size % BLOCK;
    ensure(tail > 0 && at % BLOCK + tail <= BLOCK, || "inline data is in two blocks".into())?;
    let end = start.checked_add(size - tail).ok_or("a size is too large")?;
    Ok(vec![start..end, at..at + tail])
}

fn block_entries(block: &[u8]) -> Result<Vec<(Vec<u8>, u64, u8)>, String> {
    ensure(block.len() > 12, || "a directory's block is too short".into())?;
    let first = number(&block[8..10]) as usize;
    ensure(first > 0 && first.is_multiple_of(12) && first < block.len(), || format!("names at {first}"))?;
    let offsets: Vec<usize> = block[..first].chunks(12).map(|entry| number(&entry[8..10]) as usize).collect();
    let mut entries = Vec::new();
    for (index, entry) in block[..first].chunks(12).enumerate() {
        let (start, last) = (offsets[index], index + 1 == offsets.len());
        let end = if last { block.len() } else { offsets[index + 1] };
        ensure(start < end && end <= block.len(), || format!("a name at {start}"))?;
        // Zeros follow the last name.
        let name = block[start..end].split(|byte| *byte == 0).next().unwrap_or_default();
        ensure((1..=255).contains(&name.len()) && !name.contains(&b'/'), || format!("the name {name:?}"))?;
        ensure(last || start + name.len() == end, || format!("a NUL in {name:?}"))?;
        entries.push((name.to_vec(), number(&entry[..8]), entry[10]));
    }
    Ok(entries)
}
