//! Routes a guest's access to the device that owns the address. One [`Bus`] is one address space: ports or memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device that answers reads and writes in one range of a guest address space.
///
/// It does not know where it sits: it sees offsets into its own range. A guest may send any offset and
/// any length, so these neither fail nor panic.
pub trait BusDevice: Send {
    /// Fills all of `data` with what the guest reads at `offset`, in bytes from the start of the range; a device that is
    /// only written reads as nothing.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// Takes what the guest wrote at `offset`, in bytes from the start of the range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that all vCPUs and the host side share. While the lock is held, the device is still.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Where the last access went, as the next one often does. Each vCPU has its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint(usize);

/// Why a range is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The range has no addresses or goes past the last one there is.
    #[error("{len:#x} bytes at {start:#x} are no address range")]
    Range {
        /// The first address.
        start: u64,
        /// The length in bytes.
        len: u64,
    },
    /// Another device owns a part of the range.
    #[error("{start:#x} to {last:#x} overlaps another device")]
    Overlap {
        /// The first address.
        start: u64,
        /// The last address.
        last: u64,
    },
}

struct Range {
    start: u64,
    last: u64,
    /// The address that the device sees as offset 0.
    origin: u64,
    device: SharedDevice,
    /// What people call it.
    name: Option<String>,
}

impl Range {
    #[inline]
    fn contains(&self, address: u64) -> bool {
        self.start <= address && address <= self.last
    }

    /// The device, still.
    #[inline]
    fn lock(&self) -> MutexGuard<'_, dyn BusDevice + 'static> {
        // A device that panicked under its lock is one device less, not the end of the other vCPUs.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One address space. Filled while the machine is built, then only read.
///
/// An access goes whole to the device that owns its first byte, even where it runs past the end of the
/// device's range: that device answers for the bytes beyond, and the next one never sees them. An access
/// whose first byte is no device's reads as all ones or is lost, even where it runs into a device.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address, and never two of one address.
    ranges: Vec<Range>,
}

impl Bus {
    /// Gives `len` bytes from `start` to `device`.
    ///
    /// # Errors
    /// The range is empty, wraps around, or meets one that is taken.
    pub fn insert(&mut self, start: u64, len: u64, device: SharedDevice) -> Result<(), Error> {
        self.insert_part(start, start, len, device)
    }

    /// Gives `len` bytes from `start` to `device`, which counts its offsets from `origin`: one of several ranges with
    /// another device's addresses between them.
    ///
    /// # Errors
    /// As [`Self::insert`], or the range begins before its origin.
    pub fn insert_part(
        &mut self,
        origin: u64,
        start: u64,
        len: u64,
        device: SharedDevice,
    ) -> Result<(), Error> {
        let last = len.checked_sub(1).and_then(|beyond| start.checked_add(beyond));
        let last = last.filter(|_| origin <= start).ok_or(Error::Range { start, len })?;
        let index = self.ranges.partition_point(|range| range.last < start);
        if self.ranges.get(index).is_some_and(|next| next.start <= last) {
            return Err(Error::Overlap { start, last });
        }
        self.ranges.insert(index, Range { start, last, origin, device, name: None });
        Ok(())
    }

    /// Says what people call the device at `address`; nothing happens if none is there.
    pub fn set_name(&mut self, address: u64, name: impl Into<String>) {
        let owns = |range: &&mut Range| (range.start..=range.last).contains(&address);
        if let Some(range) = self.ranges.iter_mut().find(owns) {
            range.name = Some(name.into());
        }
    }

    /// What people call the device that owns `address`, if it has been said.
    pub fn name(&self, address: u64) -> Option<&str> {
        self.ranges.get(self.find(address)?)?.name.as_deref()
    }

    /// Reads from the device at `address`; an empty address reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.read_near(&mut Hint::default(), address, data);
    }

