//! A container's group, in the hierarchy of version 2, at the path that an engine names (the kernel's
//! admin-guide/cgroup-v2): made with its limits, entered by the container's monitor, and removed with all that is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Controller, Folder, explain, own_places, set};

/// The controllers that the group gets if its host has them: engines read what they count.
const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// How often the group is tried to be made while others remove the groups around it.
const TRIES: u32 = 8;

/// Something written to a file of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
    /// Whether a kernel need not have it.
    optional: bool,
}

impl Setting {
    /// For a file that has to be there.
    pub fn new(file: &str, value: impl ToString) -> Self {
        Self { file: file.to_owned(), value: value.to_string(), optional: false }
    }

    /// The same for one that not every kernel has.
    pub fn if_there(self) -> Self {
        Self { optional: true, ..self }
    }

    fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// The place of a container's group.
#[derive(Debug)]
pub struct ContainerGroup {
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// The group below that.
    path: PathBuf,
}

impl ContainerGroup {
    /// The one at `path`, from the root of the hierarchy; nothing where this host has no hierarchy of version 2, or has
    /// its controllers in those of version 1.
    ///
    /// # Errors
    /// The kernel does not say what is mounted.
    pub fn at(path: &Path) -> anyhow::Result<Option<Self>> {
        let places = own_places()?;
        let controllers = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io];
        if places.iter().any(|place| controllers.iter().any(|it| place.is_v1_of(it.v1_name()))) {
            return Ok(None);
        }
        let mounts = places.into_iter().filter(|place| place.v1.is_none()).filter_map(|place| place.seen);
        Ok(mounts.map(|(mount, _)| Self { mount, path: path.to_owned() }).next())
    }

    /// Makes it, with these limits; answers how many of the groups on the way, itself among them, were there already.
    ///
    /// # Errors
    /// The host does not let it, lacks what a limit needs, or there are processes in it.
    pub fn make(&self, settings: &[Setting]) -> anyhow::Result<usize> {
        let what = || format!("cannot make the group {}", self.path.display());
        let mut made = self.try_make();
        for _ in 1..TRIES {
            if !matches!(made, Err(Errno::ENOENT | Errno::ENODEV)) {
                break;
            }
            made = self.try_make();
        }
        let (folder, found) = made.map_err(|errno| explain(errno, what()))?;
        let done = self.limit(&folder, settings);
        done.inspect_err(|_| {
            if found < self.path.iter().count() {
                let _others_are_in_it = self.remove(found, false);
            }
        })?;
        Ok(found)
    }

    /// Makes it and what is missing on the way; each gives what controllers it can.
    fn try_make(&self) -> Result<(Folder, usize), Errno> {
        let mut folder = Folder::open(&self.mount, Path::new(""))?;
        let mut found = 0;
        for (part, depth) in self.path.iter().zip(1..) {
            let here = folder.read("cgroup.controllers")?;
            let given = folder.read("cgroup.subtree_control")?;
            let has = |text: &str, name: &str| text.split_whitespace().any(|it| it == name);
            for name in WANTED.into_iter().filter(|name| has(&here, name) && !has(&given, name)) {
                // What a limit needs is looked for where it is needed.
                let _there_are_processes = folder.write("cgroup.subtree_control", &format!("+{name}"));
            }
            let name = part.to_str().ok_or(Errno::EINVAL)?;
            folder = match folder.make(name) {
                Err(Errno::EEXIST) => {
                    found = depth;
                    folder.folder(Path::new(name))?
                }
                made => made?,
            };
        }
        Ok((folder, found))
    }

