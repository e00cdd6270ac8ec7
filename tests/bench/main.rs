//! `kite bench`: that what can be measured is, that nothing is dropped, and that what makes no sense is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "what only bad input needs")]
#[path = "../bad_input/attempt.rs"]
mod attempt;
mod boot;
mod exits;
mod folder;
#[expect(dead_code, reason = "what only bad input needs")]
#[path = "../bad_input/image.rs"]
mod image;
