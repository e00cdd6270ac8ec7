//! `kite inspect`: what confines a running kite, as `/proc` tells from outside (proc(5)).
//!
//! Nothing is asked of kite itself: what it says of itself would be no proof.

mod descriptors;
mod facts;
mod find;
mod groups;
mod limits;
mod namespaces;
mod status;
mod table;
mod text;

use std::fs;
use std::io::{self, ErrorKind};

use anyhow::{Context, anyhow};
use nix::unistd::geteuid;
use serde::Serialize;

use crate::cmd::doctor;
use crate::host::exit_code::DONE;
use crate::host::messages::{complain, print};
use crate::sandbox;
use facts::Process;
use find::Program;

/// What `kite inspect --help` ends with.
pub const HELP: &str = "\
Exit status: 0, or 1 if no PID is given and no kite runs.

What differs between kite and the process that looks is kite's own: look from the host, not from within a container. \
The supervisor and then its VM process are listed. The kernel does not show whether Landlock \
restricts a process.

Examples:
  kite inspect
  kite inspect --json | jq '.machines[].processes[] | {pid, no_new_privs}'
  kite inspect --calls
  sudo kite inspect 4242";

/// The host, for comparison.
#[derive(Debug, Serialize)]
struct Host {
    /// The version of Landlock that there is.
    landlock_abi: Option<i64>,
    /// How many capabilities there are.
    capabilities: usize,
}

/// A kite: the process asked for, and those of kite that it has started.
#[derive(Debug, Serialize)]
struct Machine {
    processes: Vec<Process>,
    /// Other programs that these have started.
    started: Vec<Started>,
}

/// Another program.
#[derive(Debug, Serialize)]
struct Started {
    pid: u32,
    parent: u32,
    name: String,
}

impl Machine {
    /// Other programs that a process has started.
    fn started_by(&self, pid: u32) -> Vec<String> {
        let started = self.started.iter().filter(|it| it.parent == pid);
        started.map(|it| format!("{}  {}", it.pid, it.name)).collect()
    }
}

/// The JSON report. A change that breaks a reader raises the schema's number.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    host: &'a Host,
    machines: &'a [Machine],
}

/// Prints what holds for a process, or for every running kite of this user; as JSON if asked to. Returns the exit status.
///
/// # Errors
/// There is no such process, it may not be looked at, or the report cannot be written.
pub fn run(pid: Option<u32>, json: bool) -> anyhow::Result<u8> {
    let program = Program::this();
    let machines = match pid {
        Some(pid) => vec![asked_for(&program, pid)?],
        None => {
            // Without it there are folders of no process, and so none that runs kite.
            fs::metadata("/proc/self").context("cannot look for processes")?;
            let found = program.machines().context("cannot read /proc")?;
            // One that has ended meanwhile does not run.
            found
                .into_iter()
                .filter_map(|pid| machine(&program, pid).ok())
                .map(|(machine, _)| machine)
                .collect()
        }
    };
    let host = Host {
        landlock_abi: doctor::landlock_abi(),
        capabilities: capabilities(&text::read("/proc/sys/kernel/cap_last_cap").unwrap_or_default()),
    };
    let report = match json {
        true => {
            let report = Report { schema: "inspect/1", host: &host, machines: &machines };
            serde_json::to_string_pretty(&report)? + "\n"
        }
        false => table::report(&machines, &host),
    };
    print(report, "the report")?;
    if machines.is_empty() {
        complain("no kite is running that this user may look at");
    }
    Ok(u8::from(machines.is_empty()))
}

/// Prints which system calls each kind of thread may make in the sandbox; as JSON if asked to. Returns the exit status.
///
/// # Errors
/// The report cannot be written.
pub fn calls(json: bool) -> anyhow::Result<u8> {
    print(sandbox::calls(json)?, "the list of calls")?;
    Ok(DONE)
}

/// The number of capabilities, from that of the last.
fn capabilities(last: &str) -> usize {
    let last: usize = last.trim().parse().unwrap_or(40);
    last.min(63) + 1
}

/// One process that the user names: it is there and may be looked at.
fn asked_for(program: &Program, pid: u32) -> anyhow::Result<Machine> {
    let (machine, refused) = machine(program, pid).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("there is no process {pid}; `kite inspect` finds those of kite"),
        _ => anyhow!(error).context(format!("cannot look at process {pid}")),
    })?;
    let user = machine.processes.first().and_then(|process| process.user);
    // Of a jailed process of one's own not all is to be seen, but most.
    if refused && user != Some(geteuid().as_raw()) {
        let whose = user.map(|user| format!(" of user {user}")).unwrap_or_default();
        return Err(anyhow!("process {pid}{whose} may not be looked at: run `sudo kite inspect {pid}`"));
    }
    Ok(machine)
}

/// A process and those it has started; `true` if the first itself may not be looked at.
fn machine(program: &Program, pid: u32) -> io::Result<(Machine, bool)> {
    let (first, refused) = Process::look(pid)?;
    let name = find::comm(pid);
    let mut machine = Machine { processes: vec![first], started: Vec::new() };
    for child in find::family(pid).into_iter().skip(1) {
        let comm = find::comm(child);
        // A machine that is shut off from us may hide even which program it is.
        if program.is_run_by(child) || comm == name {
            machine.processes.extend(Process::look(child).ok().map(|(process, _)| process));
        } else if let Some(parent) = find::parent(child) {
            machine.started.push(Started { pid: child, parent, name: comm });
        }
    }
    Ok((machine, refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_capabilities_is_one_more_than_the_last() {
        assert_eq!(capabilities("40\n"), 41);
        assert_eq!(capabilities(""), 41);
        assert_eq!(capabilities("999"), 64);
    }

    #[test]
    fn other_programs_are_named_with_who_started_them() {
        let (machine, refused) = machine(&Program::this(), std::process::id()).unwrap();
        assert!(!refused);
        assert_eq!(machine.processes[0].pid, std::process::id());
        let host = Host { landlock_abi: Some(7), capabilities: 41 };
        let text = table::report(&[machine], &host);
        assert!(text.contains("the host has ABI 7") && text.contains("user    4"), "{text}");
        // Another test may have started a process just now: a blank line parts two.
        let is_row = |line: &str| line.is_empty() || line.starts_with("process ") || line.starts_with("  ");
        assert!(text.lines().all(is_row), "{text}");
    }

    /// Reads a text as every file that it may be.
    fn read_as_all(text: &str) {
        let _ = crate::sandbox::cgroup::places(text, text);
        let _ = limits::parse(text);
        let _ = (status::Capabilities::of(text), status::Seccomp::of(text), status::user(text));
        let _ = (status::no_new_privs(text), status::inner_pid(text), capabilities(text));
        let _ = (descriptors::what(text, text), descriptors::flags(text));
        let _ = (find::words(text.as_bytes()), find::program(text), namespaces::parse(text, "user"));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let files = ["status", "limits", "cgroup", "mountinfo", "fdinfo/0", "cmdline"];
        let real: Vec<_> =
            files.iter().filter_map(|file| std::fs::read(format!("/proc/self/{file}")).ok()).collect();
        assert!(real.len() >= 4);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for round in 0..2000 {
            let mut bytes = real[round % real.len()].clone();
            for _ in 0..1 + random(8) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] = [b'\n', b':', b' ', b'-', b'\\', 0, 0xff, b'/'][random(8)],
                    1 => bytes[at] = random(256) as u8,
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, b"\xf0\x9f\xaa\x81"[random(4)]),
                }
            }
            read_as_all(&String::from_utf8_lossy(&bytes));
        }
    }
}
