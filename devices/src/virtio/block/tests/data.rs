//! What must be true of the bytes.

use super::*;
use crate::device::Device as _;

/// xorshift: the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Does random requests, and keeps in `model` what the disk must hold.
fn exercise(rig: &mut Rig, model: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    for _ in 0..300 {
        let sector = random.below(SECTORS);
        let sectors = 1 + random.below((SECTORS - sector).min(64));
        let range = (sector * SECTOR) as usize..((sector + sectors) * SECTOR) as usize;
        match random.below(6) {
            0 | 1 => assert!(rig.read(sector, sectors) == model[range], "{sector}+{sectors}"),
            2 | 3 => {
                let byte = random.below(256) as u8;
                let bytes: Vec<_> = (0..range.len()).map(|at| byte ^ (at / 100) as u8).collect();
                assert_eq!(rig.write(sector, &bytes), 0);
                model[range].copy_from_slice(&bytes);
            }
            4 => {
                let unmap = random.below(2) as u32;
                let half = sectors / 2;
                let segments =
                    [(sector, half as u32, unmap), (sector + half, (sectors - half) as u32, unmap)];
                assert_eq!(rig.clear(VIRTIO_BLK_T_WRITE_ZEROES, &segments), 0);
                model[range].fill(0);
            }
            _ => {
                assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &[(sector, sectors as u32, 0)]), 0);
                // Anything may be there now; the hosts that this runs on make holes.
                model[range.clone()].copy_from_slice(&rig.read(sector, sectors));
            }
        }
    }
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
    for (sector, expected) in (0..SECTORS).step_by(64).zip(model.chunks(64 * 512)) {
        assert!(rig.read(sector, 64) == expected, "from sector {sector}");
    }
}

#[test]
fn random_requests_do_to_the_image_what_they_say() {
    with_engines("random", |kind| {
        let mut rig = Rig::new(kind);
        let mut model = pattern(SECTORS);
        exercise(&mut rig, &mut model, 42);
        assert!(contents(&rig.file) == model);
        rig.contract();
    });
}

#[test]
fn an_ephemeral_disk_keeps_its_writes_over_a_reboot_and_its_image_never_changes() {
    with_engines("ephemeral", |kind| {
        let file = image(&pattern(SECTORS));
        let disk = Disk::new(file.try_clone().unwrap(), SECTORS * SECTOR);
        let disk = Arc::new(disk.ephemeral(tempfile::tempfile().unwrap()).unwrap());
        let mut model = pattern(SECTORS);
        for seed in [1, 2] {
            let mut rig = Rig::of(kind, disk.clone(), file.try_clone().unwrap());
            assert!(rig.read(0, 1024) == model[..1024 * 512]);
            exercise(&mut rig, &mut model, seed);
            assert!(contents(&file) == pattern(SECTORS));
            rig.contract();
        }
    });
}

#[test]
fn around_the_page_cache_unaligned_requests_work_too() {
    const DIRECT: &str = "around_the_page_cache_unaligned_requests_work_too";
    with_engines(DIRECT, |kind| {
        use std::os::unix::fs::OpenOptionsExt;
        // Where anybody may write, and which is on a disk, as /tmp need not be.
        let named = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(named.path(), pattern(SECTORS)).unwrap();
        let file = File::options().read(true).write(true).open(named.path()).unwrap();
        let direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(named.path());
        let direct = match direct {
            Ok(direct) => direct,
            Err(error) => return println!("skipped: {DIRECT} ({kind:?}): no O_DIRECT here: {error}"),
        };
        for align in [1, 4096] {
            let disk = Disk::new(file.try_clone().unwrap(), SECTORS * SECTOR);
            let disk = Arc::new(disk.direct(direct.try_clone().unwrap(), align));
            let mut rig = Rig::of(kind, disk, file.try_clone().unwrap());
            let mut model = contents(&file);
            exercise(&mut rig, &mut model, 7);
            // A buffer at an odd address.
            rig.header(VIRTIO_BLK_T_IN, 8);
            let parts = [(HEADER, 16, false), (BUFFERS + 1, 4096, true), (STATUS, 1, true)];
            assert_eq!(rig.raw(&parts), Some((0, 4097)));
            assert!(rig.driver.read(BUFFERS + 1, 4096) == model[4096..8192]);
            assert!(contents(&file) == model);
            rig.contract();
        }
    });
}

#[test]
fn discarded_sectors_give_their_space_back() {
    with_engines("holes", |kind| {
        use std::os::unix::fs::MetadataExt;
        let mut rig = Rig::new(kind);
        let before = rig.file.metadata().unwrap().blocks();
        let segments = [(0, 1024, 0), (1024, 1024, 0)];
        assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &segments), 0);
        let after = rig.file.metadata().unwrap();
        assert!(after.blocks() < before / 2, "{} of {before}", after.blocks());
        assert_eq!(after.len(), SECTORS * SECTOR);
        assert!(contents(&rig.file).iter().all(|byte| *byte == 0));
        rig.contract();
    });
}

