//! `kite bench`: that what can be measured is, that nothing is dropped, and that what makes no sense is refused.

mod boot;
mod exits;
mod folder;
