//! `kite bench`: how long things take.

pub mod boot;
mod compare;
pub mod exits;
mod facts;
mod html;
mod measured;
mod plot;
mod statistics;
pub mod tell;
mod time;

use std::time::{Duration, SystemTime};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How long VM exits take, and what kite adds to them
    #[command(after_help = exits::HELP)]
    Exits(Box<exits::Options>),
    /// How long kernels boot: from exec to the guest's first instruction, to user space, to power-off
    #[command(after_help = boot::HELP)]
    Boot(Box<boot::Options>),
}

/// Measures it.
///
/// # Errors
/// kite or the host failed.
pub fn run(command: &Command) -> anyhow::Result<u8> {
    match command {
        Command::Exits(options) => exits::run(options),
        Command::Boot(options) => boot::run(options),
    }
}

/// On standard error, if that is a terminal.
fn progress(len: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg} ({eta} left)");
    bar.set_style(style.expect("the template is a constant"));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// In UTC.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
