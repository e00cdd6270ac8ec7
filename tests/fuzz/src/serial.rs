//! The UART between a guest that makes any access and a host that sends, and takes, at any time.

use arbitrary::Arbitrary;
use devices::bus::BusDevice;
use devices::chipset::serial::{Host, OUTPUT_LIMIT, Serial};
use devices::irq::Line;

use crate::{bytes, each};

#[derive(Arbitrary, Debug)]
enum Op<'a> {
    Write(u8, #[arbitrary(with = bytes)] &'a [u8]),
    Read(u8, u8),
    /// One byte, so many times 16.
    Flood(u8, u8),
    Receive(#[arbitrary(with = bytes)] &'a [u8]),
    TakeOutput,
}

struct Nobody;

impl Line for Nobody {
    fn pulse(&self) {}
}

impl Host for Nobody {
    fn output_ready(&self) {}
    fn input_wanted(&self) {}
}

pub fn run(data: &[u8]) {
    let mut serial = Serial::new(Box::new(Nobody), Box::new(Nobody));
    let mut output = Vec::new();
    for op in each(data, 200) {
        match op {
            Op::Write(offset, bytes) => serial.write(u64::from(offset) % 10, bytes),
            Op::Read(offset, len) => serial.read(u64::from(offset) % 10, &mut vec![0; len.into()]),
            Op::Flood(byte, count) => serial.write(0, &vec![byte; usize::from(count) * 16]),
            Op::Receive(bytes) => {
                let taken = serial.receive(bytes);
                assert!(taken <= bytes.len().min(16), "{taken} bytes at once");
            }
            Op::TakeOutput => {
                output.clear();
                serial.take_output(&mut output);
                assert!(output.len() <= OUTPUT_LIMIT, "{} bytes of output", output.len());
            }
        }
    }
    works(&mut serial);
}

/// Whatever came before, a driver that sets the UART up can send and receive.
fn works(serial: &mut Serial) {
    let mut output = Vec::new();
    serial.take_output(&mut output);
    // LCR, MCR, FCR with a clear receiver, IER with the receiver's interrupt.
    for (register, value) in [(3, 3), (4, 3), (2, 7), (1, 1)] {
        serial.write(register, &[value]);
    }
    serial.write(0, b"out");
    output.clear();
    serial.take_output(&mut output);
    assert_eq!(output, b"out");
    assert_eq!(serial.receive(b"in"), 2);
    let mut input = [0; 2];
    serial.read(0, &mut input);
    assert_eq!(&input, b"in");
}
