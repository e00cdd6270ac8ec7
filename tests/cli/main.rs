//! The command line from outside: what each command prints and how it ends, bad input, groups, terminals, and the tools
//! around kite.
#![expect(unsafe_code, reason = "children are set up between fork and exec, and terminals by ioctl(2)")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, unused_macros, reason = "what only tiny guests need")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod action;
mod bad_input;
mod bench;
mod cgroup;
mod doctor;
mod exit_codes;
mod inspect;
mod machines;
mod matrix;
mod oci;
mod pages;
mod terminal;