#[test]
fn the_configuration_space_tells_of_the_disk() {
    with_engines("config", |kind| {
        let mut rig = Rig::with(kind, |disk| disk.with_serial("a serial"));
        let field = |driver: &mut Driver, at, len| {
            driver.config(at, len).iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        for (at, len, expected) in [
            (0, 8, SECTORS),
            (12, 4, 254),
            (20, 4, 512),
            (24, 1, 3),
            (26, 2, 8),
            (34, 2, 1),
            (36, 4, MAX_DISCARD.into()),
            (40, 4, MAX_SEGMENTS.into()),
            (44, 4, 8),
            (48, 4, MAX_ZEROES.into()),
            (52, 4, MAX_SEGMENTS.into()),
            (56, 1, 1),
            (57, 8, 0),
        ] {
            assert_eq!(field(&mut rig.driver, at, len), expected, "at {at}");
        }
        assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, 20), 0);
        assert_eq!(rig.driver.read(BUFFERS, 20), *b"a serial\0\0\0\0\0\0\0\0\0\0\0\0");
        rig.contract();
    });
}

#[test]
fn a_discard_of_what_was_never_written_leaves_no_trace_of_an_ephemeral_disk() {
    // Sectors enough for a leaf of the map a discard: every one of 32 segments begins another.
    const LEAF: u64 = 4096;
    with_engines("discards", |kind| {
        let bytes = pattern(SECTORS);
        let file = image(&bytes);
        file.set_len(4096 * LEAF * SECTOR).unwrap();
        let scratch = tempfile::tempfile().unwrap();
        let disk = Disk::new(file.try_clone().unwrap(), 4096 * LEAF * SECTOR);
        let disk = Arc::new(disk.ephemeral(scratch.try_clone().unwrap()).unwrap());
        let mut rig = Rig::of(kind, disk.clone(), file);
        for first in (0..4096).step_by(32) {
            let segments: Vec<_> = (first..first + 32).map(|leaf| (leaf * LEAF + 5, 3, 0)).collect();
            assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &segments), 0);
        }
        assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &[(0, MAX_DISCARD, 0)]), 0);
        assert_eq!(disk.written().unwrap().leaves(), 0);
        assert!(rig.read(0, 64) == bytes[..64 * 512], "it is as it was");
        // What was written among it is given back, and nothing else changes.
        assert_eq!(rig.write(10, &[7; 512]), 0);
        assert_eq!(rig.write(20, &[7; 1024]), 0);
        assert_eq!(rig.clear(VIRTIO_BLK_T_DISCARD, &[(0, MAX_DISCARD, 0)]), 0);
        let mut expected = bytes[..64 * 512].to_vec();
        expected[10 * 512..11 * 512].fill(0);
        expected[20 * 512..22 * 512].fill(0);
        assert!(rig.read(0, 64) == expected);
        assert_eq!(disk.written().unwrap().leaves(), 1);
        // Zeros, which must be there afterwards, are written.
        assert_eq!(rig.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[(LEAF, 8, 1)]), 0);
        assert_eq!(disk.written().unwrap().leaves(), 2);
        assert!(rig.read(LEAF, 8) == [0; 8 * 512]);
    });
}

#[test]
fn the_used_length_is_what_was_written() {
    with_engines("used", |kind| {
        let mut rig = Rig::with(kind, |disk| disk.with_serial("a serial"));
        // Room for data, and the length that is used beside the status.
        let cases = [
            (VIRTIO_BLK_T_GET_ID, 0, 0),
            (VIRTIO_BLK_T_GET_ID, 7, 7),
            (VIRTIO_BLK_T_GET_ID, 20, 20),
            (VIRTIO_BLK_T_GET_ID, 4096, 20),
            (VIRTIO_BLK_T_FLUSH, 0, 0),
            (VIRTIO_BLK_T_FLUSH, 512, 0),
            (VIRTIO_BLK_T_IN, 512, 512),
        ];
        for (what, room, used) in cases {
            rig.header(what, 0);
            let mut parts = vec![(HEADER, 16, false), (BUFFERS, room, true), (STATUS, 1, true)];
            parts.retain(|part| part.1 > 0);
            assert_eq!(rig.raw(&parts), Some((0, used + 1)), "{what} with room for {room}");
        }
        // A write writes nothing into the chain, whatever room there is.
        rig.header(VIRTIO_BLK_T_OUT, 0);
        let parts = [(HEADER, 16, false), (BUFFERS, 512, false), (BUFFERS, 512, true), (STATUS, 1, true)];
        assert_eq!(rig.raw(&parts), Some((0, 1)));
    });
}

#[test]
fn a_whole_queue_of_requests_goes_through() {
    with_engines("batch", |kind| {
        let mut rig = Rig::new(kind);
        let before = rig.driver.used_index(0);
        for at in 0..21 {
            let header = HEADER + 16 * at;
            rig.driver.write(header, &[0; 16]);
            rig.driver.write(header + 8, &at.to_le_bytes());
            let data = (BUFFERS + at * 512, 512, true);
            rig.driver.add(0, &[(header, 16, false), data, (STATUS + at, 1, true)]);
        }
        rig.driver.kick(0);
        while rig.driver.used_index(0).wrapping_sub(before) < 21 {
            rig.wait();
        }
        assert_eq!(rig.driver.read(STATUS, 21), [0; 21]);
        assert!(rig.driver.read(BUFFERS, 21 * 512) == pattern(SECTORS)[..21 * 512]);
    });
}

#[test]
fn an_ephemeral_disk_is_saved_only_as_long_as_it_is_its_image() {
    with_engines("saved", |kind| {
        let mut rig = Rig::with(kind, |disk| disk.ephemeral(tempfile::tempfile().unwrap()).unwrap());
        rig.driver.lock().save().unwrap();
        assert_eq!(rig.write(0, &[1; 512]), 0);
        let refused = rig.driver.lock().save().unwrap_err().to_string();
        assert!(refused.contains("ephemeral"), "{refused}");
        rig.contract();
    });
}
