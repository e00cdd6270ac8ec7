//! What a driver may try.

use super::*;
use crate::virtio::testing::NEEDS_RESET;

const IOERR: u8 = Status::IoErr as u8;
const UNSUPP: u8 = Status::Unsupp as u8;

#[test]
fn sectors_that_are_not_on_the_disk_are_io_errors_and_change_nothing() {
    with_engines("sectors", |kind| {
        let mut rig = Rig::new(kind);
        for (sector, len) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 512),
            (1 << 55, 512),
            (u64::MAX - 1, 1024),
            (0, 0x8_0000 + 511),
            (0, 1),
            (0, 513),
        ] {
            rig.driver.write(BUFFERS, &[0x11; 1024]);
            assert_eq!(rig.request(VIRTIO_BLK_T_OUT, sector, len), IOERR, "{sector:#x} {len}");
            assert_eq!(rig.request(VIRTIO_BLK_T_IN, sector, len), IOERR, "{sector:#x} {len}");
            assert_eq!(rig.driver.read(BUFFERS, 1024), [0x11; 1024]);
        }
        assert!(contents(&rig.file) == pattern(SECTORS));
        rig.contract();
    });
}

#[test]
fn a_header_may_be_in_pieces_but_must_be_whole_and_readable() {
    with_engines("headers", |kind| {
        let mut rig = Rig::new(kind);
        rig.header(VIRTIO_BLK_T_IN, 3);
        let mut parts: Vec<_> = (0..16).map(|at| (HEADER + at, 1, false)).collect();
        parts.extend([(BUFFERS, 512, true), (STATUS, 1, true)]);
        assert_eq!(rig.raw(&parts), Some((0, 513)));
        assert_eq!(rig.driver.read(BUFFERS, 512), pattern(SECTORS)[3 * 512..4 * 512]);
        for parts in [
            vec![(HEADER, 15, false), (BUFFERS, 512, true), (STATUS, 1, true)],
            vec![(HEADER, 16, true), (BUFFERS, 512, true), (STATUS, 1, true)],
            vec![(STATUS, 1, true)],
            vec![(HEADER, 16, false), (STATUS, 1, true)],
            vec![(HEADER, 16, false), (BUFFERS, 0, true), (STATUS, 1, true)],
        ] {
            rig.header(VIRTIO_BLK_T_IN, 0);
            assert_eq!(rig.raw(&parts), Some((IOERR, 1)), "{parts:x?}");
        }
        rig.contract();
    });
}

#[test]
fn a_chain_without_room_for_a_status_needs_a_reset() {
    with_engines("no status", |kind| {
        let mut rig = Rig::new(kind);
        for parts in [
            vec![(HEADER, 16, false)],
            vec![(HEADER, 16, false), (BUFFERS, 512, false), (STATUS, 1, false)],
            vec![(HEADER, 16, false), (STATUS, 0, true)],
        ] {
            rig.header(VIRTIO_BLK_T_OUT, 0);
            rig.driver.interrupts();
            assert_eq!(rig.raw(&parts), None);
            assert_eq!(rig.driver.status() & NEEDS_RESET, NEEDS_RESET);
            assert_eq!(rig.driver.interrupts(), 1);
            rig.contract();
        }
        assert!(contents(&rig.file) == pattern(SECTORS));
    });
}

#[test]
fn the_status_is_the_last_writable_byte() {
    with_engines("status", |kind| {
        let mut rig = Rig::new(kind);
        rig.header(VIRTIO_BLK_T_OUT, 0);
        rig.driver.write(STATUS - 7, &[NOT_WRITTEN; 16]);
        let parts = [(HEADER, 16, false), (BUFFERS, 512, false), (STATUS - 7, 8, true)];
        assert_eq!(rig.raw(&parts).unwrap().0, 0);
        assert_eq!(rig.driver.read(STATUS - 7, 7), [NOT_WRITTEN; 7]);
        assert_eq!(rig.driver.read(STATUS + 1, 8), [NOT_WRITTEN; 8]);
        rig.header(VIRTIO_BLK_T_IN, 0);
        let parts = [(HEADER, 16, false), (BUFFERS, 512, true), (STATUS - 7, 8, true)];
        assert_eq!(rig.raw(&parts), Some((IOERR, 1)));
        rig.contract();
    });
}

#[test]
fn types_that_the_device_does_not_know_are_unsupported() {
    with_engines("types", |kind| {
        let mut rig = Rig::new(kind);
        for unknown in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x8000_0000, 0x8000_0001, u32::MAX] {
            assert_eq!(rig.request(unknown, 0, 512), UNSUPP, "{unknown:#x}");
        }
        assert!(contents(&rig.file) == pattern(SECTORS));
        rig.contract();
    });
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    with_engines("read-only", |kind| {
        let mut rig = Rig::with(kind, Disk::read_only);
        assert_eq!(rig.driver.offered() >> VIRTIO_BLK_F_RO & 1, 1);
        assert_eq!(rig.write(0, &[1; 512]), IOERR);
        assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &[(0, 1, 0)]), UNSUPP);
        assert_eq!(rig.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0)]), UNSUPP);
        assert_eq!(rig.read(5, 2), pattern(SECTORS)[5 * 512..7 * 512]);
        assert!(contents(&rig.file) == pattern(SECTORS));
        rig.contract();
    });
}

