//! The commands beside `kite run`, a folder each.

pub mod bench;
pub mod doctor;
pub mod inspect;
pub mod matrix;
