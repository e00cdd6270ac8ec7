//! What kite uses of the host: files, processes, signals, the terminal, messages.

pub mod alloc;
pub mod atomic_file;
pub(crate) mod child;
pub(crate) mod confinement;
pub mod event;
pub mod exit_code;
pub mod lock;
pub mod log;
pub mod messages;
pub mod netlink;
pub mod phases;
pub mod remedy;
pub mod rss;
pub mod signals;
pub mod terminal;
pub mod thread;
