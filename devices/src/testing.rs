//! What the tests share: repeatable random numbers, a power switch that remembers, and a storm of accesses.

use std::sync::{Mutex, PoisonError};

use crate::bus::BusDevice;
use crate::chipset::power::{PowerSwitch, Request};

/// Xorshift64 random numbers: the same ones on every run.
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 3
    }

    /// The next number, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Remembers the last few requests, not a flood of them.
#[derive(Default)]
pub struct Switch(Mutex<Vec<Request>>);

impl Switch {
    /// All requests since the last call.
    pub fn taken(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PowerSwitch for Switch {
    fn request(&self, request: Request) {
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() < 16 {
            requests.push(request);
        }
    }
}

const WIDTHS: [usize; 7] = [0, 1, 2, 3, 4, 8, 64];

/// Every register and some beyond, with every width and every value, then a long random walk over the same;
/// `check` looks at the device after each access.
pub fn storm<D: BusDevice + ?Sized>(device: &mut D, len: u64, seed: u64, mut check: impl FnMut(&mut D)) {
    let offsets: Vec<u64> = (0..len + 2).chain([1 << 32, u64::MAX]).collect();
    let mut data = [0; 64];
    for offset in &offsets {
        for width in WIDTHS {
            for value in 0..=255 {
                device.write(*offset, &[value; 64][..width]);
                check(device);
                device.read(*offset, &mut data[..width]);
                check(device);
            }
        }
    }
    let mut random = Random::new(seed);
    for _ in 0..100_000 {
        let offset = offsets[random.below(offsets.len() as u64) as usize];
        let width = WIDTHS[random.below(WIDTHS.len() as u64) as usize];
        if random.below(2) == 0 {
            device.read(offset, &mut data[..width]);
        } else {
            data[..width].iter_mut().for_each(|byte| *byte = random.next() as u8);
            device.write(offset, &data[..width]);
        }
        check(device);
    }
}
