//! kite's commands.

pub mod bench;
pub mod doctor;
pub mod image;
pub mod inspect;
pub mod matrix;
pub mod oci;
pub mod run;
