//! A run: a machine, the command in it, and what is measured, as one document.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::{CommandSpec, RootSpec};
use super::machine::{self, ConsoleSpec, MachineSpec, OnReboot, default_memory};
use super::text;

/// The version of the document.
const VERSION: u32 = 1;
/// How much is said of what is wrong with a document, in characters.
const LONGEST_REASON: usize = 500;

/// What `kite run` is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    version: u32,
    /// The machine.
    #[serde(default = "machine::unset")]
    pub machine: MachineSpec,
    /// What runs in it; it only boots if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandSpec>,
    /// What is measured.
    #[serde(default)]
    pub measure: MeasureSpec,
    /// Show the kernel's messages, and what of the sandbox this host does not allow.
    #[serde(default)]
    pub verbose: bool,
}

/// What is measured of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureSpec {
    /// Exits are counted and timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<StatsSpec>,
    /// The file for when the boot came to what.
    #[serde(skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub trace: Option<PathBuf>,
    /// The file for what was on the screen when the run failed.
    #[serde(skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub screenshot_on_failure: Option<PathBuf>,
}

/// Where statistics go, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatsSpec {
    /// The file; standard error if none is given.
    #[serde(skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub file: Option<PathBuf>,
    /// Also each time that so much time has passed.
    #[serde(rename = "interval_ms", skip_serializing_if = "Option::is_none", with = "text::milliseconds")]
    pub interval: Option<Duration>,
}

/// Where a document is wrong, and how. What it quotes of the document may be long.
fn wrong(error: serde_json::Error) -> String {
    let place = format!("line {}, column {}", error.line(), error.column());
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    let end = what.char_indices().nth(LONGEST_REASON).map(|(at, _)| at);
    match end {
        Some(end) => format!("{place}: {}...", &what[..end]),
        None => format!("{place}: {what}"),
    }
}

impl RunSpec {
    /// A run of this version's.
    pub fn new(
        machine: MachineSpec,
        command: Option<CommandSpec>,
        measure: MeasureSpec,
        verbose: bool,
    ) -> Self {
        Self { version: VERSION, machine, command, measure, verbose }
    }

