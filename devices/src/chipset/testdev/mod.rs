//! What KVM's unit tests (kvm-unit-tests) expect of a machine and no other guest needs: a way to end with a status,
//! latches and memory to exit at, lines to drive, and the facts that QEMU's firmware interface gives.
//!
//! The interfaces are QEMU's: isa-debug-exit, pc-testdev, pci-testdev (QEMU `docs/specs/pci-testdev.rst`), fw_cfg
//! (`docs/specs/fw_cfg.rst`). A guest can ask any of them for anything at any width.

mod exit;
mod fw_cfg;
mod latch;
mod lines;
mod pci;
mod pci_test;
mod pm_timer;

pub use exit::{DebugExit, EndTest};
pub use fw_cfg::FwCfg;
pub use latch::{Latch, Memory, Scratch};
pub use lines::{Flush, FlushPage, Lines, SetLine};
pub use pci::{ConfigPorts, Place, Wiring};
pub use pci_test::{BAR_LEN, Doorbell, PciTest, Window};
pub use pm_timer::{Elapsed, PmTimer};

/// The number that the first bytes of an access make, little-endian; at most four count.
fn number(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Fills `data` with the bytes of `register` from `offset` on, as long as there are any, then with `beyond`.
fn give(register: &[u8], offset: u64, data: &mut [u8], beyond: u8) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(register.len());
    let mut bytes = register[from..].iter();
    data.fill_with(|| *bytes.next().unwrap_or(&beyond));
}
