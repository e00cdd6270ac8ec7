//! Saying what is done: a spinner for each long step on a terminal, plain lines elsewhere, one more whenever a step has
//! taken a while; and commands whose output is shown only if they fail.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

/// After how long people wonder whether anything goes on.
const WHILE: Duration = Duration::from_secs(15);

/// Does `work`, telling on standard error that `what` is under way and how long it took.
///
/// # Errors
/// Those of `work`, in the context of `what`.
pub fn step<T>(what: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let spinner = if stderr().is_terminal() {
        let spinner = ProgressBar::new_spinner().with_message(format!("{what} …"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        Some(spinner)
    } else {
        eprintln!("xtask: {what} …");
        None
    };
    let result = match &spinner {
        Some(_) => work(),
        None => with_signs_of_life(&what, work),
    };
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    ended(&what, start, &result);
    result
}

/// The same for a step that prints itself what it does.
///
/// # Errors
/// Those of `work`.
pub fn open_step<T>(what: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprintln!("xtask: {what} …");
    let result = match stderr().is_terminal() {
        true => work(),
        false => with_signs_of_life(&what, work),
    };
    ended(&what, start, &result);
    result
}

/// Does `work`, with a line each time that a while has gone by.
fn with_signs_of_life<T>(what: &impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (what, start) = (what.to_string(), Instant::now());
    let (done, is_done) = channel::<()>();
    let watch = thread::spawn(move || {
        while is_done.recv_timeout(WHILE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("xtask: {what}: {} s so far …", start.elapsed().as_secs());
        }
    });
    let result = work();
    drop(done);
    let _ = watch.join();
    result
}

fn ended<T>(what: &impl Display, start: Instant, result: &Result<T>) {
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(_) => eprintln!("xtask: {what}: done in {seconds:.1} s"),
        Err(_) => eprintln!("xtask: {what}: failed after {seconds:.1} s"),
    }
}

/// Runs `command` with its output captured; answers its standard output.
///
/// # Errors
/// It cannot be started, or fails: then its last lines are the message.
pub fn output(command: &mut Command) -> Result<String> {
    let name = name(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(3)..].join("; ");
        bail!("{name} failed ({}): {last}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with this process's output; fails if it fails.
///
/// # Errors
/// It cannot be started, or does not exit with 0.
pub fn shown(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("running {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