    /// Reads a document; what it leaves out is as if no option said it.
    ///
    /// # Errors
    /// It is no such document, in one line that says where.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // A later version's fields are not known.
        let Version { version } = serde_json::from_slice(json).map_err(wrong)?;
        if version != VERSION {
            return Err(format!("it has version {version}, and this kite knows version {VERSION}"));
        }
        let mut spec: Self = serde_json::from_slice(json).map_err(wrong)?;
        if spec.machine.memory == 0 {
            spec.machine.memory = default_memory(spec.command.is_some());
        }
        Ok(spec)
    }

    /// The document, without a line break at its end.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data can be written as JSON")
    }

    /// Has relative paths of the host's begin at `folder`.
    pub fn rebase(&mut self, folder: &Path) {
        self.machine.rebase(folder);
        self.command.iter_mut().for_each(|command| command.rebase(folder));
        let stats = self.measure.stats.iter_mut().filter_map(|stats| stats.file.as_mut());
        let files = stats.chain(&mut self.measure.trace).chain(&mut self.measure.screenshot_on_failure);
        files.for_each(|path| *path = folder.join(&*path));
    }

    /// Whether all of it goes together; what depends on the host is looked at when it is opened.
    ///
    /// # Errors
    /// What does not, in one line.
    pub fn validate(&self) -> Result<(), String> {
        self.machine.check()?;
        if self.measure.screenshot_on_failure.is_some() && self.machine.screen().is_none() {
            return Err("--screenshot-on-failure: it needs --screen".to_owned());
        }
        match &self.command {
            Some(command) => self.check_with_command(command),
            None => self.check_without_command(),
        }
    }

    fn check_with_command(&self, command: &CommandSpec) -> Result<(), String> {
        let machine = &self.machine;
        command.check()?;
        let wrong = [
            (machine.boot.initrd.is_some(), "a command needs kite's own initrd: leave out --initrd"),
            (!machine.acpi, "a command needs virtio devices, which only ACPI tells of: leave out --no-acpi"),
            (machine.on_reboot != OnReboot::Exit, "a command is run once: leave out --on-reboot restart"),
            (machine.test_devices, "a command ends with its own status: leave out --test-devices"),
            (
                machine.console != ConsoleSpec::Auto,
                "a command has streams instead of a console: leave out --console",
            ),
            (
                command.root == Some(RootSpec::Disk) && machine.disks().next().is_none(),
                "--root disk needs a disk: name one with --disk",
            ),
        ];
        wrong.iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, why)| Err((*why).to_owned()))
    }

    fn check_without_command(&self) -> Result<(), String> {
        if self.machine.nets().any(|net| net.guest.is_some()) {
            return Err("ip=, gw= and dns= of --net are for kite's own /init, which sets them up for a command; name \
                        one behind --"
                .to_owned());
        }
        if self.machine.shares().next().is_some() {
            return Err("--share is for a command in the guest, and there is none".to_owned());
        }
        Ok(())
    }

    /// Whether all that the kernel prints is shown or logged.
    pub fn shows_kernel(&self) -> bool {
        self.verbose || self.command.as_ref().is_some_and(|command| command.kernel_log.is_some())
    }

    /// Whether the guest has a virtio console. Without ACPI it cannot find one, and in front of a user space that is
    /// not kite's two consoles would mean two logins.
    pub fn has_virtio_console(&self) -> bool {
        let machine = &self.machine;
        match machine.console {
            ConsoleSpec::Auto => machine.boot.initrd.is_none() && machine.acpi && self.command.is_none(),
            console => console == ConsoleSpec::Virtio,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_document_leaves_out_is_as_without_options() {
        let spec = RunSpec::from_json(br#"{"version": 1}"#).unwrap();
        assert_eq!(spec, RunSpec::new(MachineSpec::default(), None, MeasureSpec::default(), false));
        let spec = RunSpec::from_json(br#"{"version": 1, "command": {"argv": ["true"]}}"#).unwrap();
        assert_eq!((spec.machine.memory, spec.validate()), (1 << 30, Ok(())));
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_place() {
        for (json, expected) in [
            ("", "line 1, column 0: EOF"),
            ("{}", "line 1, column 2: missing field `version`"),
            ("{\"version\": 1,\n \"machine\": {\"cpu\": 2}}", "line 2, column 18: unknown field `cpu`"),
            (
                "{\"version\": 1, \"machine\": {\"devices\": [{\"disk\": {\"path\": \"x\", \"ro\": true}}]}}",
                "unknown field `ro`",
            ),
            ("{\"version\": 1, \"machine\": {\"devices\": [{\"rng\": {\"x\": 1}}]}}", "unknown field `x`"),
            ("{\"version\": 1, \"machine\": {\"devices\": [{\"gpu\": {}}]}}", "unknown variant `gpu`"),
            (
                "{\"version\": 1, \"machine\": {\"limits\": {\"io\": [{\"device\": \"8:0\", \"bps\": 1}]}}}",
                "unknown field `bps`",
            ),
            (
                "{\"version\": 1, \"machine\": {\"sandbox\": {\"mode\": \"auto\", \"without\": [\"namespaces\"]}}}",
                "add no-root",
            ),
            ("{\"version\": 1, \"command\": {\"argv\": [\"a\\u0000\"]}}", "cannot hold a NUL"),
            ("{\"version\": 1, \"command\": {\"argv\": [\"a\"], \"timeout_ms\": 0}}", "over at once"),
            ("{\"version\": 1, \"x\": 1}", "unknown field `x`"),
            ("{\"version\": 1} {}", "trailing characters"),
            ("{\"version\": 1, \"version\": 1}", "duplicate field `version`"),
        ] {
            let error = RunSpec::from_json(json.as_bytes()).unwrap_err();
            assert!(error.starts_with("line ") && error.contains(expected), "{json}: {error}");
        }
        let later = RunSpec::from_json(br#"{"version": 2, "future": {}}"#).unwrap_err();
        assert_eq!(later, "it has version 2, and this kite knows version 1");
        let long = format!("{{\"version\": 1, \"{}\": 1}}", "x".repeat(100_000));
        assert!(RunSpec::from_json(long.as_bytes()).unwrap_err().len() < 600);
        assert!(RunSpec::from_json("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (json, expected) in [
            (r#""machine": {"cpus": 0}"#, "at least 1"),
            (r#""machine": {"memory": 4096}"#, "at least 64M"),
            (r#""machine": {"memory": 67108865}"#, "whole pages"),
            (r#""machine": {"acpi": false, "devices": [{"disk": {"path": "x"}}]}"#, "need ACPI"),
            (r#""machine": {"acpi": false, "console": "virtio"}"#, "needs ACPI"),
            (r#""machine": {"boot": {"initrd": "x", "modules": "y"}}"#, "leave out --initrd"),
            (r#""machine": {"devices": [{"rng": {}}, {"rng": {}}]}"#, "more than one entropy device"),
            (r#""machine": {"devices": [{"disk": {"path": ""}}]}"#, "names no file"),
            (r#""machine": {"devices": [{"disk": {"path": "x", "queues": 65}}]}"#, "from 1 to 64"),
            (
                r#""machine": {"devices": [{"net": {"backend": {"tap": {"name": "a/b"}}}}]}"#,
                "interface's name",
            ),
            (
                r#""machine": {"devices": [{"net": {"backend": {"tap": {"name": "t", "queues": 0}}}}]}"#,
                "1 to 256 queues",
            ),
            (
                r#""machine": {"devices": [{"net": {"backend": {"user": {}}, "mac": "01:00:00:00:00:00"}}]}"#,
                "no address of one interface",
            ),
            (r#""machine": {"devices": [{"port": {"name": "a b", "path": "x"}}]}"#, "a port's name"),
            (r#""machine": {"devices": [{"share": {"folder": "x"}}]}"#, "for a command"),
            (r#""machine": {"devices": [{"screen": {"width": 63, "height": 64}}]}"#, "each side of a screen"),
            (
                r#""machine": {"devices": [{"screen": {"width": 64, "height": 64}}, {"screen": {"width": 64, "height": 64}}]}"#,
                "more than one screen",
            ),
            (r#""measure": {"screenshot_on_failure": "x"}"#, "--screenshot-on-failure: it needs --screen"),
            (r#""machine": {"cgroup": "a/b"}"#, "a group's name"),
            (r#""machine": {"limits": {"cpu_us": 1}}"#, "at least 0.01"),
            (r#""machine": {"limits": {"pids": 0}}"#, "more than 0"),
            (
                r#""machine": {"limits": {"io": [{"device": "x", "rbps": 1}, {"device": "x", "wbps": 1}]}}"#,
                "limited twice",
            ),
            (r#""machine": {"test_devices": true}, "command": {"argv": ["x"]}"#, "leave out --test-devices"),
            (r#""command": {"argv": []}"#, "argv is empty"),
            (r#""command": {"argv": [""]}"#, "names no program"),
            (r#""command": {"argv": ["x"], "root": "disk"}"#, "needs a disk"),
            (r#""command": {"root": {"image": {"reference": ""}}}"#, "names no image"),
            (r#""command": {"root": {"image": {"reference": "x\u0000"}}}"#, "cannot hold a NUL"),
            (r#""command": {"root": "disk"}"#, "argv is empty"),
            (r#""command": {"argv": ["x"], "user": {"user": "a:b"}}"#, "USER or USER:GROUP"),
            (r#""command": {"argv": ["x"], "env": [{"name": "A=B"}]}"#, "NAME=VALUE"),
        ] {
            let json = format!("{{\"version\": 1, {json}}}");
            let refused = RunSpec::from_json(json.as_bytes()).and_then(|spec| spec.validate());
            let error = refused.expect_err(&json);
            assert!(error.contains(expected) && !error.contains('\n'), "{json}: {error}");
        }
    }
}
