//! The commands for machines that run: what there are, what is on the screen of one, and how it is paused and ended.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::host::atomic_file;
use crate::host::exit_code::DONE;
use crate::host::messages::{complain, print, printable};
use crate::observe::screenshot;
use crate::sandbox::control::{self, Description};
use crate::spec::id::MachineId;

/// What `kite list --help` ends with.
pub const LIST_HELP: &str = "\
The machines of this user that were started with --id or --screen.

Exit status: 0, or 125 if something went wrong.

Examples:
  kite list
  kite list --json | jq -r '.machines[] | select(.screen) | .id'";
/// What `kite screenshot --help` ends with.
pub const SCREENSHOT_HELP: &str = "\
The file is a PNG, written whole or not at all. Without an ID it is a picture of the one machine of this user that has a
screen.

Exit status: 0, or 125 if something went wrong.

Examples:
  kite screenshot screen.png
  kite screenshot installer screen.png";
/// What `kite pause --help` ends with.
pub const PAUSE_HELP: &str = "\
Its vCPUs stop between two instructions, and use no processor time until `kite resume`. Viewers see what is on the screen.
--timeout of its command goes on.

Exit status: 0, or 125 if something went wrong.

Example:
  kite pause build";
/// What `kite resume --help` ends with.
pub const RESUME_HELP: &str = "\
Exit status: 0, or 125 if something went wrong.

Example:
  kite resume build";
/// What `kite stop --help` ends with.
pub const STOP_HELP: &str = "\
The machine ends as it does when its kite gets SIGTERM, and this waits until it has.

Exit status: 0, or 125 if something went wrong.

Examples:
  kite stop build
  kite stop build --timeout 1m                 for a command that takes long to end";
/// The columns of the list.
const COLUMNS: [&str; 6] = ["ID", "PID", "SINCE", "STATE", "SCREEN", "COMMAND OR KERNEL"];

/// A machine in the list's JSON.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    pid: u32,
    since: String,
    state: &'static str,
    screen: bool,
    command: Option<&'a str>,
    kernel: &'a str,
}

/// The JSON of the list. A change that breaks a reader raises the schema's number.
#[derive(Serialize)]
struct List<'a> {
    schema: &'static str,
    machines: Vec<Line<'a>>,
}

impl<'a> Line<'a> {
    fn of(machine: &'a Description) -> Self {
        let facts = &machine.facts;
        let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(facts.since));
        // The last second that the format has.
        let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let since = since.unwrap_or(latest).min(latest);
        Self {
            id: facts.id.as_str(),
            pid: facts.pid,
            since: humantime::format_rfc3339_seconds(since).to_string(),
            state: if machine.paused { "paused" } else { "running" },
            screen: facts.screen,
            command: facts.command.as_deref(),
            kernel: &facts.kernel,
        }
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        let what = printable(self.command.unwrap_or(self.kernel));
        let screen = if self.screen { "yes" } else { "no" };
        let (id, pid, state) = (self.id.to_owned(), self.pid.to_string(), self.state.to_owned());
        [id, pid, self.since.clone(), state, screen.to_owned(), what]
    }
}

/// Prints which machines of this user run; as JSON if asked to. Returns the exit status.
///
/// # Errors
/// The folder of their sockets is not this user's alone, or the list cannot be written.
pub fn list(json: bool) -> anyhow::Result<u8> {
    let (machines, silent) = control::list()?;
    print(report(&machines, json)?, "the list")?;
    for id in silent {
        complain(&format!("machine {id} does not answer"));
    }
    Ok(DONE)
}

