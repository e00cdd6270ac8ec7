//! What each request does: one room for each kind of thing that requests are about.

pub mod attributes;
pub mod data;
pub mod directory;
pub mod names;
