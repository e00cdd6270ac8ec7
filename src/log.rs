//! The log: what goes wrong while a guest runs and is no reason to end it, a line each on standard error.

use log::{LevelFilter, Log, Metadata, Record};

use crate::terminal;

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What virtio-queue logs, a guest can make it log without end; the device says it in its own words, once.
        !metadata.target().starts_with("virtio_queue")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            terminal::tell(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Begins to log warnings and errors.
pub fn start() {
    // Set before only by a test.
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
