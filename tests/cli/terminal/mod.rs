//! kite on a terminal: raw while the guest has it, keys of its own, and as it was before on every way out.
//!
//! Every test has a pseudo-terminal of its own, with settings that no default has.

mod background;
mod keys;
mod session;
mod supervised;
mod table;
mod ways_out;