fn report(machines: &[Description], json: bool) -> anyhow::Result<String> {
    let machines: Vec<_> = machines.iter().map(Line::of).collect();
    if json {
        return Ok(serde_json::to_string_pretty(&List { schema: "list/1", machines })? + "\n");
    }
    let rows: Vec<_> =
        std::iter::once(COLUMNS.map(str::to_owned)).chain(machines.iter().map(Line::cells)).collect();
    let widths: Vec<_> = (0..COLUMNS.len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    Ok(text)
}

/// Writes what is on the screen of a machine into `file`. Returns the exit status.
///
/// # Errors
/// There is no such machine, or it has no screen or does not answer; or the file cannot be written.
pub fn screenshot(id: Option<&MachineId>, file: &Path) -> anyhow::Result<u8> {
    atomic_file::check(file)?;
    let id = match id {
        Some(id) => id.clone(),
        None => the_one_with_a_screen(control::list()?.0)?,
    };
    let picture = control::connect(&id)?.screenshot()?;
    let surface = picture.surface().with_context(|| format!("cannot take a picture of machine {id}"))?;
    screenshot::write(&surface, file)?;
    Ok(DONE)
}

/// Pauses a machine, or lets it go on. Returns the exit status.
///
/// # Errors
/// There is no such machine, or it cannot or does not answer.
pub fn pause(id: &MachineId, pause: bool) -> anyhow::Result<u8> {
    control::connect(id)?.pause(pause).map(|()| DONE)
}

/// Ends a machine, and kills it after `timeout`. Returns the exit status.
///
/// # Errors
/// There is no such machine, or it does not end.
pub fn stop(id: &MachineId, timeout: Duration) -> anyhow::Result<u8> {
    control::connect(id)?.stop(timeout).map(|()| DONE)
}

/// The machine that is meant where none is named.
fn the_one_with_a_screen(machines: Vec<Description>) -> anyhow::Result<MachineId> {
    let mut ids: Vec<_> =
        machines.into_iter().filter(|it| it.facts.screen).map(|machine| machine.facts.id).collect();
    match ids.len() {
        0 => bail!("no machine with a screen runs: start one with kite run --screen"),
        1 => Ok(ids.remove(0)),
        _ => {
            let names: Vec<_> = ids.iter().map(MachineId::as_str).collect();
            bail!("several machines have a screen: name one of {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::control::Facts;

    fn machine(id: &str, command: Option<&str>) -> Description {
        let facts = Facts {
            id: MachineId::parse(id).unwrap(),
            pid: 4242,
            since: 1_767_323_045,
            command: command.map(str::to_owned),
            kernel: "/boot/vmlinuz".to_owned(),
            screen: command.is_none(),
        };
        Description { facts, paused: command.is_none() }
    }

    #[test]
    fn machines_are_shown_a_line_each_and_no_terminal_obeys_them() {
        let text = report(&[machine("a", None), machine("long-name", Some("sh\x1b[2J"))], false).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ID         PID   SINCE                 STATE    SCREEN  COMMAND OR KERNEL",
                "a          4242  2026-01-02T03:04:05Z  paused   yes     /boot/vmlinuz",
                "long-name  4242  2026-01-02T03:04:05Z  running  no      sh\\u{1b}[2J",
            ]
        );
    }

    #[test]
    fn where_none_is_named_the_one_with_a_screen_is_meant() {
        let meant = |machines: &[(&str, Option<&str>)]| {
            let machines = machines.iter().map(|(id, command)| machine(id, *command)).collect();
            the_one_with_a_screen(machines).map(String::from).map_err(|error| error.to_string())
        };
        assert_eq!(meant(&[("a", Some("true")), ("b", None)]), Ok("b".to_owned()));
        assert!(meant(&[("a", Some("true"))]).unwrap_err().contains("start one with kite run --screen"));
        assert!(meant(&[("a", None), ("b", None)]).unwrap_err().ends_with("name one of a, b"));
    }

    #[test]
    fn a_time_that_no_calendar_has_is_the_last_one() {
        let mut machine = machine("a", None);
        machine.facts.since = u64::MAX;
        assert_eq!(Line::of(&machine).since, "9999-12-31T23:59:59Z");
    }
}
