//! Layers that say anything: archives of any entries, with any bytes changed, or no archives at all. What comes out is an image that
//! is read, or an error of one line.

use std::fs::File;
use std::io::Read;

use anyhow::Result;
use arbitrary::{Arbitrary, Unstructured};
use boot::erofs::reader;
use kite::backend::image::blob::Compression;
use kite::backend::image::digest::Digest;
use kite::backend::image::layers::{LayerBlob, Limits, build};

use crate::erofs::with_image;
use crate::{bytes, list};

#[expect(dead_code, reason = "unit tests use more of it")]
#[path = "../../../src/backend/image/layers/tar/testing.rs"]
mod tar;

use tar::Item;

/// Little, so that each is reached.
const LIMITS: Limits = Limits {
    entries: 200,
    memory: 128 << 10,
    content: 1 << 20,
    image: 2 << 20,
    steps: 20_000,
    window: 1 << 20,
};

/// Parts of names.
const PARTS: [&str; 16] = [
    "a",
    "b",
    "c",
    "/",
    "/",
    "..",
    ".",
    ".wh.",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    "a/b",
    "a/b/c",
    "../a",
    "/a",
    "",
];
/// Keys of PAX records.
const KEYS: [&str; 16] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "mtime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.map",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "GNU.sparse.name",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.selinux",
    "comment",
];
/// Values of them.
const VALUES: [&str; 16] = [
    "0",
    "1",
    "3",
    "512",
    "600",
    "1024",
    "9000",
    "-1.5",
    "0,3",
    "0,3,1000,4",
    "5,2,1,1",
    "9223372036854775807",
    "18446744073709551615",
    "a/b",
    "/",
    "\n",
];
const FLAGS: &[u8] = b"0125000125634LKxgS7V\0";
/// What entries have that are mostly taken, so that many archives are good to their ends.
const GOOD_FLAGS: &[u8] = b"055263404";
const GOOD_NAMES: [&str; 16] = [
    "a",
    "b",
    "c",
    "d",
    "e/a",
    "e/b",
    "e/f/a",
    "e/f/b",
    ".wh.a",
    ".wh.e",
    "e/.wh.a",
    "e/.wh..wh..opq",
    "./g/",
    "h/../i",
    "k",
    "l",
];

#[derive(Arbitrary, Debug)]
struct Entry<'a> {
    /// One of eight may be refused.
    care: u8,
    flag: u8,
    name: [u8; 3],
    target: [u8; 3],
    owner: (u32, u32),
    device: (u16, u16),
    data: Data<'a>,
    records: [(u8, u8); 2],
    record_count: u8,
}

#[derive(Arbitrary, Debug)]
enum Data<'a> {
    None,
    Raw(#[arbitrary(with = bytes)] &'a [u8]),
    Run(u8, u16),
    /// A map of pieces, as version 1.0 of sparse files has it.
    Map(u8, u8),
}

#[derive(Arbitrary, Debug)]
struct Blob<'a> {
    #[arbitrary(with = list)]
    entries: Vec<Entry<'a>>,
    /// Whether anything of it is changed.
    damage: u8,
    /// Bytes that are replaced.
    #[arbitrary(with = list)]
    changes: Vec<(u16, u8)>,
    /// Where it is cut.
    cut: Option<u16>,
    compression: u8,
    #[arbitrary(with = bytes)]
    raw: &'a [u8],
}

fn name(parts: [u8; 3]) -> String {
    parts.map(|part| PARTS[usize::from(part) % PARTS.len()]).concat()
}

