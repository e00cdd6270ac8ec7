//! `kite run`: boots a kernel, or runs a command in it.

use std::time::Instant;

use anyhow::anyhow;

use crate::cli::RunOptions;
use crate::lifecycle;

/// Runs it; returns the exit code. `begun` is when kite was started.
///
/// # Errors
/// kite or the host failed, or the options do not go together.
pub fn run(options: &RunOptions, begun: Instant) -> anyhow::Result<u8> {
    let spec = options.spec().map_err(|why| anyhow!(why))?;
    lifecycle::run(&spec, begun)
}
