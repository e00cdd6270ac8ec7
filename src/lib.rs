//! kite, a minimal KVM hypervisor: opens `/dev/kvm`, builds a machine and runs a guest in it.
//!
//! The binary is `main.rs`; everything else is here so that tests can build machines without it.

pub mod bench;
pub mod cgroup;
mod child;
pub mod cli;
pub mod coalesced;
pub mod console;
pub mod crash;
pub mod cure;
mod cut;
pub mod disk;
pub mod doctor;
pub mod duration;
pub mod exit;
pub mod footprint;
pub mod guest;
pub mod heap;
pub mod inspect;
pub mod io_thread;
pub mod kvm_run;
pub mod kvm_stats;
pub mod load;
pub mod log;
pub mod machine;
pub mod matrix;
pub mod memory;
pub mod messages;
pub mod net;
pub mod passt;
pub mod pic;
pub mod pit;
pub mod port;
pub mod results;
pub mod run;
pub mod sandbox;
pub mod signals;
pub mod stats;
pub mod tap;
pub mod task;
pub mod terminal;
pub mod testdev;
pub mod trace;
pub mod vcpu;
pub mod vm;
pub mod whole_file;
