//! A shared folder between a guest that asks for anything and a host that moves what is in it.
//!
//! Beside the folder lies what is not the guest's: it must not be told of it, and not change it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use arbitrary::Arbitrary;
use devices::GuestMemory;
use devices::virtio::VirtioDevice;
use devices::virtio::fs::{Fs, Share};
use devices::virtio::pool::Spawn;
use devices::virtio::testing::{BUFFERS, Driver, every_queue_serves};
use tempfile::TempDir;

use crate::drive::reload;
use crate::{drive, each};

const SECRET: &str = "not the guest's, but the host's";
/// What a guest calls things.
const NAMES: [&str; 12] =
    ["file", "dir", "deep", "link", "out", "new", "fifo", ".", "..", "dir/file", "../outside", ""];
/// Bytes of a request's and of a reply's header.
const HEADERS: [usize; 2] = [40, 16];
/// Where replies go.
const REPLIES: u64 = BUFFERS + 0x8_0000;
/// The most requests of one input.
const MOST: usize = 200;

/// What happens.
#[derive(Arbitrary, Debug)]
enum Act {
    /// The guest asks, which is what happens most.
    Ask(Ask),
    /// As [`Act::Ask`].
    Ask2(Ask),
    /// As [`Act::Ask`].
    Ask3(Ask),
    /// As [`Act::Ask`].
    Ask4(Ask),
    /// As [`Act::Ask`].
    Ask5(Ask),
    /// As [`Act::Ask`].
    Ask6(Ask),
    /// Everything in flight is waited for, and the device is saved and loaded.
    Drain,
    /// The guest resets the device.
    Reset,
    /// The host swaps two names, by number.
    Swap(u8, u8),
    /// The host removes a file.
    Remove(u8),
    /// The host makes a file, a folder, or a link out of the share.
    Make(u8, u8),
}

/// A request, of whatever fits its opcode or, now and then, does not.
#[derive(Arbitrary, Debug)]
struct Ask {
    kind: u8,
    node: u8,
    fields: [Field; 7],
    names: [u8; 2],
    room: u8,
    /// How much of the request's end is missing.
    cut: u8,
    odd: u8,
}

/// Opcodes, and what their requests are made of: N a node, H a handle, O flags to open with, S a small number, L a small
/// number and another in the upper half of 8 bytes, A anything, and at the end names.
const SHAPES: [(u32, &str, usize); 40] = [
    (1, "", 1), // LOOKUP, which is what most of the others need
    (1, "", 1),
    (1, "", 1),
    (1, "", 1),
    (14, "O", 0), // OPEN
    (14, "O", 0),
    (27, "O", 0),  // OPENDIR
    (35, "OS", 1), // CREATE
    (35, "OS", 1),
    (15, "HSSSS", 0), // READ
    (15, "HSSSS", 0),
    (16, "HSSSL", 1), // WRITE
    (16, "HSSSL", 1),
    (28, "HSASS", 0), // READDIR
    (44, "HSASS", 0), // READDIRPLUS
    (44, "HSASS", 0),
    (3, "SH", 0),          // GETATTR
    (4, "SHSSAAAAAAA", 0), // SETATTR
    (4, "SHSSSSSSSSS", 0),
    (5, "", 0),         // READLINK
    (6, "", 2),         // SYMLINK
    (8, "LS", 1),       // MKNOD
    (9, "L", 1),        // MKDIR
    (10, "", 1),        // UNLINK
    (11, "", 1),        // RMDIR
    (12, "N", 2),       // RENAME
    (45, "NS", 2),      // RENAME2
    (13, "N", 1),       // LINK
    (2, "S", 0),        // FORGET
    (42, "SNSNS", 0),   // BATCH_FORGET
    (18, "HSS", 0),     // RELEASE
    (29, "HSS", 0),     // RELEASEDIR
    (20, "HS", 0),      // FSYNC
    (21, "L", 2),       // SETXATTR
    (22, "A", 1),       // GETXATTR
    (23, "A", 0),       // LISTXATTR
    (24, "", 1),        // REMOVEXATTR
    (43, "HSSS", 0),    // FALLOCATE
    (46, "HSS", 0),     // LSEEK
    (47, "HSNHSSS", 0), // COPY_FILE_RANGE
];

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Field {
    Small(u8),
    Two(u8, u8),
    Bit(u8),
    Any(u64),
    Node(u8),
    Handle(u8),
}