impl Entry<'_> {
    fn item(&self) -> Item {
        if !self.care.is_multiple_of(8) {
            return self.good_item();
        }
        let mut item = Item::new(FLAGS[usize::from(self.flag) % FLAGS.len()], name(self.name));
        item.target = name(self.target).into_bytes();
        item.owner = self.owner;
        item.device = (self.device.0.into(), self.device.1.into());
        item.data = match self.data {
            Data::None => Vec::new(),
            Data::Raw(bytes) => bytes.to_vec(),
            Data::Run(byte, count) => vec![byte; count.into()],
            Data::Map(count, step) => {
                let pairs = (0..u32::from(count)).map(|index| format!("{}\n1\n", index * u32::from(step)));
                let map = format!("{count}\n{}", pairs.collect::<String>());
                [tar::padded(map.as_bytes()), vec![b'm'; count.into()]].concat()
            }
        };
        for (key, value) in self.records.iter().take(usize::from(self.record_count % 3)) {
            let key = KEYS[usize::from(*key) % KEYS.len()];
            item = item.record(key, VALUES[usize::from(*value) % VALUES.len()]);
        }
        if matches!(item.flag, b'x' | b'g') && !item.records.is_empty() {
            item.data = item.records.drain(..).flat_map(|(key, value)| tar::record(&key, &value)).collect();
        }
        item
    }
}

impl Entry<'_> {
    fn good_item(&self) -> Item {
        let flag = GOOD_FLAGS[usize::from(self.flag) % GOOD_FLAGS.len()];
        let name = |parts: [u8; 3]| GOOD_NAMES[usize::from(parts[0]) % GOOD_NAMES.len()];
        let mut item = Item::new(flag, name(self.name));
        item.target = name(self.target).into();
        item.owner = self.owner;
        item.device = (u32::from(self.device.0) % 4096, self.device.1.into());
        item.data = match self.data {
            Data::Run(byte, count) if flag == b'0' => vec![byte; count.into()],
            _ => Vec::new(),
        };
        item
    }
}

impl Blob<'_> {
    fn bytes(&self) -> Vec<u8> {
        let items: Vec<_> = self.entries.iter().map(Entry::item).collect();
        let mut bytes = tar::archive(&items);
        if !self.damage.is_multiple_of(4) {
            return bytes;
        }
        // A header's checksum is made right, so that what it says is read.
        for (at, byte) in &self.changes {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *byte;
            let header = at / 512 * 512;
            if let Some(block) = bytes.get(header..header + 512).and_then(|block| block.try_into().ok()) {
                bytes[header..header + 512].copy_from_slice(&tar::summed(block));
            }
        }
        bytes.truncate(self.cut.map_or(bytes.len(), |cut| usize::from(cut) * 64));
        [&bytes, self.raw].concat()
    }
}

fn layer<'a>(bytes: Vec<u8>, compression: u8) -> LayerBlob<'a> {
    // Hashes of what is compressed are not known: digests fail, at the end.
    let diff_id = Digest::of(&bytes);
    let compression = match compression {
        8 => Compression::Gzip,
        16 => Compression::Zstd,
        _ => Compression::None,
    };
    let reader: Box<dyn Read> = Box::new(std::io::Cursor::new(bytes));
    LayerBlob { reader, compression, digest: None, diff_id }
}

/// Merges layers that the bytes say.
pub fn run(data: &[u8]) {
    run_and(data, &|_| ());
}

/// Does the same, and more with the images that come out.
pub fn run_and(data: &[u8], look: &dyn Fn(&File)) {
    let mut data = Unstructured::new(data);
    let Ok(blobs) = list::<Blob<'_>>(&mut data) else { return };
    let rest = data.take_rest();
    let blobs = blobs.iter().map(|blob| layer(blob.bytes(), blob.compression));
    // Without an archive around it, and seldom.
    let last = rest.first().is_some_and(|first| first.is_multiple_of(8));
    let last = last.then(|| layer(rest[1..].to_vec(), rest[0]));
    let layers: Vec<Result<_>> = blobs.chain(last).map(Ok).collect();
    with_image(|file| match build(layers, file, &LIMITS, &|_| {}) {
        Ok(summary) => {
            let nodes = reader::read(file).unwrap();
            assert_eq!(file.metadata().unwrap().len(), summary.size);
            assert!(nodes.iter().all(|node| node.path.split(|byte| *byte == b'/').all(|part| part != b"..")));
            look(file);
        }
        Err(error) => assert!(!format!("{error:#}").contains('\n'), "{error:#}"),
    });
}
