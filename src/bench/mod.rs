//! `kite bench`: how long things take.

pub mod exits;

use clap::Subcommand;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How long VM exits take, and what kite adds to them
    #[command(after_help = exits::HELP)]
    Exits(Box<exits::Options>),
}

/// Measures it.
///
/// # Errors
/// kite or the host failed.
pub fn run(command: &Command) -> anyhow::Result<u8> {
    match command {
        Command::Exits(options) => exits::run(options),
    }
}