struct Guest {
    driver: Driver,
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

/// One of `known`, or a number that is not.
fn pick(known: &[u64], number: u8) -> u64 {
    known.get(usize::from(number) % (known.len() + 1)).copied().unwrap_or_else(|| number.into())
}

impl Guest {
    fn number(&self, field: Field) -> u64 {
        match field {
            Field::Small(number) => number.into(),
            Field::Two(low, high) => u64::from(low) | u64::from(high) << 32,
            Field::Bit(bit) => 1 << (bit % 64),
            Field::Any(number) => number,
            Field::Node(number) => pick(&self.nodes, number),
            Field::Handle(number) => pick(&self.handles, number),
        }
    }

    /// A number as a shape asks for it.
    fn shaped(&self, shape: u8, field: Field) -> u64 {
        let number = self.number(field);
        match shape {
            b'N' => pick(&self.nodes, number as u8),
            b'H' => pick(&self.handles, number as u8),
            b'O' => {
                [0, 1, 2, 2, 0o1001, 0o2002][number as usize % 6] | number & 0xf0f0_0000_0000 | 0o644 << 32
            }
            b'S' => number & 0xffff,
            b'L' => number & 0xff | (number << 24 & 0xfff << 32),
            _ => number,
        }
    }

    /// The bytes of a request, and its opcode.
    fn request(&self, ask: &Ask) -> (Vec<u8>, u32) {
        let (mut opcode, shape, names) = SHAPES[usize::from(ask.kind) % SHAPES.len()];
        if ask.odd > 240 {
            opcode = u32::from(ask.kind % 60);
        }
        let mut body = Vec::new();
        for (at, shape) in shape.bytes().enumerate() {
            let field = ask.fields[at % ask.fields.len()];
            let number = if ask.odd < 230 { self.shaped(shape, field) } else { self.number(field) };
            body.extend(number.to_le_bytes());
        }
        for name in &ask.names[..names] {
            body.extend(NAMES[usize::from(*name) % NAMES.len()].as_bytes());
            body.push(0);
        }
        if ask.cut > 230 {
            body.truncate(body.len().saturating_sub(usize::from(ask.cut - 230)));
        }
        let len = (HEADERS[0] + body.len()) as u32;
        let mut request = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
        request.extend(7u64.to_le_bytes());
        request.extend(pick(&self.nodes, ask.node).to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        (request, opcode)
    }

    fn ask(&mut self, ask: &Ask) {
        let (request, opcode) = self.request(ask);
        self.driver.write(BUFFERS, &request);
        let room = [5000, 70_000, 300, 160, 144, 32, 16, 0][usize::from(ask.room / 4 % 8)];
        let mut parts = vec![(BUFFERS, request.len() as u32, false)];
        if room > 0 {
            parts.push((REPLIES, room, true));
        }
        let queue = usize::from(ask.room < 250);
        self.driver.add(queue, &parts);
        self.driver.kick(queue);
        self.driver.lock().drain();
        for (_, len) in self.driver.used(queue) {
            assert!(len <= room, "{len} bytes in room for {room}");
            let reply = self.driver.read(REPLIES, len as usize);
            self.learn(opcode, &reply);
        }
    }

    /// Takes from a reply what the guest may ask for next.
    fn learn(&mut self, opcode: u32, reply: &[u8]) {
        let found = reply.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!found, "the guest was told what is not in the share, by request {opcode}");
        if reply.is_empty() {
            return;
        }
        assert!(reply.len() >= HEADERS[1] && reply[..4] == (reply.len() as u32).to_le_bytes(), "{reply:?}");
        if reply[4..8] != [0; 4] {
            return;
        }
        let number = |at: usize| reply.get(at..at + 8).map(|it| u64::from_le_bytes(it.try_into().unwrap()));
        match opcode {
            // LOOKUP, SYMLINK, MKNOD, MKDIR, LINK and CREATE, that with a handle behind the node.
            1 | 6 | 8 | 9 | 13 | 35 => {
                self.nodes.extend(number(16).filter(|node| *node != 0));
                self.handles.extend(number(144));
            }
            // OPEN and OPENDIR.
            14 | 27 => self.handles.extend(number(16)),
            _ => {}
        }
    }
}

/// The shared folder, and what is beside it.
fn folder() -> TempDir {
    // In memory, where there is nothing to wait for when it is synchronised.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("share/dir/deep")).unwrap();
    fs::create_dir_all(at("outside/deep")).unwrap();
    fs::write(at("outside/file"), SECRET).unwrap();
    fs::write(at("outside/deep/file"), SECRET).unwrap();
    for file in ["share/file", "share/dir/file", "share/dir/deep/file"] {
        fs::write(at(file), "the guest's").unwrap();
    }
    symlink("../outside/file", at("share/link")).unwrap();
    symlink("../outside", at("share/out")).unwrap();
    folder
}

/// What is not the guest's is as it was.
fn assert_intact(folder: &Path) {
    for file in ["outside/file", "outside/deep/file"] {
        assert_eq!(fs::read_to_string(folder.join(file)).unwrap(), SECRET, "{file}");
    }
    let count = |at: &str| fs::read_dir(folder.join(at)).unwrap().count();
    assert_eq!([count(""), count("outside"), count("outside/deep")], [2, 2, 1], "something was made");
}

/// The host does something in the share itself, as far as it can.
fn host(share: &Path, act: &Act) {
    let path = |number: u8| -> PathBuf {
        let folder = if number >= 128 { share.join("dir") } else { share.to_owned() };
        folder.join(NAMES[usize::from(number) % 7])
    };
    // Never through what may be a link out of the share by now.
    let is_within =
        |path: &Path| fs::canonicalize(path.parent().unwrap()).is_ok_and(|it| it.starts_with(share));
    let (Act::Swap(number, _) | Act::Remove(number) | Act::Make(_, number)) = act else { return };
    let place = path(*number);
    if !is_within(&place) {
        return;
    }
    let _as_far_as_it_can = match act {
        Act::Swap(_, other) if is_within(&path(*other)) => fs::rename(&place, share.join("between"))
            .and_then(|()| fs::rename(path(*other), &place))
            .and_then(|()| fs::rename(share.join("between"), path(*other))),
        Act::Remove(_) => fs::remove_file(&place),
        Act::Make(0..100, _) => fs::File::create_new(&place).map(drop),
        Act::Make(100..180, _) => fs::create_dir(&place),
        Act::Make(..) => symlink(share.parent().unwrap().join("outside"), &place),
        _ => Ok(()),
    };
}

pub fn run(data: &[u8]) {
    let Some((options, data)) = data.split_first() else { return };
    let folder = folder();
    let root = fs::canonicalize(folder.path()).unwrap();
    let share = root.join("share");
    let make = |memory: &GuestMemory| -> Box<dyn VirtioDevice> {
        let mut it = Share::new("fuzz", fs::File::open(&share).unwrap().into(), options & 1 != 0);
        it.limits.descriptors = 32;
        it.limits.nodes = 64;
        let spawn: Spawn = Box::new(|work| thread::Builder::new().spawn(work).map(drop));
        Box::new(Fs::new("fs0", Arc::new(it), memory.clone(), Arc::default(), spawn).unwrap())
    };
    if options & 6 == 0 {
        drive(data, make, |_| {}, every_queue_serves);
    } else {
        let mut guest = Guest { driver: Driver::new(make), nodes: vec![1], handles: Vec::new() };
        guest.driver.start(0);
        for act in each::<Act>(data, MOST) {
            match &act {
                Act::Ask(ask) | Act::Ask2(ask) | Act::Ask3(ask) => guest.ask(ask),
                Act::Ask4(ask) | Act::Ask5(ask) | Act::Ask6(ask) => guest.ask(ask),
                Act::Drain => reload(&mut guest.driver),
                Act::Reset => guest.driver.start(0),
                act => host(&share, act),
            }
        }
        guest.driver.assert_contract(every_queue_serves);
    }
    assert_intact(&root);
}
