//! kite, a minimal KVM hypervisor: opens `/dev/kvm`, builds a machine and runs a guest in it.
//!
//! The binary is `main.rs`; everything else is here so that tests can build machines without it.

pub mod backend;
pub mod cli;
pub mod cmd;
pub mod guest;
pub mod host;
pub mod lifecycle;
pub mod observe;
pub mod oci;
pub mod sandbox;
pub mod session;
pub mod spec;
pub mod vcpu;
pub mod vm;

#[cfg(test)]
mod layers;
