//! pc-testdev's ports that drive interrupt lines, and the one that has the host forget a page.

use super::number;
use crate::bus::BusDevice;

/// An interrupt line's level, for lines that stay up.
pub trait SetLine: Send {
    /// Raises or lowers the line `gsi`. Called with the device's lock held, so it must not block.
    fn set(&self, gsi: u32, up: bool);
}

/// A port a line: a byte other than 0 raises it, 0 lowers it.
pub struct Lines(pub Box<dyn SetLine>);

impl Lines {
    /// How many lines, and ports, there are: those of an I/O APIC.
    pub const LEN: u64 = 24;
}

impl BusDevice for Lines {
    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset < Self::LEN && !data.is_empty() {
            self.0.set(offset as u32, number(data) != 0);
        }
    }
}

/// What maps the guest's memory.
pub trait FlushPage: Send {
    /// Has the host's KVM drop its mapping of the page at the guest-physical address `page`, so that the next access faults;
    /// the page's content is preserved. An address without memory is ignored.
    fn flush(&self, page: u64);
}

/// A register of 32 bits: the page at the address written to it is flushed.
pub struct Flush(pub Box<dyn FlushPage>);

impl Flush {
    /// How many ports it has.
    pub const LEN: u64 = 4;
}

impl BusDevice for Flush {
    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.len() == 4 {
            self.0.flush(u64::from(number(data)) & !0xfff);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::testing::storm;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<(u64, bool)>>>);

    impl Seen {
        fn note(&self, what: (u64, bool)) {
            let mut seen = self.0.lock().unwrap();
            if seen.len() < 64 {
                seen.push(what);
            }
        }
    }

    impl SetLine for Seen {
        fn set(&self, gsi: u32, up: bool) {
            self.note((gsi.into(), up));
        }
    }

    impl FlushPage for Seen {
        fn flush(&self, page: u64) {
            self.note((page, true));
        }
    }

    #[test]
    fn every_port_drives_its_line_and_no_other_does() {
        let seen = Seen::default();
        let mut lines = Lines(Box::new(seen.clone()));
        for gsi in 0..Lines::LEN {
            lines.write(gsi, &[1]);
            lines.write(gsi, &[0]);
            let expected = [(gsi, true), (gsi, false)];
            assert_eq!(*std::mem::take(&mut *seen.0.lock().unwrap()), expected);
        }
        lines.write(3, &[0, 1]);
        assert_eq!(*std::mem::take(&mut *seen.0.lock().unwrap()), [(3, true)]);
        for offset in [Lines::LEN, 1 << 32, u64::MAX] {
            lines.write(offset, &[1]);
        }
        lines.write(0, &[]);
        lines.read(0, &mut [0; 4]);
        assert!(seen.0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_address_flushes_its_page_and_a_part_of_one_nothing() {
        let seen = Seen::default();
        let mut flush = Flush(Box::new(seen.clone()));
        flush.write(0, &0x0012_3456u32.to_le_bytes());
        flush.write(0, &u32::MAX.to_le_bytes());
        flush.write(0, &[0x12, 0x34]);
        flush.write(1, &[0; 4]);
        flush.write(0, &[0; 8]);
        assert_eq!(*seen.0.lock().unwrap(), [(0x12_3000, true), (0xffff_f000, true)]);
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut Lines(Box::new(Seen::default())), Lines::LEN, 23, |_| {});
        storm(&mut Flush(Box::new(Seen::default())), Flush::LEN, 24, |_| {});
    }
}
