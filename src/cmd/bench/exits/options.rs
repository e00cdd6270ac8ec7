//! `kite bench exits` on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use clap::builder::ValueParser;

use super::payload::{PAYLOADS, Payload};
use super::threads;
use crate::cmd::bench::tell;
use crate::spec::{duration, number};

/// Examples and exit codes.
pub const HELP: &str = "\
Examples:
  kite bench exits                              everything, in about two minutes
  kite bench exits --only 'pio.*,mmio.*' --time 5s --cpus 2,3 --rt
  kite bench exits --json now.json --html now.html
  kite bench exits --compare before.json        ends with 1 if an exit has become slower
  kite bench exits --from now.json --html now.html
  kite bench exits --only pio.in.4 --payload pio.elf    the same guest, for other monitors

Exit codes:
  0    measured
  1    --compare: a row is slower, beyond its confidence interval and by more than 3 % and 50 ns
  125  kite or the host failed";

/// What to measure, how long, and whom to tell.
#[derive(Args, Debug)]
pub struct Options {
    /// Measure only these: names with commas between them; a name that ends in * stands for all that begin so
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub only: Vec<String>,
    /// How long each payload is measured, warm-up and building machines not counted
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "1s", value_parser = ValueParser::new(duration::parse))]
    pub time: Duration,
    /// How many virtual machines, one after the other, each payload is measured in
    #[arg(long, value_name = "N", default_value = "10", allow_negative_numbers = true, value_parser = number::whole::<u32>(3..=1000))]
    pub blocks: u32,
    /// The CPU that vCPU 0 runs on, and the one for the second vCPU and kite's threads [default: the first two]
    #[arg(long, value_name = "A,B", value_delimiter = ',', allow_negative_numbers = true, value_parser = number::whole::<usize>(..))]
    pub cpus: Vec<usize>,
    /// Run with real-time priority (SCHED_FIFO), which takes root
    #[arg(long)]
    pub rt: bool,
    /// Tell times in ticks of the time-stamp counter, not in nanoseconds
    #[arg(long)]
    pub ticks: bool,
    /// Whom to tell.
    #[command(flatten)]
    pub tell: tell::TellOptions,
    /// List the payloads and what each does
    #[arg(long)]
    pub list: bool,
    /// Write the payload that --only names as an ELF image that other monitors boot, by PVH or Multiboot; it prints its
    /// times in ticks on COM1
    #[arg(long, value_name = "FILE", requires = "only")]
    pub payload: Option<PathBuf>,
}

impl Options {
    /// What to measure, in the order of the table.
    ///
    /// # Errors
    /// There is no such payload.
    pub(super) fn payloads(&self) -> anyhow::Result<Vec<&'static Payload>> {
        let names = |pattern: &str, payload: &Payload| match pattern.strip_suffix('*') {
            Some(beginning) => payload.id.starts_with(beginning),
            None => payload.id == pattern,
        };
        for pattern in &self.only {
            ensure!(
                PAYLOADS.iter().any(|payload| names(pattern, payload)),
                "there is no payload {pattern:?}: kite bench exits --list shows all"
            );
        }
        let wanted = |payload: &&Payload| {
            self.only.is_empty() || self.only.iter().any(|pattern| names(pattern, payload))
        };
        Ok(PAYLOADS.iter().filter(wanted).collect())
    }

    /// Where vCPU 0 runs, and the rest; the same if there is one CPU.
    ///
    /// # Errors
    /// There is no such CPU.
    pub(super) fn cpus(&self) -> anyhow::Result<[usize; 2]> {
        let allowed = threads::allowed()?;
        let cpus = match self.cpus[..] {
            [a, b] => [a, b],
            [a] => [a, a],
            [] => {
                let first = *allowed.first().context("this process may use no CPU")?;
                [first, allowed.get(1).copied().unwrap_or(first)]
            }
            _ => bail!("--cpus takes two CPUs, such as --cpus 2,3"),
        };
        for cpu in &cpus {
            ensure!(allowed.contains(cpu), "--cpus: there is no CPU {cpu} for kite; there are {allowed:?}");
        }
        Ok(cpus)
    }
}
