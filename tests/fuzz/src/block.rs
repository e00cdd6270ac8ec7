//! A disk between a guest that makes any request and a host that cuts the image short.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use devices::GuestMemory;
use devices::virtio::VirtioDevice;
use devices::virtio::block::Block;
use devices::virtio::block::disk::Disk;
use devices::virtio::block::engine;
use devices::virtio::block::threads::Threads;
use devices::virtio::pool::Spawn;
use devices::virtio::testing::{BUFFERS, Driver};

use crate::drive;

/// Bytes of the disk.
const DISK: u64 = 64 * 512;
/// Bytes of the image: the last are no whole sector, and not the guest's.
const IMAGE: u64 = DISK + 100;

/// What the first byte of an input says.
struct Options(u8);

impl Options {
    fn has(&self, bit: u8) -> bool {
        self.0 >> bit & 1 != 0
    }

    fn disk(&self, image: File) -> Disk {
        let mut disk = Disk::new(image, IMAGE).with_serial("fuzz");
        if self.has(0) {
            disk = disk.read_only();
        }
        if self.has(1) {
            disk = disk.ephemeral(tempfile::tempfile().unwrap()).unwrap();
        }
        disk
    }

    /// With io_uring, if the host has that, or with threads.
    fn block(&self, disk: &Arc<Disk>, memory: &GuestMemory) -> Block {
        let spawn: Spawn = Box::new(|work| thread::Builder::new().spawn(work).map(drop));
        let engine = match self.has(2) {
            true => Box::new(Threads::new(disk.clone(), memory.clone(), spawn).unwrap()),
            false => engine::start(disk, memory, 64, spawn).unwrap(),
        };
        Block::new("disk0", disk.clone(), engine, Arc::default(), 1 + u16::from(self.has(3)))
    }
}

/// What is in a new image.
fn content() -> Vec<u8> {
    (0..IMAGE).map(|at| (at / 512) as u8 ^ at as u8).collect()
}

pub fn run(data: &[u8]) {
    let Some((options, data)) = data.split_first() else { return };
    let options = Options(*options);
    let image = tempfile::tempfile().unwrap();
    image.write_all_at(&content(), 0).unwrap();
    let disk = Arc::new(options.disk(image.try_clone().unwrap()));
    let whole = Cell::new(true);
    let cut = |bytes: &[u8]| {
        whole.set(false);
        image.set_len(1000 * bytes.len().min(30) as u64).unwrap();
    };
    let make = |memory: &_| -> Box<dyn VirtioDevice> { Box::new(options.block(&disk, memory)) };
    drive(data, make, cut, |driver| works(driver, whole.get(), disk.is_read_only()));
    let len = image.metadata().unwrap().len();
    assert!(len <= IMAGE, "the image has {len} bytes");
    if whole.get() {
        let mut now = vec![0; len as usize];
        image.read_exact_at(&mut now, 0).unwrap();
        let guests = if disk.is_read_only() || disk.is_ephemeral() { 0 } else { DISK as usize };
        assert!(now[guests..] == content()[guests..], "the image has changed where the guest may not write");
    }
}

/// Each queue writes a sector and reads it back, if the image is whole; else the driver is told something.
fn works(driver: &mut Driver, whole: bool, read_only: bool) {
    const OUT: u8 = 1;
    const IN: u8 = 0;
    let count = driver.lock().queue_count();
    for queue in 0..count {
        driver.write(BUFFERS + 0x200, &[0x5a; 512]);
        for (kind, at) in [(OUT, BUFFERS + 0x200), (IN, BUFFERS + 0x600)] {
            let header = [kind, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
            driver.write(BUFFERS, &header);
            let head =
                driver.add(queue, &[(BUFFERS, 16, false), (at, 512, kind == IN), (BUFFERS + 0x100, 1, true)]);
            driver.kick(queue);
            driver.lock().drain();
            let used = driver.used(queue);
            assert!(matches!(used[..], [(it, 1 | 513)] if it == head), "queue {queue}: {used:?}");
            let status = driver.read(BUFFERS + 0x100, 1)[0];
            match whole {
                true => assert_eq!(status, u8::from(kind == OUT && read_only)),
                false => assert!(status <= 1, "{status}"),
            }
        }
        if whole && !read_only {
            assert_eq!(driver.read(BUFFERS + 0x600, 512), [0x5a; 512]);
        }
    }
}
