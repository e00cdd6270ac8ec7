//! The board's power and reset registers, as hardware-reduced ACPI has them: sleep control and sleep status
//! (ACPI 6.5 §4.8.3.7) and the reset register (§4.8.3.6).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::device::Device;

/// What a guest asks the board for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Turn the machine off.
    PowerOff,
    /// Start the machine again.
    Reset,
    /// Nothing: the guest's kernel reports that it has panicked.
    Panicked,
    /// Nothing: the guest's kernel reports that it has panicked and that another one, loaded before, looks into it.
    CrashLoaded,
}

/// What can stop the machine.
pub trait PowerSwitch: Send + Sync {
    /// Takes a guest's request. A guest can send any number of them, so this must be cheap and the first
    /// one count; it is called with the device's lock held and must not block.
    fn request(&self, request: Request);
}

/// The offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// The offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// The offset of the reset register.
pub const RESET: u64 = 2;
/// How many bytes of address space the registers take.
pub const LEN: u64 = 3;

/// The sleep type that powers off: what the DSDT's `_S5` package has to name.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What resets the machine when written to [`RESET`]: the FADT's `RESET_VALUE`.
pub const RESET_VALUE: u8 = 1;

const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 7;

/// Sleep control, sleep status and reset register: byte registers at offsets 0, 1 and 2.
///
/// Reads give 0: there is no wake-up to report, and SLP_EN is write-only. What the guest wants goes to the switch.
pub struct Power(pub Arc<dyn PowerSwitch>);

impl Device for Power {
    fn name(&self) -> &'static str {
        "power"
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset < LEN { 0 } else { 0xff });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            let sleep_type = byte >> SLP_TYP_SHIFT & SLP_TYP_MASK;
            match offset {
                SLEEP_CONTROL if byte & SLP_EN != 0 && sleep_type == SLEEP_TYPE_S5 => {
                    self.0.request(Request::PowerOff);
                }
                RESET if *byte == RESET_VALUE => self.0.request(Request::Reset),
                _ => {}
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
        Power(switch.clone()).write(offset, data);
        switch.taken()
    }

    #[test]
    fn sleep_type_5_powers_off_and_no_other_does() {
        for value in 0..=255 {
            let expected: &[Request] = if value & 0x3c == 0x34 { &[Request::PowerOff] } else { &[] };
            assert_eq!(requests(SLEEP_CONTROL, &[value]), expected, "{value:#x}");
        }
    }

    #[test]
    fn the_reset_value_resets_and_no_other_does() {
        for value in 0..=255 {
            let expected: &[Request] = if value == 1 { &[Request::Reset] } else { &[] };
            assert_eq!(requests(RESET, &[value]), expected, "{value:#x}");
        }
    }

    #[test]
    fn status_writes_and_other_offsets_ask_for_nothing() {
        for offset in [SLEEP_STATUS, 3, u64::MAX] {
            for value in 0..=255 {
                assert_eq!(requests(offset, &[value]), [], "{offset} {value:#x}");
            }
        }
    }

    #[test]
    fn a_wide_reset_counts() {
        assert_eq!(requests(RESET, &[1, 0, 0, 0]), [Request::Reset]);
    }

    #[test]
    fn registers_read_as_zero_and_the_rest_floats() {
        let mut power = Power(Arc::new(Switch::default()));
        for (offset, expected) in [(0, 0), (1, 0), (2, 0), (3, 0xff), (u64::MAX, 0xff)] {
            let mut data = [0x55; 2];
            power.read(offset, &mut data);
            assert_eq!(data, [expected; 2]);
        }
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut Power(Arc::new(Switch::default())), LEN, 2, |_| {});
    }
}
