//! `--log`: where engines read why a command of the runtime failed.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::ValueEnum;
use nix::fcntl::OFlag;

use crate::host::messages;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line of `key=value`
    #[default]
    Text,
    /// An object a line
    Json,
}

/// The log of one command.
pub struct Log {
    /// Its file; none if there is none.
    pub path: Option<PathBuf>,
    /// How it is written.
    pub format: Format,
}

impl Log {
    /// Says why the command failed, on standard error and in the log.
    pub fn error(&self, message: &str) {
        messages::complain(message);
        self.write("error", message);
    }

    /// Says in the log alone what is done without.
    pub fn warning(&self, message: &str) {
        self.write("warning", message);
    }

    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.path else { return };
        let line = line(self.format, level, message, SystemTime::now());
        // What is a pipe without a reader is not waited for.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let mut options = File::options();
        let opened = options.append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(path);
        if let Err(error) = opened.and_then(|mut file| file.write_all(line.as_bytes())) {
            messages::complain(&format!("cannot write the log {}: {error}", path.display()));
        }
    }
}

fn line(format: Format, level: &str, message: &str, time: SystemTime) -> String {
    let time = humantime::format_rfc3339_nanos(time).to_string();
    match format {
        Format::Json => format!("{}\n", serde_json::json!({"level": level, "msg": message, "time": time})),
        Format::Text => format!("time=\"{time}\" level={level} msg=\"{}\"\n", message.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_the_message_holds() {
        let message = "a \"b\"\n\u{1b}[2J";
        let json = line(Format::Json, "error", message, SystemTime::UNIX_EPOCH);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((value["level"].as_str(), value["msg"].as_str()), (Some("error"), Some(message)));
        assert_eq!(value["time"], "1970-01-01T00:00:00.000000000Z");
        let text = line(Format::Text, "error", message, SystemTime::UNIX_EPOCH);
        for line in [json, text] {
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line}");
            assert!(!line.contains('\u{1b}'));
        }
    }

    #[test]
    fn lines_are_added_and_a_planted_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Log { path: Some(path.clone()), format: Format::Json };
        log.warning("one");
        log.warning("two");
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Log { path: Some(link), format: Format::Text }.warning("three");
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
