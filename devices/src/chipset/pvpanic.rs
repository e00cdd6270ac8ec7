//! The pvpanic device: a port by which a guest's kernel reports its panic (QEMU `docs/specs/pvpanic.rst`, "ISA Bus").

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::chipset::power::{PowerSwitch, Request};
use crate::device::Device;

/// How many ports the device takes.
pub const LEN: u64 = 1;

/// The guest has panicked.
const PANICKED: u8 = 1 << 0;
/// The guest has panicked, and handles that itself: its crash kernel will run.
const CRASH_LOADED: u8 = 1 << 1;
/// The guest has shut down, and wants to be powered off.
const SHUTDOWN: u8 = 1 << 2;

/// One byte: reads give the events that the device knows, writes report those that have happened, to the switch.
pub struct PvPanic(pub Arc<dyn PowerSwitch>);

impl Device for PvPanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset < LEN { PANICKED | CRASH_LOADED | SHUTDOWN } else { 0xff });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data.iter().filter(|_| offset < LEN) {
            let events = [
                (PANICKED, Request::Panicked),
                (CRASH_LOADED, Request::CrashLoaded),
                (SHUTDOWN, Request::PowerOff),
            ];
            for (_, request) in events.into_iter().filter(|(event, _)| byte & event != 0) {
                self.0.request(request);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Switch, storm};

    fn requests(offset: u64, data: &[u8]) -> Vec<Request> {
        let switch = Arc::new(Switch::default());
        PvPanic(switch.clone()).write(offset, data);
        switch.taken()
    }

    #[test]
    fn each_event_is_told_and_no_other() {
        assert_eq!(requests(0, &[1]), [Request::Panicked]);
        assert_eq!(requests(0, &[2]), [Request::CrashLoaded]);
        assert_eq!(requests(0, &[4]), [Request::PowerOff]);
        assert_eq!(requests(0, &[7]), [Request::Panicked, Request::CrashLoaded, Request::PowerOff]);
        for value in 0..=255u8 {
            assert_eq!(requests(0, &[value & !7]), [], "{value:#x}");
        }
    }

    #[test]
    fn another_offset_is_not_the_device() {
        for offset in [1, 2, u64::MAX] {
            assert_eq!(requests(offset, &[7]), []);
        }
    }

    #[test]
    fn it_tells_what_it_knows() {
        let mut device = PvPanic(Arc::new(Switch::default()));
        for (offset, expected) in [(0, 7), (1, 0xff), (u64::MAX, 0xff)] {
            let mut data = [0x55; 2];
            device.read(offset, &mut data);
            assert_eq!(data, [expected; 2]);
        }
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut PvPanic(Arc::new(Switch::default())), LEN, 2, |_| {});
    }
}
