//! A run: a machine, the command in it, and what is measured, as one document.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::{CommandSpec, RootSpec};
use super::machine::{ConsoleSpec, MachineSpec, OnReboot, default_memory};
use super::text;

/// The version of the document.
const VERSION: u32 = 1;

/// What `kite run` is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    version: u32,
    /// The machine.
    #[serde(default)]
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
        let wrong = |error: serde_json::Error| error.to_string();
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
        stats.chain(&mut self.measure.trace).for_each(|path| *path = folder.join(&*path));
    }

    /// Whether all of it goes together; what depends on the host is looked at when it is opened.
    ///
    /// # Errors
    /// What does not, in one line.
    pub fn validate(&self) -> Result<(), String> {
        self.machine.check()?;
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

    /// Whether somebody wants to see all that the kernel says.
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
