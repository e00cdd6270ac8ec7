//! `kite bench boot` on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::ValueParser;

use crate::cmd::bench::tell;
use crate::spec::{duration, number};

/// Examples and exit codes.
pub const HELP: &str = "\
Examples:
  kite bench boot                               the newest kernel in /boot, ten times
  kite bench boot --kernel old/bzImage --kernel new/bzImage --runs 30
  kite bench boot --append quiet --peers        beside QEMU's microvm, the same guest in turns
  kite bench boot --json now.json --html now.html
  kite bench boot --compare before.json         ends with 1 if a boot has become slower

Exit codes:
  0    measured
  1    --compare: a row is slower, beyond its confidence interval and by more than 3 %
  125  kite or the host failed";

/// What to boot, how often, and whom to tell.
#[derive(Args, Debug)]
pub struct Options {
    /// Boot this kernel, in turns with the others; may be given more than once [default: as `kite run`]
    #[arg(short, long = "kernel", value_name = "PATH")]
    pub kernels: Vec<PathBuf>,
    /// How often to boot each, after once to warm up
    #[arg(long, value_name = "N", default_value = "10", allow_negative_numbers = true, value_parser = number::whole::<u32>(3..=1000))]
    pub runs: u32,
    /// Have QEMU's microvm boot the same kernels with the same initrd, in turns with kite
    #[arg(long)]
    pub peers: bool,
    /// Add this to the kernel's command line
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// End a guest that has not powered off by then, such as 90s or 5m
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "2m", value_parser = ValueParser::new(duration::parse))]
    pub timeout: Duration,
    /// Boot what kite expects to fail, too, as a stock kernel on PVM
    #[arg(long)]
    pub force: bool,
    /// Whom to tell.
    #[command(flatten)]
    pub tell: tell::TellOptions,
}
