//! Fuzz targets: each takes bytes, makes of them what a guest or an untrusted file may say, and panics if that does harm.
//!
//! `tests/` runs each with seeded random bytes and with `corpus/TARGET/*`; `cargo xtask fuzz TARGET` with libFuzzer.

#![expect(clippy::unwrap_used, reason = "a target that cannot go on is to panic")]

mod balloon;
mod block;
mod console;
mod control;
mod drive;
pub mod erofs;
mod fs;
mod gpu;
mod kallsyms;
mod kernel;
mod ktap;
pub mod layers;
mod modules;
mod net;
mod pci;
mod serial;
mod testdev;
mod vnc;

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::virtio::rng::Rng;
use devices::virtio::testing::devices::{Echo, Later};
use devices::virtio::testing::every_queue_serves;

pub use drive::{Op, Part, drive};

/// A target: its name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("queue", queue),
    ("rng", |data| drive(data, |_| Box::new(Rng), |_| {}, every_queue_serves)),
    ("block", block::run),
    ("net", net::run),
    ("fs", fs::run),
    ("console", console::run),
    ("balloon", balloon::run),
    ("gpu", gpu::run),
    ("pci", pci::run),
    ("serial", serial::run),
    ("kernel", kernel::run),
    ("modules", modules::run),
    ("kallsyms", kallsyms::run),
    ("ktap", ktap::run),
    ("testdev", testdev::run),
    ("erofs", erofs::run),
    ("layers", layers::run),
    ("vnc", vnc::run),
    ("control", control::run),
];

/// The target of this name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}

/// Queues and transport, with a device that answers at once or one that answers later behind them.
fn queue(data: &[u8]) {
    match data.split_first() {
        Some((first, rest)) if first % 2 == 0 => {
            drive(rest, |_| Box::<Echo>::default(), |_| {}, every_queue_serves);
        }
        Some((_, rest)) => drive(rest, |_| Box::<Later>::default(), |_| {}, every_queue_serves),
        None => {}
    }
}

/// What `data` is made of, up to `most`. Unlike [`Unstructured::arbitrary_iter`] it goes on as long as there is data.
fn each<'a, T: Arbitrary<'a>>(data: &'a [u8], most: usize) -> impl Iterator<Item = T> {
    let mut data = Unstructured::new(data);
    std::iter::from_fn(move || if data.is_empty() { None } else { data.arbitrary().ok() }).take(most)
}

/// A list of a few; the crate's own are empty or of one, half of the time each.
fn list<'a, T: Arbitrary<'a>>(data: &mut Unstructured<'a>) -> Result<Vec<T>> {
    let count = data.int_in_range(0..=15)?;
    (0..count).map(|_| data.arbitrary()).collect()
}

/// A few bytes; the crate's own are half of what is left.
fn bytes<'a>(data: &mut Unstructured<'a>) -> Result<&'a [u8]> {
    let count = data.int_in_range(0..=80)?;
    data.bytes(count.min(data.len()))
}