#[test]
fn bad_segments_change_nothing() {
    with_engines("segments", |kind| {
        let mut rig = Rig::new(kind);
        let good = (0, 8, 0);
        for (clear, most) in [(VIRTIO_BLK_T_DISCARD, MAX_DISCARD), (VIRTIO_BLK_T_WRITE_ZEROES, MAX_ZEROES)] {
            for bad in
                [(SECTORS, 1, 0), (u64::MAX, 2, 0), (SECTORS - 1, 2, 0), (0, u32::MAX, 0), (0, most + 1, 0)]
            {
                assert_eq!(rig.clear(clear, &[good, bad]), IOERR, "{bad:x?}");
            }
            for flags in [2, 0x8000_0000, u32::MAX] {
                assert_eq!(rig.clear(clear, &[good, (0, 1, flags)]), UNSUPP, "{flags:#x}");
            }
            assert_eq!(rig.clear(clear, &[good; MAX_SEGMENTS as usize + 1]), IOERR);
            for len in [0, 1, 15, 17] {
                assert_eq!(rig.request(clear, 0, len), IOERR, "{len}");
            }
        }
        assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &[(0, 1, 1)]), UNSUPP);
        assert!(contents(&rig.file) == pattern(SECTORS));
        rig.driver.start(0);
        assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &[good]), UNSUPP);
        assert_eq!(rig.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[good]), UNSUPP);
        assert!(contents(&rig.file) == pattern(SECTORS));
        rig.contract();
    });
}

#[test]
fn an_empty_disk_has_no_sector() {
    with_engines("empty", |kind| {
        let file = image(&[]);
        let disk = Arc::new(Disk::new(file.try_clone().unwrap(), 511));
        let mut rig = Rig::of(kind, disk, file);
        assert_eq!(rig.driver.config(0, 8), [0; 8]);
        for request in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            assert_eq!(rig.request(request, 0, 512), IOERR);
            assert_eq!(rig.request(request, 0, 0), IOERR);
        }
        assert_eq!(rig.file.metadata().unwrap().len(), 0);
        rig.contract();
    });
}

#[test]
fn a_file_cut_short_under_the_guest_is_an_io_error() {
    with_engines("truncated", |kind| {
        let mut rig = Rig::new(kind);
        rig.file.set_len(10 * 512 + 100).unwrap();
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 9, 512), 0);
        for (sector, len) in [(10, 512), (9, 1024), (SECTORS - 1, 512)] {
            assert_eq!(rig.request(VIRTIO_BLK_T_IN, sector, len), IOERR);
        }
        rig.contract();
    });
}

#[test]
fn a_full_host_is_an_io_error() {
    with_engines("ENOSPC", |kind| {
        let file = File::options().read(true).write(true).open("/dev/full").unwrap();
        let disk = Arc::new(Disk::new(file, SECTORS * SECTOR));
        let mut rig = Rig::of(kind, disk, image(&[]));
        assert_eq!(rig.write(0, &[1; 512]), IOERR);
        rig.restart();
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, 512), 0);
    });
}

/// An engine that never ends anything.
struct Held {
    jobs: Vec<Job>,
    fd: File,
}

impl Engine for Held {
    fn push(&mut self, job: Job) {
        self.jobs.push(job);
    }
    fn submit(&mut self) {}
    fn completed(&mut self) -> Option<(Job, io::Result<usize>)> {
        None
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn wait(&mut self) {}
    fn source(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[test]
fn a_head_in_flight_is_refused() {
    let file = image(&pattern(SECTORS));
    let disk = Arc::new(Disk::new(file.try_clone().unwrap(), SECTORS * SECTOR));
    let mut driver = Driver::new(|_| {
        let engine = Box::new(Held { jobs: Vec::new(), fd: file.try_clone().unwrap() });
        Box::new(Block::new("disk0", disk, engine, Arc::default(), 1))
    });
    driver.start(FEATURES);
    let mut rig = Rig { driver, file };
    rig.header(VIRTIO_BLK_T_IN, 0);
    let head = rig.driver.add(0, &[(HEADER, 16, false), (BUFFERS, 512, true), (STATUS, 1, true)]);
    rig.driver.kick(0);
    assert_eq!((rig.driver.status() & NEEDS_RESET, rig.driver.used_index(0)), (0, 0));
    rig.driver.offer(0, head);
    rig.driver.kick(0);
    assert_eq!((rig.driver.status() & NEEDS_RESET, rig.driver.used_index(0)), (NEEDS_RESET, 0));
}

#[test]
fn a_reset_with_requests_in_flight_leaves_them_without_a_word() {
    with_engines("reset", |kind| {
        let mut rig = Rig::new(kind);
        for _ in 0..50 {
            rig.header(VIRTIO_BLK_T_FLUSH, 0);
            let heads: Vec<_> =
                (0..16).map(|_| rig.driver.add(0, &[(HEADER, 16, false), (STATUS, 1, true)])).collect();
            rig.driver.kick(0);
            assert_eq!(heads.len(), 16);
            rig.driver.set(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
            rig.driver.interrupts();
            let (used, ram) = (rig.driver.used_index(0), rig.driver.read(0, 0x10_0000));
            rig.driver.serve_source(0);
            rig.driver.serve();
            assert_eq!((rig.driver.used_index(0), rig.driver.interrupts()), (used, 0));
            assert!(rig.driver.read(0, 0x10_0000) == ram);
            rig.restart();
        }
        rig.contract();
    });
}
