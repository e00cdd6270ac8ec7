//! What kite itself says of a command that does not end as it should: at a terminal, where its output cannot be written, and
//! where nobody reads it.

use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::command::{AS_ROOT, kite, wait};
use super::limits::check_groups;
use super::terminal::Person;
use super::{Fixture, NotHere, kernel};

/// A command whose standard error is the terminal, so that its stream has ended before it has begun.
pub fn terminal(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let person = |options: &[&str], script: &str| {
        let mut command = kite(fixture, &kernel)?;
        command.args(options).args(["--", "sh", "-c", script]);
        Person::new(command, 24, 80)
    };
    let mut crash = person(&AS_ROOT, "echo up; sleep 1; echo c >/proc/sysrq-trigger")?;
    for text in
        ["up", "Kernel panic - not syncing: sysrq", "vCPU 0: ", "kite: the guest crashed: kernel panic"]
    {
        crash.sees(text)?;
    }
    ensure!(crash.ends()? == Some(255), "a crash has another status");
    let mut late = person(&["--idle-timeout", "5s"], "echo up; exec sleep 1000")?;
    late.sees("up")?;
    late.types("\x01h")?;
    late.sees("Ctrl-A Ctrl-A  send one Ctrl-A to the guest")?;
    late.sees("kite: the guest was ended: it neither ran nor printed for 5s")?;
    ensure!(late.ends()? == Some(124), "a command that is late has another status");
    if let Err(error) = check_groups(fixture) {
        ensure!(error.is::<NotHere>(), error);
        return Ok(format!("but for a limit's kill: {error:#}"));
    }
    let limits = ["--memory", "700M", "--limit", "memory=300M"];
    let mut killed = person(&limits, "echo up; exec head -c 500M /dev/zero >/tmp/much")?;
    killed.sees("up")?;
    killed.sees("kite: the host killed the machine: it took more than the 300 MiB")?;
    ensure!(killed.ends()? == Some(123), "a machine that took too much has another status");
    Ok(String::new())
}

/// Output that cannot be written, and output that nobody reads.
pub fn lost(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let log = fixture.file("log-that-may-not-grow");
    let mut command = Command::new("sh");
    let kite_itself = kite(fixture, &kernel)?;
    // The kernel says more than fits.
    command.args(["-c", "ulimit -f 8; exec \"$@\"", "sh"]);
    command.arg(kite_itself.get_program()).args(kite_itself.get_args()).arg("--kernel-log").arg(&log);
    command.args(["--", "sh", "-c", "echo hi; echo after >&2"]).stdin(Stdio::null());
    let full = File::options().write(true).open("/dev/full").context("opening /dev/full")?;
    let output = command.stdout(full).output().context("running kite")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(125), "a full disk: {output:?}");
    for line in [
        "kite: cannot write the command's standard output: No space left on device".to_owned(),
        format!("kite: cannot write the kernel's messages to {}: File too large", log.display()),
    ] {
        ensure!(said.lines().filter(|it| it.starts_with(&line)).count() == 1, "not once {line:?}: {said}");
    }
    fs::remove_file(&log).context("removing a file")?;

    let (_reader, writer) = io::pipe().context("making a pipe")?;
    let mut command = kite(fixture, &kernel)?;
    command.args(["--timeout", "15s", "--", "sh", "-c", "exec yes >&2"]);
    let mut flood = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn()?;
    let code = wait(&mut flood)?;
    ensure!(code == Some(124), "an unread standard error: {code:?}");
    Ok(String::new())
}
