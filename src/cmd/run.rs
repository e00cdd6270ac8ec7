//! `kite run`: boots a kernel, or runs a command in it; or prints what it would do.

use std::env;
use std::time::Instant;

use anyhow::Context;

use crate::host::exit_code::DONE;
use crate::host::messages;
use crate::lifecycle::{self, Ahead};
use crate::spec::RunSpec;

/// Runs it, or prints it; returns the exit code. `begun` is when kite was started, and `ahead` what it has
/// begun since.
///
/// # Errors
/// kite or the host failed.
pub fn run(spec: RunSpec, print_spec: bool, begun: Instant, ahead: Ahead) -> anyhow::Result<u8> {
    if print_spec { print(spec) } else { lifecycle::run(&spec, begun, ahead) }
}

/// Prints a spec that means the same wherever it is read.
fn print(mut spec: RunSpec) -> anyhow::Result<u8> {
    let here = env::current_dir()
        .context("cannot print paths from the root folder: kite's own folder is not known")?;
    spec.rebase(&here);
    messages::print(spec.to_json() + "\n", "the spec").map(|()| DONE)
}
