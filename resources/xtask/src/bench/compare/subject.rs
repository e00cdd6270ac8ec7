//! What is compared: the ways to run a command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::Kernel;
use crate::step::output;

/// Where groups of version 2 are.
const CGROUPS: &str = "/sys/fs/cgroup";
const GROUP: &str = "kite-compare";

/// One way to run a command.
pub struct Subject {
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    Process,
    /// In namespaces, and a group if there is one.
    Container(Option<PathBuf>),
    /// `kite run` with these arguments.
    Machine(PathBuf, Vec<String>),
}

impl Subject {
    /// The command, run that way.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command;
        match &self.kind {
            Kind::Process => command = Command::new(words[0]),
            Kind::Container(group) => {
                let enter =
                    group.as_ref().map(|group| format!("echo 0 >{}/cgroup.procs && ", group.display()));
                let script =
                    format!("{}exec unshare -Urmpniuf --mount-proc \"$@\"", enter.unwrap_or_default());
                command = Command::new("sh");
                command.args(["-c", &script, "sh", words[0]]);
            }
            Kind::Machine(kite, options) => {
                command = Command::new(kite);
                command.arg("run").args(options).args(["--", words[0]]);
            }
        }
        command.args(&words[1..]);
        command
    }

    /// Whether it is a virtual machine.
    pub fn is_machine(&self) -> bool {
        matches!(self.kind, Kind::Machine(..))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Kind::Container(Some(group)) = &self.kind {
            // Who was in it may be on the way out; a group that stays is empty.
            let _ = fs::remove_dir(group);
        }
    }
}

/// All of them, and why others are left out.
///
/// # Errors
/// kite does not start.
pub fn subjects(kite: &Path, kernel: &Kernel) -> Result<(Vec<Subject>, Vec<String>)> {
    let mut left_out = Vec::new();
    let group = group().inspect_err(|error| left_out.push(format!("the container's group: {error:#}"))).ok();
    let help = output(Command::new(kite).args(["run", "--help"]))?;
    let sandboxes = help.contains("--sandbox");
    let path = |path: PathBuf| path.display().to_string();
    let options = ["--kernel".into(), path(kernel.bz_image()), "--modules".into(), path(kernel.modules())];
    let machine = |name, sandbox: &str| {
        let sandbox = sandboxes.then(|| format!("--sandbox={sandbox}"));
        Subject {
            name,
            kind: Kind::Machine(kite.to_owned(), options.iter().cloned().chain(sandbox).collect()),
        }
    };
    let mut subjects = vec![
        Subject { name: "process", kind: Kind::Process },
        Subject { name: "container", kind: Kind::Container(group) },
        machine("virtual machine", "none"),
    ];
    match sandboxes {
        true => subjects.push(machine("jailed virtual machine", "require")),
        false => left_out.push("the jailed virtual machine: this kite has no --sandbox".to_owned()),
    }
    Ok((subjects, left_out))
}

/// A group for the container, which limits its memory, as containers' do.
fn group() -> Result<PathBuf> {
    let top = Path::new(CGROUPS);
    fs::write(top.join("cgroup.subtree_control"), "+memory +pids")
        .context("it takes groups of version 2, and root")?;
    let group = top.join(GROUP);
    fs::create_dir_all(&group).context("making it")?;
    fs::write(group.join("memory.max"), "1G").context("limiting its memory")?;
    Ok(group)
}
