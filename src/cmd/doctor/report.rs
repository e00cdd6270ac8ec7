//! The report: a line a check for people, or one JSON object for programs.

use std::env;
use std::io::{self, IsTerminal};

use serde::Serialize;

use super::{Check, Status};
use crate::host::messages::{self, printable};

/// The JSON report. A change that breaks a reader raises the schema's number.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    ok: bool,
    checks: &'a [Check],
}

/// Whether `kite run` has all it needs.
pub(super) fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

/// Prints the report.
pub(super) fn print(checks: &[Check], json: bool) -> anyhow::Result<()> {
    let report = if json { as_json(checks)? } else { as_text(checks, wants_colour()) };
    messages::print(report, "the report")
}

/// Colour is for terminals, unless their user does not want it (<https://no-color.org>).
fn wants_colour() -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

fn as_json(checks: &[Check]) -> anyhow::Result<String> {
    let report = Report { schema: "doctor/1", ok: passed(checks), checks };
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

fn as_text(checks: &[Check], colour: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut report = String::new();
    for check in checks {
        let (status, paint) = match check.status {
            Status::Ok => ("ok", "\x1b[32m"),
            Status::Warn => ("warn", "\x1b[33m"),
            Status::Fail => ("fail", "\x1b[31m"),
        };
        let (paint, plain) = if colour { (paint, "\x1b[0m") } else { ("", "") };
        report += &format!("{paint}{status:4}{plain}  {:width$}  {}\n", check.name, printable(&check.found));
        if let Some(fix) = &check.fix {
            report += &format!("      fix: {}\n", printable(fix));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::Problem;

    fn checks() -> Vec<Check> {
        vec![
            Check::needed("/dev/kvm", Ok("API 12".into())),
            Check::optional("tun", Err(Problem::new("/dev/\x1b[31m\n is missing", "modprobe tun"))),
        ]
    }

    #[test]
    fn columns_line_up_and_control_characters_are_shown() {
        let expected = "ok    /dev/kvm  API 12\n\
            warn  tun       /dev/\\u{1b}[31m\\n is missing\n\x20     fix: modprobe tun\n";
        assert_eq!(as_text(&checks(), false), expected);
    }

    #[test]
    fn colour_is_on_the_status_only() {
        assert!(
            as_text(&checks(), true)
                .starts_with("\x1b[32mok  \x1b[0m  /dev/kvm  API 12\n\x1b[33mwarn\x1b[0m  tun")
        );
    }

    #[test]
    fn json_holds_every_field() {
        let report: serde_json::Value = serde_json::from_str(&as_json(&checks()).unwrap()).unwrap();
        let expected = serde_json::json!({
            "schema": "doctor/1",
            "ok": true,
            "checks": [
                {"name": "/dev/kvm", "status": "ok", "needed": true, "found": "API 12", "fix": null},
                {"name": "tun", "status": "warn", "needed": false,
                 "found": "/dev/\u{1b}[31m\n is missing", "fix": "modprobe tun"},
            ],
        });
        assert_eq!(report, expected);
    }
}
