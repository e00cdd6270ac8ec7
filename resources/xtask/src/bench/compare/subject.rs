//! What is compared: the ways to run a command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;

use super::Programs;
use crate::host;
use crate::saved_image::{pack, save};
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

/// All of them, and why others are left out. An image for one of them is made in `folder`.
///
/// # Errors
/// kite does not start, or the image cannot be made.
pub fn subjects(
    programs: &Programs,
    kernel: &Kernel,
    folder: &TempDir,
) -> Result<(Vec<Subject>, Vec<String>)> {
    let kite = &programs.kite;
    let mut left_out = Vec::new();
    let group = group().inspect_err(|error| left_out.push(format!("the container's group: {error:#}"))).ok();
    let help = output(Command::new(kite).args(["run", "--help"]))?;
    let sandboxes = help.contains("--sandbox");
    let path = |path: PathBuf| path.display().to_string();
    let options = ["--kernel".into(), path(kernel.bz_image()), "--modules".into(), path(kernel.modules())];
    let machine = |name, sandbox: &str| {
        let sandbox = sandboxes.then(|| format!("--sandbox={sandbox}"));
        Subject { name, kind: Kind::Machine(kite.clone(), options.iter().cloned().chain(sandbox).collect()) }
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
    match help.contains("--image") {
        true => {
            let mut contained = machine("container in a jailed machine", "require");
            if let Kind::Machine(_, options) = &mut contained.kind {
                let image = image(&programs.probe, folder)?;
                options.extend(["--image".into(), path(image)]);
            }
            subjects.push(contained);
        }
        false => left_out.push("the container in a machine: this kite has no --image".to_owned()),
    }
    Ok((subjects, left_out))
}

/// An image with what the others run, from programs that need nothing else.
fn image(probe: &Path, folder: &TempDir) -> Result<PathBuf> {
    let busybox = host::program("busybox").context("there is no busybox")?;
    let root = folder.path().join("root");
    let place = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let write = |path: &Path, text: &str| {
        fs::create_dir_all(path.parent().unwrap_or(path)).and_then(|()| fs::write(path, text))
    };
    write(&root.join("etc/hostname"), "container\n").context("writing a file of an image")?;
    write(&root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").context("writing a file of an image")?;
    fs::create_dir_all(root.join("bin")).context("making a folder of an image")?;
    for to in ["true", "cat"].map(|name| root.join("bin").join(name)) {
        fs::copy(&busybox, &to).context("adding a program to an image")?;
    }
    let own = place(probe);
    fs::create_dir_all(own.parent().unwrap_or(&root)).context("making a folder of an image")?;
    fs::copy(probe, own).context("adding the probe to an image")?;
    let (layer, archive) = (folder.path().join("layer.tar"), folder.path().join("image.tar"));
    pack(&root, &layer)?;
    save(&layer, &json!({ "Cmd": ["true"] }), &archive)?;
    Ok(archive)
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
