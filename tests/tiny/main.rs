//! Tiny guests on any KVM: machine code that is assembled into this test, wrapped into an ELF file, and run by the
//! real binary, or by the library where a test has to look inside.
//!
//! A guest that prints what it has seen needs no checks of its own: the test compares the bytes.
#![expect(unsafe_code, reason = "the guests' code is assembled here and found through the linker's symbols")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "what only other tests need")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

#[macro_use]
mod assembly;
mod console;
mod control;
mod crash;
mod exits;
mod files;
mod firmware;
mod flow;
mod interrupts;
#[macro_use]
mod multiboot;
mod output;
mod pause;
mod pci;
mod power;
mod process;
mod rig;
mod sandbox;
mod screen;
mod smp;
mod state;
mod stats;
mod testdev;
mod testdev_ends;
mod testdev_pci;
mod trace;
mod unit_tests;
mod virtio;
mod vnc;
