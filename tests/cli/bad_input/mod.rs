//! Bad input: every file, option and host that kite cannot work with gives one clear line on standard error, exit code
//! 125, nothing on standard output, and leaves nothing behind.

mod command;
mod config;
mod devices;
mod files;
mod host;
mod kernels;
mod measure;
mod modules;
mod multiboot;
mod options;
mod spec;
