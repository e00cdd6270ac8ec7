//! The device itself, through a real transport: queues, pieces of memory, threads, resets.

use std::fs;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;

use super::super::wire::{Args, IN_HEADER, OUT_HEADER, opcode};
use super::super::{Fs, MOST_TAG, Share};
use super::client::{Client, share, string, wide};
use crate::GuestMemory;
use crate::device::Device as _;
use crate::virtio::pool::Spawn;
use crate::virtio::testing::{BUFFERS, Driver, UP, alone, files_and_threads, watched};
use crate::virtio::{Copies, VirtioDevice};

/// The queue for requests, and that for what goes past them.
const REQUESTS: usize = 1;
const HIGH: usize = 0;
/// Where replies go.
const REPLIES: u64 = BUFFERS + 0x8_0000;

fn threads() -> Spawn {
    Box::new(|work| thread::Builder::new().spawn(work).map(drop))
}

/// A host that has no thread left.
fn no_threads() -> Spawn {
    Box::new(|_| Err(std::io::Error::from_raw_os_error(libc::EAGAIN)))
}

struct Rig {
    driver: Driver,
    folder: TempDir,
    /// What makes the bytes of requests.
    client: Client,
    copies: Arc<Copies>,
}

impl Rig {
    fn new(writable: bool, spawn: Spawn) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("dir")).unwrap();
        fs::write(folder.path().join("file"), (0..20_000).map(|n| n as u8).collect::<Vec<_>>()).unwrap();
        let share = Arc::new(share(folder.path(), writable));
        let copies = Arc::<Copies>::default();
        let shared = copies.clone();
        let mut driver =
            Driver::new(|memory| Box::new(Fs::new("fs0", share, memory.clone(), shared, spawn).unwrap()));
        driver.start(0);
        let client = Client::read_only(folder.path());
        let mut it = Self { driver, folder, client, copies };
        it.begin();
        it
    }

    fn begin(&mut self) {
        let init = wide(&[7 | 38 << 32, 1 << 20 | 0xffff_ffff << 32]);
        self.call(opcode::INIT, 0, &init, 64).unwrap();
    }

    /// Makes a request available whose reply has `room` behind its header.
    fn add(&mut self, slot: u64, code: u32, node: u64, args: &[u8], room: u32) -> u16 {
        let (at, to) = (BUFFERS + slot * 0x1000, REPLIES + slot * 0x1000);
        self.driver.write(at, &self.client.request(code, node, args));
        let parts = [
            (at, IN_HEADER as u32, false),
            (at + IN_HEADER as u64, args.len() as u32, false),
            (to, OUT_HEADER as u32, true),
            (to + OUT_HEADER as u64, room, true),
        ];
        let used: Vec<_> = parts.into_iter().filter(|part| part.1 > 0).collect();
        self.driver.add(REQUESTS, &used)
    }

    /// The reply in `slot`.
    fn reply(&self, slot: u64, len: u32) -> Result<Vec<u8>, i32> {
        let mut reply = self.driver.read(REPLIES + slot * 0x1000, len as usize);
        let body = reply.split_off(OUT_HEADER);
        let mut header = Args(&reply);
        assert_eq!(header.u32(), Ok(len));
        match header.u32().unwrap().cast_signed() {
            0 => Ok(body),
            error => Err(-error),
        }
    }

    fn call(&mut self, code: u32, node: u64, args: &[u8], room: u32) -> Result<Vec<u8>, i32> {
        let head = self.add(0, code, node, args, room);
        self.driver.kick(REQUESTS);
        self.driver.lock().drain();
        let used = self.driver.used(REQUESTS);
        assert!(matches!(used[..], [(it, _)] if it == head), "{used:?}");
        self.reply(0, used[0].1)
    }

    fn lookup(&mut self, name: &str) -> u64 {
        Args(&self.call(opcode::LOOKUP, 1, &string(name), 128).unwrap()).u64().unwrap()
    }

    fn open(&mut self, name: &str, flags: i32) -> u64 {
        let node = self.lookup(name);
        let reply = self.call(opcode::OPEN, node, &wide(&[flags as u64]), 16).unwrap();
        Args(&reply).u64().unwrap()
    }

    fn contract(&mut self) {
        self.driver.assert_contract(crate::virtio::testing::every_queue_serves);
    }
}

#[test]
fn a_driver_finds_the_tag_and_one_queue_for_requests() {
    let mut rig = Rig::new(true, threads());
    let config = rig.driver.config(0, MOST_TAG + 8);
    assert_eq!(&config[..5], b"test\0");
    assert_eq!(config[MOST_TAG..], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.driver.lock().device().kind().id, 26);
}

