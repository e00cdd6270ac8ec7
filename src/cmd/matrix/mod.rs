//! `kite matrix`: runs commands on kernels, each in a `kite run` of its own, several at a time.

mod cell;
mod keep;
mod plan;
mod progress;
mod table;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use clap::Args;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::host::atomic_file;
use crate::host::exit_code;
use crate::host::lock::lock;
use crate::host::messages::print;
use crate::host::signals;
use crate::lifecycle::die_by;
use crate::observe::results::{FailOnKtap, Suite, junit};
use crate::spec::number;
use cell::{Outcome, Runner};
pub use plan::Convert;
use plan::Plan;
use progress::Progress;

/// What `kite matrix --help` ends with.
pub const HELP: &str = "\
The file is TOML:
  jobs = 2                        # runs at a time [default: this host's CPUs / --cpus of a guest]
  timeout = \"5m\"                  # for each run: 90, 90s, 5m, 1h30m [default: none]
  options = [\"--memory\", \"1G\"]    # of `kite run`, for every run
  fail-on-ktap = \"auto\"           # auto, always or never: see below
  [[kernel]]
  name = \"6.1\"
  path = \"6.1/bzImage\"            # from the file's folder
  modules = \"6.1/modules\"         # optional: `kite run --modules`
  options = []                    # optional: for this kernel's runs
  [[command]]
  name = \"boot\"
  run = [\"true\"]                  # or a string for `sh -c`
  timeout = \"30s\"                 # optional: instead of the file's
  options = []                    # optional: for this command's runs
  fail-on-ktap = \"always\"         # optional: instead of the file's

The runs take no defaults from kite.toml or ~/.config/kite/config.toml: all is in the matrix.

A command whose output is KTAP or TAP fails if one of its cases does, whatever its own status is; with fail-on-ktap
`always` it fails, too, if it prints no document, and with `never` its own status is all that counts.

Exit status: the worst of all runs, from good to bad:
  0                    every run passed
  1-123, 126-254       a run failed: the status of its command, or 1 if only cases of it failed
  124                  a run's time was over
  255                  a guest crashed
  125                  kite or the host failed, or the file is wrong; or some output could not be written
Of two statuses that are equally bad, the greater. Ctrl-C stops all runs; what is done by then is told.

Examples:
  kite matrix kernels.toml
  kite matrix kernels.toml --jobs 4 --junit results.xml --output logs/
  kite matrix kernels.toml --output logs/ --screenshot-on-failure";

/// What to run, and what to tell of it.
#[derive(Args, Debug)]
pub struct Options {
    /// The kernels and the commands
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How many guests run at a time [default: the file's, else the host's CPUs / CPUs of a guest]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = number::whole::<u16>(1..))]
    jobs: Option<u16>,
    /// Run the commands in the image of a container, as `kite run --image` does, unless they name another [default: the
    /// file's]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Write the results of all runs into this JUnit file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Whether failed cases of KTAP or TAP make a run fail: auto, always (so does an output without any) or never
    /// [default: the file's, else auto]
    #[arg(long, value_name = "WHEN", value_enum, hide_possible_values = true)]
    fail_on_ktap: Option<FailOnKtap>,
    /// Keep all that each run prints, as DIR/KERNEL/COMMAND.stdout and .stderr
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Write what is on the screen of each run that fails, and has one, as DIR/KERNEL/COMMAND.png
    #[arg(long, requires = "output")]
    screenshot_on_failure: bool,
    /// Show all that the runs print, not only the last lines of those that fail
    #[arg(short, long)]
    verbose: bool,
    /// What to run instead of kite itself
    #[arg(long, value_name = "PATH", hide = true)]
    program: Option<PathBuf>,
}

/// kite itself, whatever has become of its file.
const ITSELF: &str = "/proc/self/exe";

/// Runs the matrix, whose options `convert` takes; returns the exit code.
///
/// # Errors
/// The file or an option is wrong, or the host failed.
pub fn run(options: &Options, convert: Convert) -> anyhow::Result<u8> {
    let mut plan = Plan::read(&options.file, options.image.as_deref(), convert)?;
    if let Some(rule) = options.fail_on_ktap {
        plan.cells.iter_mut().for_each(|cell| cell.fail_on_ktap = rule);
    }
    options.junit.as_deref().map_or(Ok(()), atomic_file::check).context("--junit")?;
    let files = options.output.as_deref().map(|folder| keep::Folder::new(folder, &plan)).transpose()?;
    if let Some(files) = files.as_ref().filter(|_| options.screenshot_on_failure) {
        let pictures = plan.take_pictures(|kernel, command| files.picture(kernel, command));
        pictures.context("--screenshot-on-failure")?;
    }
    // Nobody reads it before the end, so that everybody who waits sees that there is one.
    let ending = signals::ending();
    ending.thread_block().context("cannot block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signal = SignalFd::with_flags(&ending, flags).context("cannot make a signalfd")?;

    let progress = Progress::new(plan.cells.len(), options.verbose);
    let program = options.program.clone().unwrap_or_else(|| PathBuf::from(ITSELF));
    let runner = Runner { program, stop: signal.as_fd(), progress: &progress, files: files.as_ref() };
    let outcomes = run_all(&plan, &runner, options.jobs.unwrap_or(plan.jobs).into())?;
    progress.end();

    print(table::text(&plan, &outcomes), "the table")?;
    if let Some(path) = &options.junit {
        let suites: Vec<Suite> = outcomes.iter().map(|outcome| outcome.suite.clone()).collect();
        junit::write(path, &suites)?;
    }
    if let Ok(Some(info)) = signal.read_signal() {
        return die_by(i32::try_from(info.ssi_signo).context("an unknown signal")?);
    }
    let codes = outcomes.iter().map(|outcome| outcome.code);
    Ok(cell::worst(codes.chain(progress.has_lost().then_some(exit_code::FAILED))))
}

/// The outcomes in the plan's order. The threads live as long as their children, which would end with them.
fn run_all(plan: &Plan, runner: &Runner<'_>, jobs: usize) -> anyhow::Result<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = plan.cells.get(index) else { return };
            let outcome = runner.run(cell);
            lock(&outcomes).push((index, outcome));
        }
    };
    thread::scope(|scope| -> anyhow::Result<()> {
        for number in 0..jobs.min(plan.cells.len()) {
            let started = thread::Builder::new().name(format!("job {number}")).spawn_scoped(scope, work);
            if let (Err(error), 0) = (started, number) {
                return Err(error).context("cannot start a thread");
            }
        }
        Ok(())
    })?;
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(index, _)| *index);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}
