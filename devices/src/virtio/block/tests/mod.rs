//! Tests, each with both engines: `hostile` is what a driver may try, `data` what must be true of the bytes.

mod copies;
mod data;
mod hostile;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::disk::Disk;
use super::engine::Engine;
use super::threads::Threads;
use super::uring::Uring;
use super::*;
use crate::GuestMemory;
use crate::virtio::pool::Spawn;
use crate::virtio::testing::{BUFFERS, Driver};

/// Where a test's requests have header and status.
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const NOT_WRITTEN: u8 = 0xee;
const SECTORS: u64 = 2048;
const FEATURES: u64 = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

fn spawn() -> Spawn {
    Box::new(|work| std::thread::Builder::new().spawn(work).map(drop))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Uring,
    Threads,
    /// A host that makes no thread.
    NoThreads,
}

impl Kind {
    fn engine(self, disk: &Arc<Disk>, memory: &GuestMemory) -> io::Result<Box<dyn Engine>> {
        let (disk, memory) = (disk.clone(), memory.clone());
        Ok(match self {
            Self::Uring => Box::new(Uring::new(disk, memory, 256)?),
            Self::Threads => Box::new(Threads::new(disk, memory, spawn())?),
            Self::NoThreads => {
                Box::new(Threads::new(disk, memory, Box::new(|_| Err(io::ErrorKind::WouldBlock.into())))?)
            }
        })
    }
}

/// Runs a test with each engine that this host has.
fn with_engines(name: &str, test: impl Fn(Kind)) {
    for kind in [Kind::Threads, Kind::NoThreads, Kind::Uring] {
        let probe = kind.engine(
            &Arc::new(Disk::new(tempfile::tempfile().unwrap(), 0)),
            &crate::virtio::testing::memory(),
        );
        match probe {
            Ok(_) => test(kind),
            Err(error) => println!("skipped: {name} ({kind:?}): {error}"),
        }
    }
}

/// Bytes that differ from sector to sector.
fn pattern(sectors: u64) -> Vec<u8> {
    (0..sectors * SECTOR).map(|at| (at / SECTOR * 7 + at) as u8).collect()
}

fn image(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
    file
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

/// A driver of a disk.
struct Rig {
    driver: Driver,
    file: File,
}

impl Rig {
    fn new(kind: Kind) -> Self {
        Self::with(kind, |disk| disk)
    }

    fn with(kind: Kind, change: impl FnOnce(Disk) -> Disk) -> Self {
        let file = image(&pattern(SECTORS));
        let disk = Arc::new(change(Disk::new(file.try_clone().unwrap(), SECTORS * SECTOR)));
        Self::of(kind, disk, file)
    }

    fn of(kind: Kind, disk: Arc<Disk>, file: File) -> Self {
        let mut driver = Driver::new(|memory| {
            let engine = kind.engine(&disk, memory).unwrap();
            Box::new(Block::new("disk0", disk.clone(), engine, Arc::default(), 1))
        });
        let features = driver.offered() & FEATURES;
        driver.start(features);
        Self { driver, file }
    }

    fn restart(&mut self) {
        let features = self.driver.offered() & FEATURES;
        self.driver.start(features);
    }

    /// Writes a header.
    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.write(HEADER, &header);
        self.driver.write(STATUS, &[NOT_WRITTEN]);
    }

    /// Waits until a request ends; returns the used length, or nothing once the device needs a reset.
    fn ended(&mut self) -> Option<u32> {
        loop {
            if let Some((_, len)) = self.driver.used(0).pop() {
                return Some(len);
            }
            if self.driver.status() & crate::virtio::testing::NEEDS_RESET != 0 {
                return None;
            }
            self.wait();
        }
    }

    /// Waits for the device's source as its thread would.
    fn wait(&mut self) {
        {
            let virtio = self.driver.lock();
            let sources = virtio.device().sources();
            let mut fds = [PollFd::new(sources[0].fd.as_fd(), PollFlags::POLLIN)];
            let _interrupted = poll(&mut fds, PollTimeout::from(100u8));
        }
        self.driver.serve_source(0);
    }

    /// Does one chain as it is; returns the status byte and the used length.
    fn raw(&mut self, parts: &[(u64, u32, bool)]) -> Option<(u8, u32)> {
        self.driver.add(0, parts);
        self.driver.kick(0);
        let len = self.ended()?;
        Some((self.driver.read(STATUS, 1)[0], len))
    }

    /// Does a request with data at [`BUFFERS`].
    fn request(&mut self, kind: u32, sector: u64, len: u32) -> u8 {
        self.header(kind, sector);
        let data = (BUFFERS, len, matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID));
        let mut parts = vec![(HEADER, 16, false), data, (STATUS, 1, true)];
        parts.retain(|part| part.1 > 0);
        self.raw(&parts).expect("the device wants a reset").0
    }

    fn read(&mut self, sector: u64, sectors: u64) -> Vec<u8> {
        let len = (sectors * SECTOR) as u32;
        assert_eq!(self.request(VIRTIO_BLK_T_IN, sector, len), 0);
        self.driver.read(BUFFERS, len as usize)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.driver.write(BUFFERS, bytes);
        self.request(VIRTIO_BLK_T_OUT, sector, bytes.len() as u32)
    }

    /// Does a DISCARD or WRITE_ZEROES of segments: sector, sectors, flags.
    fn clear(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in segments {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.driver.write(BUFFERS, &bytes);
        self.request(kind, 0, bytes.len() as u32)
    }

    /// What must hold after whatever was done: a driver that starts anew is served.
    fn contract(&mut self) {
        let before = contents(&self.file);
        self.restart();
        let capacity = u64::from_le_bytes(self.driver.config(0, 8).try_into().unwrap());
        assert_eq!(self.request(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
        if capacity > 0 {
            let first = self.read(0, 1);
            assert_eq!(self.read(0, 1), first);
        }
        assert!(contents(&self.file) == before);
    }
}