#[test]
fn a_tag_that_is_none_and_a_share_that_is_no_folder_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let memory = crate::virtio::testing::memory();
    let make = |share: Share| {
        Fs::new("fs0", Arc::new(share), memory.clone(), Arc::default(), threads()).err().map(|it| it.kind())
    };
    for tag in [String::new(), "x".repeat(MOST_TAG + 1), "a\0b".to_owned()] {
        let mut bad = share(folder.path(), false);
        bad.tag = tag;
        assert_eq!(make(bad), Some(std::io::ErrorKind::InvalidInput));
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(make(share(&file, false)), Some(std::io::ErrorKind::NotADirectory));
}

#[test]
fn data_goes_through_pieces_of_memory_of_any_size() {
    for spawn in [threads(), no_threads()] {
        let mut rig = Rig::new(true, spawn);
        let handle = rig.open("file", libc::O_RDWR);
        let file = rig.lookup("file");
        let request = rig.client.request(opcode::READ, file, &wide(&[handle, 5, 9000, 0, 0]));
        rig.driver.write(BUFFERS, &request);
        // The header of the reply is in two pieces, the data in three.
        let lens = [(0, 10), (0x100, 106), (0x1000, 1), (0x2000, 7000), (0x5000, 1899)];
        let mut parts = vec![(BUFFERS, request.len() as u32, false)];
        parts.extend(lens.map(|(at, len)| (REPLIES + at, len, true)));
        rig.driver.add(REQUESTS, &parts);
        rig.driver.kick(REQUESTS);
        rig.driver.lock().drain();
        assert_eq!(rig.driver.used(REQUESTS)[0].1, 9016);
        let bytes: Vec<u8> =
            lens.iter().flat_map(|(at, len)| rig.driver.read(REPLIES + at, *len as usize)).collect();
        let expected: Vec<u8> = (5..9005).map(|n| n as u8).collect();
        assert!(bytes[OUT_HEADER..] == expected);
        // The same back, 5 bytes further on.
        let request = rig.client.request(opcode::WRITE, file, &wide(&[handle, 10, 9000, 0, 0]));
        rig.driver.write(BUFFERS, &request);
        let len = (request.len() + 9000) as u32;
        rig.driver.write(BUFFERS, &len.to_le_bytes());
        let mut parts = vec![(BUFFERS, 3, false), (BUFFERS + 3, request.len() as u32 - 3, false)];
        parts.push((REPLIES + 0x100 + 6, 100, false));
        parts.extend(lens[2..].iter().map(|(at, len)| (REPLIES + at, *len, false)));
        parts.push((REPLIES + 0x7000, 24, true));
        rig.driver.add(REQUESTS, &parts);
        rig.driver.kick(REQUESTS);
        rig.driver.lock().drain();
        let used = rig.driver.used(REQUESTS)[0].1;
        let reply = rig.driver.read(REPLIES + 0x7000, used as usize);
        assert_eq!(reply[4..8], [0; 4], "{reply:?}");
        assert_eq!(reply[16..20], 9000u32.to_le_bytes());
        let file = fs::read(rig.folder.path().join("file")).unwrap();
        assert!(file[10..9010] == expected && file.len() == 20_000);
        rig.contract();
    }
}

#[test]
fn requests_in_flight_are_answered_each_with_its_own_reply() {
    let mut rig = Rig::new(true, threads());
    for round in 0..30 {
        let mut heads = Vec::new();
        for slot in 0..12 {
            let name = string(&format!("{round}-{slot}"));
            heads.push(rig.add(slot, opcode::MKDIR, 1, &[wide(&[0o755]), name].concat(), 128));
        }
        rig.driver.kick(REQUESTS);
        rig.driver.lock().drain();
        let mut used = rig.driver.used(REQUESTS);
        used.sort_by_key(|(head, _)| heads.iter().position(|it| it == head));
        assert_eq!(used.len(), 12);
        let nodes: Vec<u64> = (0..12)
            .zip(&used)
            .map(|(slot, (_, len))| Args(&rig.reply(slot, *len).unwrap()).u64().unwrap())
            .collect();
        for (slot, node) in nodes.iter().enumerate() {
            assert_eq!(rig.lookup(&format!("{round}-{slot}")), *node);
        }
    }
    rig.contract();
}

