//! The entropy device (virtio 1.2 §5.4): the host's own random numbers.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Error, Kind, Queues, Served, Thread, VirtioDevice, vectored};

/// What all entropy devices have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_RNG, module: "virtio_rng" };
/// Bytes given for one request: enough for any driver, and a bound on what one costs.
const MAX_REQUEST: usize = 64 << 10;

/// Entropy from the host's getrandom(2).
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn thread(&self) -> Thread {
        Thread::Shared
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        queues.each(index, |memory, chain| {
            let mut buffers = chain.writable;
            buffers.truncate(MAX_REQUEST);
            // A host without entropy, just booted, gives none: the driver asks again.
            Served::Used(vectored::random(memory, &buffers).unwrap_or(0) as u32)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BUFFERS, CANARY, Driver};
    use super::*;

    fn driver() -> Driver {
        let mut driver = Driver::new(|_| Box::new(Rng));
        driver.start(0);
        driver
    }

    #[test]
    fn a_request_is_filled_and_nothing_beside_it() {
        let mut driver = driver();
        driver.want_interrupts(0);
        let head = driver.add(0, &[(BUFFERS + 1, 100, true), (BUFFERS + 0x200, 28, true)]);
        driver.kick(0);
        assert_eq!(driver.used(0), [(head, 128)]);
        assert_eq!(driver.interrupts(), 1);
        let ram = driver.read(BUFFERS, 0x300);
        for (at, len) in [(1, 100), (0x200, 28)] {
            assert!(ram[at..at + len].iter().filter(|byte| **byte == CANARY).count() < len / 4);
            assert_eq!([ram[at - 1], ram[at + len]], [CANARY; 2]);
        }
    }

    #[test]
    fn a_request_gets_64_kib_at_most_and_a_read_only_one_nothing() {
        let mut driver = driver();
        let long = driver.add(0, &[(BUFFERS, 0x8_0000, true)]);
        let read_only = driver.add(0, &[(BUFFERS, 16, false)]);
        driver.kick(0);
        assert_eq!(driver.used(0), [(long, 65536), (read_only, 0)]);
        assert!(driver.read(BUFFERS + 65536, 0x7_0000).iter().all(|byte| *byte == CANARY));
    }
}