    fn limit(&self, folder: &Folder, settings: &[Setting]) -> anyhow::Result<()> {
        let processes =
            folder.processes().map_err(|errno| explain(errno, "cannot look into a group".to_owned()))?;
        ensure!(processes.is_empty(), "the group {} is in use", folder.path().display());
        let here = folder.read("cgroup.controllers").unwrap_or_default();
        let needed: BTreeSet<_> =
            settings.iter().filter(|it| !it.optional).map(Setting::controller).collect();
        let missing: Vec<_> =
            needed.into_iter().filter(|name| !here.split_whitespace().any(|it| it == *name)).collect();
        ensure!(
            missing.is_empty(),
            "the group {} has no controller {}: the groups around it do not give it",
            folder.path().display(),
            missing.join(" and ")
        );
        let is_there = |it: &&Setting| !it.optional || folder.has(&it.file);
        settings.iter().filter(is_there).try_for_each(|it| set(folder, &it.file, &it.value))
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// The host does not let it.
    pub fn add(&self, process: Pid) -> anyhow::Result<()> {
        let what = || format!("cannot enter the group {}", self.path.display());
        let folder = Folder::open(&self.mount, &self.path).map_err(|errno| explain(errno, what()))?;
        folder.write("cgroup.procs", &process.to_string()).map_err(|errno| explain(errno, what()))
    }

    /// Removes it, and of the groups on the way those behind the first `found`, where they are empty. What is in it is ended if
    /// it `kills`.
    ///
    /// # Errors
    /// It cannot be removed. One that has gone is removed already.
    pub fn remove(&self, found: usize, kills: bool) -> anyhow::Result<()> {
        for (path, depth) in self.path.ancestors().zip((1..=self.path.iter().count()).rev()) {
            let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
            let name = name.and_then(|name| name.to_str()).context("a group has no name")?;
            let removed =
                Folder::open(&self.mount, parent).and_then(|parent| match parent.folder(Path::new(name)) {
                    Ok(group) if kills && path == self.path => super::remove(&parent, &group, name),
                    _ => parent.remove(name),
                });
            match removed {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) if path == self.path => {
                    return Err(explain(errno, format!("cannot remove the group {}", path.display())));
                }
                // Others are in it.
                Err(_) => break,
            }
            if depth <= found + 1 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A place in the hierarchy of version 2, whichever has the controllers.
    fn place(name: &str) -> Option<ContainerGroup> {
        let seen = own_places().ok()?.into_iter().find(|place| place.v1.is_none())?.seen?;
        let path = Path::new(&format!("kite-test-{}-{name}", std::process::id())).join("b/c");
        let group = ContainerGroup { mount: seen.0, path };
        match group.make(&[]) {
            Ok(0) => Some(group),
            made => {
                println!("skipped: {name}: {made:?}");
                None
            }
        }
    }

    #[test]
    fn a_group_is_removed_with_its_processes_and_what_was_made_on_the_way() {
        let Some(group) = place("removed") else { return };
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        group.add(Pid::from_raw(child.id() as i32)).unwrap();
        assert!(group.make(&[]).unwrap_err().to_string().contains("in use"));
        assert!(group.remove(0, false).is_err(), "a process is in it");
        group.remove(0, true).unwrap();
        assert!(!child.wait().unwrap().success());
        let top = group.mount.join(group.path.iter().next().unwrap());
        assert!(!top.exists());
        group.remove(0, true).unwrap();
    }

    #[test]
    fn what_others_made_on_the_way_stays() {
        let Some(group) = place("stays") else { return };
        let top = group.path.iter().next().unwrap();
        let other = ContainerGroup { mount: group.mount.clone(), path: Path::new(top).join("d") };
        assert_eq!(other.make(&[]).unwrap(), 1);
        group.remove(0, false).unwrap();
        let top = group.mount.join(top);
        assert!(top.join("d").exists() && !top.join("b").exists());
        other.remove(1, false).unwrap();
        assert!(top.exists() && !top.join("d").exists());
        std::fs::remove_dir(top).unwrap();
    }

    #[test]
    fn a_limit_without_its_controller_is_refused_and_leaves_nothing() {
        let Some(group) = place("refused") else { return };
        group.remove(0, false).unwrap();
        let settings = [Setting::new("nothing.max", 1), Setting::new("none.weight", 1).if_there()];
        let error = group.make(&settings).unwrap_err().to_string();
        assert!(error.contains("no controller nothing") && !error.contains("none"), "{error}");
        assert!(!group.mount.join(group.path.iter().next().unwrap()).exists());
        assert_eq!(group.make(&settings[1..]).unwrap(), 0);
        group.remove(0, false).unwrap();
    }
}