#[test]
fn a_forgotten_node_takes_no_reply() {
    let mut rig = Rig::new(true, threads());
    let node = rig.lookup("file");
    let request = rig.client.request(opcode::FORGET, node, &wide(&[1]));
    rig.driver.write(BUFFERS, &request);
    let head = rig.driver.add(HIGH, &[(BUFFERS, request.len() as u32, false)]);
    rig.driver.kick(HIGH);
    assert_eq!(rig.driver.used(HIGH), [(head, 0)]);
    assert_eq!(rig.call(opcode::GETATTR, node, &wide(&[0, 0]), 104), Err(libc::ESTALE));
    rig.contract();
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_closes_everything() {
    alone("virtio::fs::tests::device::a_reset_waits_for_what_is_in_flight_and_closes_everything", || {
        let mut rig = Rig::new(true, threads());
        // All threads there are, and the first descriptor of /dev/null's like.
        for round in 0..40 {
            let start = files_and_threads()[0];
            let handle = rig.open("file", libc::O_RDWR);
            let (file, dir) = (rig.lookup("file"), rig.lookup("dir"));
            rig.call(opcode::LOOKUP, dir, &string("none"), 128).unwrap();
            for slot in 0..8 {
                let args = wide(&[handle, 4000 * slot, 3000, 0, 0]);
                rig.add(slot, opcode::READ, file, &args, 3000);
            }
            let name = string(&format!("made-{round}"));
            rig.add(9, opcode::CREATE, 1, &[wide(&[2 | 0o644 << 32, 0]), name].concat(), 144);
            rig.driver.set(virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY, REQUESTS as u32);
            rig.driver.lock().serve(REQUESTS);
            rig.driver.start(0);
            assert_eq!(rig.driver.used(REQUESTS), []);
            rig.driver.assert_intact();
            let read = wide(&[handle, 0, 10, 0, 0]);
            assert_eq!(rig.call(opcode::READ, file, &read, 10), Err(libc::EIO), "no session has begun");
            rig.begin();
            let again = rig.lookup("file");
            assert_ne!(again, file);
            assert_eq!(rig.call(opcode::READ, again, &read, 10), Err(libc::EBADF));
            assert!(rig.folder.path().join(format!("made-{round}")).exists());
            if round > 0 {
                assert_eq!(files_and_threads()[0], start);
            }
        }
        assert_eq!(rig.driver.status(), UP);
        let Rig { driver, folder, client, .. } = rig;
        drop(driver);
        drop(client);
        drop(folder);
    });
}

#[test]
fn a_device_that_is_dropped_leaves_no_thread_and_no_file() {
    alone("virtio::fs::tests::device::a_device_that_is_dropped_leaves_no_thread_and_no_file", || {
        watched("dropping", || {
            // What the first one takes for good is the guest's memory.
            drop(Rig::new(true, threads()));
            let before = files_and_threads();
            for _ in 0..20 {
                let mut rig = Rig::new(true, threads());
                rig.open("file", libc::O_RDWR);
                rig.call(opcode::MKDIR, 1, &[wide(&[0o755]), string("made")].concat(), 128).unwrap();
                drop(rig);
            }
            // A thread tells that it ends before it has.
            while files_and_threads() != before {
                thread::yield_now();
            }
        });
    });
}

/// Takes a lease on a file that is open for reading, or gives it back; answers whether the host lets it. This process,
/// which is there for the one test, ignores the signal that somebody wants it back.
#[expect(unsafe_code, reason = "fcntl(2)'s leases, and ignoring a signal, have no safe interface")]
fn lease(file: &fs::File, kind: libc::c_int) -> bool {
    // SAFETY: sets no handler of ours.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
}

/// Runs the test `name` alone, with a device and a lease on "file", if the host has leases.
fn with_lease(name: &str, test: impl FnOnce(Rig, fs::File)) {
    alone(&format!("virtio::fs::tests::device::{name}"), || {
        let rig = Rig::new(true, threads());
        let file = fs::File::open(rig.folder.path().join("file")).unwrap();
        if !lease(&file, libc::F_RDLCK) {
            return println!("skipped: {name}: this file system has no leases");
        }
        test(rig, file);
    });
}

/// Requests that end a lease on "file", each in a way of its own.
fn add_writers(rig: &mut Rig) -> [u16; 3] {
    let node = rig.lookup("file");
    let open = rig.add(1, opcode::OPEN, node, &wide(&[(libc::O_WRONLY | libc::O_TRUNC) as u64]), 16);
    let mut size = [0; 88];
    size[0] = 1 << 3;
    size[16] = 77;
    let resize = rig.add(2, opcode::SETATTR, node, &size, 104);
    let flags = (libc::O_RDWR | libc::O_CREAT) as u64;
    let create = [wide(&[flags | 0o644 << 32, 0]), string("file")].concat();
    [open, resize, rig.add(3, opcode::CREATE, 1, &create, 144)]
}

#[test]
fn a_request_that_a_lease_stands_in_the_way_of_holds_up_nothing_and_is_done_afterwards() {
    with_lease(
        "a_request_that_a_lease_stands_in_the_way_of_holds_up_nothing_and_is_done_afterwards",
        |mut rig, file| {
            let mut heads = add_writers(&mut rig).to_vec();
            rig.driver.kick(REQUESTS);
            watched("draining a device that waits for a lease", || rig.driver.lock().drain());
            assert_eq!(rig.driver.used(REQUESTS), []);
            let refused = rig.driver.lock().save().unwrap_err().to_string();
            assert!(refused.contains("lease"), "{refused}");
            assert_eq!(rig.folder.path().join("file").metadata().unwrap().len(), 20_000);
            // Others are served meanwhile.
            rig.call(opcode::MKDIR, 1, &[wide(&[0o755]), string("made")].concat(), 128).unwrap();
            assert!(lease(&file, libc::F_UNLCK));
            watched("doing what waited for a lease", || {
                while !heads.is_empty() {
                    rig.driver.lock().serve_source(0);
                    rig.driver.lock().drain();
                    let used = rig.driver.used(REQUESTS);
                    heads.retain(|head| used.iter().all(|(it, _)| it != head));
                }
            });
            for (slot, len) in [(1, OUT_HEADER + 16), (2, OUT_HEADER + 104), (3, OUT_HEADER + 144)] {
                rig.reply(slot, len as u32).unwrap();
            }
            // Emptied and then made this long, or the other way round.
            assert!([0, 77].contains(&rig.folder.path().join("file").metadata().unwrap().len()));
            rig.contract();
        },
    );
}

#[test]
fn a_reset_forgets_what_waits_for_a_lease() {
    with_lease("a_reset_forgets_what_waits_for_a_lease", |mut rig, file| {
        add_writers(&mut rig);
        rig.driver.kick(REQUESTS);
        watched("resetting a device that waits for a lease", || rig.driver.start(0));
        assert!(lease(&file, libc::F_UNLCK));
        rig.driver.lock().serve_source(0);
        rig.driver.lock().drain();
        assert_eq!(rig.driver.used(REQUESTS), []);
        rig.driver.assert_intact();
        assert_eq!(rig.folder.path().join("file").metadata().unwrap().len(), 20_000);
    });
}

#[test]
fn memory_is_copied_without_waiting_for_requests_and_none_of_their_replies_is_lost() {
    let mut rig = Rig::new(true, threads());
    fs::write(rig.folder.path().join("large"), vec![7; 100_000]).unwrap();
    let (node, handle) = (rig.lookup("large"), rig.open("large", libc::O_RDONLY));
    let (at, len) = (REPLIES + OUT_HEADER as u64, 100_000);
    rig.driver.write(REPLIES, &[0; OUT_HEADER]);
    let copies = rig.copies.clone();
    copies.copy(|| {
        rig.add(0, opcode::READ, node, &wide(&[handle, 0, len, 0, 0]), len as u32);
        rig.driver.set(virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY, REQUESTS as u32);
        rig.driver.lock().serve(REQUESTS);
        watched("reading while memory is copied", || {
            while rig.driver.read(at + len - 1, 1) != [7] {
                thread::yield_now();
            }
        });
        // What was read is lost with the memory of before.
        rig.driver.write(at, &[0; 100_000]);
        assert_eq!(rig.driver.read(REPLIES, OUT_HEADER), [0; OUT_HEADER]);
        assert_eq!(rig.driver.used(REQUESTS), []);
    });
    rig.driver.lock().drain();
    let used = rig.driver.used(REQUESTS);
    assert_eq!(used[0].1 as u64, OUT_HEADER as u64 + len);
    assert!(rig.reply(0, used[0].1).unwrap().iter().all(|byte| *byte == 7));
    rig.contract();
}

#[test]
fn a_mounted_share_goes_on_in_a_device_that_is_loaded() {
    let mut rig = Rig::new(true, threads());
    let (node, handle) = (rig.lookup("file"), rig.open("file", libc::O_RDONLY));
    for _ in 0..3 {
        let shared = Arc::new(share(rig.folder.path(), true));
        let new = |memory: &GuestMemory| -> Box<dyn VirtioDevice> {
            Box::new(Fs::new("fs0", shared, memory.clone(), Arc::default(), threads()).unwrap())
        };
        rig.driver.reload(new).unwrap();
        let read = rig.call(opcode::READ, node, &wide(&[handle, 5, 3, 0, 0]), 3);
        assert_eq!(read, Ok(vec![5, 6, 7]));
        assert_eq!(rig.lookup("file"), node);
    }
    rig.contract();
}
