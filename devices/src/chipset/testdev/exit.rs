//! isa-debug-exit: a port that ends the guest with a status.

use std::sync::Arc;

use super::number;
use crate::bus::BusDevice;

/// What can end the guest.
pub trait EndTest: Send + Sync {
    /// Ends the guest with an exit code. The first call counts; called with the device's lock held, so it must not
    /// block.
    fn end(&self, code: u8);
}

/// Four ports: what is written to the first ends the guest with `(value << 1) | 1`, which is never 0.
pub struct DebugExit(pub Arc<dyn EndTest>);

impl DebugExit {
    /// How many ports it has.
    pub const LEN: u64 = 4;
}

impl BusDevice for DebugExit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // An exit code has eight bits, like those that a parent process sees.
        if offset == 0 && !data.is_empty() {
            self.0.end((number(data) << 1 | 1) as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::storm;

    #[derive(Default)]
    struct Codes(Mutex<Vec<u8>>);

    impl EndTest for Codes {
        fn end(&self, code: u8) {
            let mut codes = self.0.lock().unwrap();
            if codes.len() < 16 {
                codes.push(code);
            }
        }
    }

    #[test]
    fn a_value_of_any_width_becomes_an_odd_status() {
        let codes = Arc::new(Codes::default());
        let mut exit = DebugExit(codes.clone());
        exit.write(0, &[0]);
        exit.write(0, &[1, 0]);
        exit.write(0, &[38, 0, 0, 0]);
        exit.write(0, &[0x80, 1, 0, 0]);
        exit.write(0, &[0xff; 8]);
        assert_eq!(*codes.0.lock().unwrap(), [1, 3, 77, 1, 255]);
    }

    #[test]
    fn reads_and_the_other_ports_end_nothing() {
        let codes = Arc::new(Codes::default());
        let mut exit = DebugExit(codes.clone());
        let mut data = [0x55; 4];
        exit.read(0, &mut data);
        assert_eq!(data, [0; 4]);
        for offset in [1, 3, 4, u64::MAX] {
            exit.write(offset, &[1]);
        }
        exit.write(0, &[]);
        assert!(codes.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut DebugExit(Arc::new(Codes::default())), DebugExit::LEN, 21, |_| {});
    }
}
