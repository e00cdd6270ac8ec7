//! A listing of what the filters let through.

use std::fmt::Write;

use serde::Serialize;
use syscalls::Sysno;

use super::groups::{GROUPS, Group, When};
use super::rules::{Check, Rule};

/// The JSON report. A change that breaks a reader raises the schema's number.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    groups: Vec<Calls>,
}

/// What a machine that has `when` lets `threads` call.
#[derive(Serialize)]
struct Calls {
    group: &'static str,
    threads: Vec<&'static str>,
    when: When,
    calls: Vec<Call>,
}

#[derive(Serialize)]
struct Call {
    name: &'static str,
    number: i64,
    argument: Option<Argument>,
}

/// This argument, counted from 0, is `value` in the bits of `mask`.
#[derive(Serialize)]
struct Argument {
    index: u8,
    mask: u64,
    value: Expected,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Expected {
    Number(u64),
    /// A process, which each kite knows for itself.
    Process(&'static str),
}

impl From<&Rule> for Call {
    fn from(&(number, check): &Rule) -> Self {
        let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
        let all = u64::from(u32::MAX);
        let number_at = |index, mask, value| Argument { index, mask, value: Expected::Number(value) };
        let process = |name| Argument { index: 0, mask: all, value: Expected::Process(name) };
        let argument = match check {
            Check::Any => None,
            Check::Request(value) => Some(number_at(1, all, value)),
            Check::NoExec => Some(number_at(2, libc::PROT_EXEC as u64, 0)),
            Check::Is(index, value) => Some(number_at(index, all, value)),
            Check::IsVm => Some(process("the VM process")),
            Check::IsThis => Some(process("the process itself")),
        };
        Self { name, number, argument }
    }
}

impl From<&Group> for Calls {
    fn from(group: &Group) -> Self {
        let calls = group.rules.iter().map(Call::from).collect();
        let mut threads: Vec<_> = group.threads.iter().map(|thread| thread.name()).collect();
        // Shares have two kinds of threads, of which one makes some of the other's calls.
        threads.dedup();
        Self { group: group.name, threads, when: group.when, calls }
    }
}

/// Every system call that a thread of the machine may make in the sandbox, for people or as JSON.
///
/// # Errors
/// It cannot be put as JSON.
pub fn listing(json: bool) -> serde_json::Result<String> {
    let groups: Vec<_> = GROUPS.iter().map(Calls::from).collect();
    if json {
        return Ok(serde_json::to_string_pretty(&Report { schema: "calls/1", groups })? + "\n");
    }
    Ok(table(&groups))
}

fn table(groups: &[Calls]) -> String {
    let mut text = String::new();
    for Calls { group, threads, when, calls } in groups {
        let when = when.words().map(|when| format!(", {when}")).unwrap_or_default();
        let _ = writeln!(text, "{group} ({}{when})", threads.join(", "));
        for Call { name, argument, .. } in calls {
            let condition = argument.as_ref().map(Argument::words).unwrap_or_default();
            let _ = writeln!(text, "{}", format!("  {name:18}{condition}").trim_end());
        }
    }
    text
}

impl Argument {
    fn words(&self) -> String {
        let place = self.index + 1;
        let value = match self.value {
            Expected::Number(number) => format!("{number:#x}"),
            Expected::Process(name) => name.to_owned(),
        };
        match u32::try_from(self.mask) {
            Ok(u32::MAX) => format!("argument {place} = {value}"),
            _ => format!("argument {place} & {:#x} = {value}", self.mask),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_listed_with_its_thread_and_condition() {
        let text = listing(false).unwrap();
        assert!(text.starts_with("every (vcpu, io, share, vnc, main, supervisor)\n  brk\n"), "{text}");
        assert!(text.contains("\ndisk (io, with disks)\n"), "{text}");
        assert!(text.contains("\n  mmap              argument 3 & 0x4 = 0x0\n"), "{text}");
        assert!(text.contains("\n  ioctl             argument 2 = 0xae80\n"), "{text}");
        assert!(!text.contains("unknown"));
        let report: serde_json::Value = serde_json::from_str(&listing(true).unwrap()).unwrap();
        assert_eq!(report["groups"][0]["calls"][0]["name"], "brk");
    }
}
