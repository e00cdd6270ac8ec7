//! Saying what is done: a spinner for each long step on a terminal, plain lines elsewhere; and commands whose
//! output is shown only if they fail.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

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
    let result = work();
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("xtask: {what}: done in {seconds:.1} s"),
        Err(_) => eprintln!("xtask: {what}: failed after {seconds:.1} s"),
    }
    result
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