    /// Writes to the device at `address`; what is written to an empty address is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.write_near(&mut Hint::default(), address, data);
    }

    /// As [`Self::read`], looking first where `hint` says.
    pub fn read_near(&self, hint: &mut Hint, address: u64, data: &mut [u8]) {
        match self.ranges.get(hint.0).filter(|range| range.contains(address)) {
            Some(range) => range.lock().read(address - range.origin, data),
            None => self.read_elsewhere(hint, address, data),
        }
    }

    /// As [`Self::write`], looking first where `hint` says.
    pub fn write_near(&self, hint: &mut Hint, address: u64, data: &[u8]) {
        match self.ranges.get(hint.0).filter(|range| range.contains(address)) {
            Some(range) => range.lock().write(address - range.origin, data),
            None => self.write_elsewhere(hint, address, data),
        }
    }

    #[inline(never)]
    fn read_elsewhere(&self, hint: &mut Hint, address: u64, data: &mut [u8]) {
        match self.search(hint, address) {
            Some(range) => range.lock().read(address - range.origin, data),
            None => data.fill(0xff),
        }
    }

    #[inline(never)]
    fn write_elsewhere(&self, hint: &mut Hint, address: u64, data: &[u8]) {
        if let Some(range) = self.search(hint, address) {
            range.lock().write(address - range.origin, data);
        }
    }

    /// The range that `address` is in, which the hint does not name. If there is none, it names the range behind from
    /// now on: a guest that polls an empty address finds that at once, too.
    #[inline]
    fn search(&self, hint: &mut Hint, address: u64) -> Option<&Range> {
        let before = hint.0.checked_sub(1).map(|before| self.ranges.get(before));
        let between = before.is_none_or(|before| before.is_some_and(|range| range.last < address))
            && self.ranges.get(hint.0).is_none_or(|range| address < range.start);
        if between {
            return None;
        }
        hint.0 = self.ranges.partition_point(|range| range.last < address);
        self.ranges.get(hint.0).filter(|range| range.start <= address)
    }

    /// The index of the range that `address` is in.
    fn find(&self, address: u64) -> Option<usize> {
        let index = self.ranges.partition_point(|range| range.last < address);
        self.ranges.get(index).filter(|range| range.start <= address).map(|_| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Answers its number in every byte and records the accesses.
    #[derive(Default)]
    struct Probe {
        number: u8,
        asked: Vec<(u64, usize)>,
    }

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.asked.push((offset, data.len()));
            data.fill(self.number);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.asked.push((offset, data.len()));
            self.number = data[0];
        }
    }

    fn probe(number: u8) -> Arc<Mutex<Probe>> {
        Arc::new(Mutex::new(Probe { number, asked: Vec::new() }))
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn an_access_reaches_the_device_that_owns_the_address() {
        let mut bus = Bus::default();
        for (start, number) in [(0x14, 9), (0x10, 1), (0x40, 5)] {
            bus.insert(start, 4, probe(number)).unwrap();
        }
        let seen: Vec<u8> = [0x10, 0x13, 0x14, 0x17, 0x40, 0x43].map(|at| read(&bus, at)).into();
        assert_eq!(seen, [1, 1, 9, 9, 5, 5]);
        bus.write(0x12, &[7]);
        assert_eq!([read(&bus, 0x10), read(&bus, 0x14)], [7, 9]);
    }

    #[test]
    fn empty_addresses_read_as_ones_and_lose_writes() {
        let mut bus = Bus::default();
        assert_eq!(read(&bus, 0), 0xff);
        let device = probe(1);
        bus.insert(0x10, 4, device.clone()).unwrap();
        for address in [0, 0xf, 0x14, u64::MAX] {
            let mut data = [0; 8];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 8], "{address:#x}");
            bus.write(address, &data);
        }
        assert!(device.lock().unwrap().asked.is_empty());
    }

    #[test]
    fn an_access_over_the_end_goes_whole_to_the_first_device() {
        let mut bus = Bus::default();
        let (first, second) = (probe(1), probe(2));
        bus.insert(0x10, 4, first.clone()).unwrap();
        bus.insert(0x14, 4, second.clone()).unwrap();
        bus.read(0x12, &mut [0; 8]);
        bus.write(0x13, &[0; 4]);
        assert_eq!(first.lock().unwrap().asked, [(2, 8), (3, 4)]);
        assert!(second.lock().unwrap().asked.is_empty());
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x10, 4, probe(0)).unwrap();
        for (start, len) in [(0x10, 4), (0xf, 2), (0x13, 1), (0, 0x100), (0x11, 2), (0, u64::MAX)] {
            let error = bus.insert(start, len, probe(0)).unwrap_err();
            assert_eq!(error, Error::Overlap { start, last: start + len - 1 });
        }
        for (start, len) in [(0x20, 0), (u64::MAX, 2), (2, u64::MAX)] {
            assert_eq!(bus.insert(start, len, probe(0)).unwrap_err(), Error::Range { start, len });
        }
        for (start, len) in [(0x14, 1), (0xf, 1), (u64::MAX, 1), (0, 0xf)] {
            bus.insert(start, len, probe(0)).unwrap();
        }
    }

    #[test]
    fn parts_of_a_device_share_its_offsets_around_another() {
        let mut bus = Bus::default();
        let (outer, inner) = (probe(1), probe(2));
        bus.insert_part(0x60, 0x60, 1, outer.clone()).unwrap();
        bus.insert_part(0x60, 0x64, 1, outer.clone()).unwrap();
        bus.insert(0x61, 1, inner).unwrap();
        let seen: Vec<u8> = (0x60..0x66).map(|at| read(&bus, at)).collect();
        assert_eq!(seen, [1, 2, 0xff, 0xff, 1, 0xff]);
        assert_eq!(outer.lock().unwrap().asked, [(0, 1), (4, 1)]);
        let error = bus.insert_part(0x70, 0x6f, 1, outer).unwrap_err();
        assert_eq!(error, Error::Range { start: 0x6f, len: 1 });
    }

    #[test]
    fn a_name_goes_for_the_whole_range_and_no_other() {
        let mut bus = Bus::default();
        bus.insert(0x10, 4, probe(0)).unwrap();
        bus.insert(0x14, 4, probe(0)).unwrap();
        bus.set_name(0x12, "probe");
        bus.set_name(0x20, "nobody");
        let names = [0xf, 0x10, 0x13, 0x14, 0x20].map(|address| bus.name(address));
        assert_eq!(names, [None, Some("probe"), Some("probe"), None, None]);
    }

    #[test]
    fn a_device_that_panicked_does_not_take_the_bus_along() {
        let mut bus = Bus::default();
        let device = probe(3);
        bus.insert(0, 1, device.clone()).unwrap();
        let poisoner = device.clone();
        std::thread::spawn(move || {
            let _held = poisoner.lock();
            panic!("on purpose");
        })
        .join()
        .unwrap_err();
        assert!(device.is_poisoned());
        assert_eq!(read(&bus, 0), 3);
        bus.write(0, &[4]);
        assert_eq!(read(&bus, 0), 4);
    }

    #[test]
    fn random_maps_agree_with_a_table_of_every_address() {
        let mut random = Random::new(1);
        for _ in 0..200 {
            let mut bus = Bus::default();
            let mut owners = [0xff; 256];
            for number in 0..20 {
                let (start, len) = (random.below(250), random.below(20));
                let wanted = start as usize..(start + len).min(256) as usize;
                let free = len > 0 && owners[wanted.clone()].iter().all(|owner| *owner == 0xff);
                assert_eq!(bus.insert(start, len, probe(number)).is_ok(), free);
                if free {
                    owners[wanted].fill(number);
                }
            }
            for (address, owner) in owners.iter().enumerate() {
                assert_eq!(read(&bus, address as u64), *owner);
            }
            let mut hint = Hint::default();
            for _ in 0..100 {
                let (address, mut data) = (random.below(256), [0]);
                bus.read_near(&mut hint, address, &mut data);
                assert_eq!(data[0], owners[address as usize]);
            }
        }
    }
}
