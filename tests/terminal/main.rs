//! kite on a terminal: raw while the guest has it, keys of its own, and as it was before on every way out.
//!
//! Every test has a pseudo-terminal of its own, with settings that no default has.
#![expect(unsafe_code, reason = "the guest is assembled here, and a child is set up between fork and exec")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, unused_macros, reason = "what these guests do not need")]
#[macro_use]
#[path = "../tiny/guest.rs"]
mod guest;
mod background;
mod keys;
mod session;
mod supervised;
mod table;
mod ways_out;
