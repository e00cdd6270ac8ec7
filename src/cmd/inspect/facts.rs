//! The facts of one process.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::descriptors::{self, Descriptor};
use super::find;
use super::groups::{self, Group};
use super::limits::{self, Limit};
use super::namespaces::{self, Namespace};
use super::status::{self, Capabilities, Seccomp};
use super::text;

/// How many names of a root folder are listed.
const NAMES: usize = 16;

/// A process. What may not be looked at is null, and `unreadable` says so.
#[derive(Debug, Serialize)]
pub struct Process {
    pub pid: u32,
    /// Its number inside, if it has a namespace of its own for that.
    pub inner_pid: Option<u32>,
    pub parent: Option<u32>,
    pub command: Vec<String>,
    /// The effective user's number.
    pub user: Option<u32>,
    pub namespaces: Option<Vec<Namespace>>,
    pub capabilities: Option<Capabilities>,
    pub no_new_privs: Option<bool>,
    pub threads: Option<Vec<Thread>>,
    pub landlock: &'static str,
    pub cgroups: Option<Vec<Group>>,
    pub limits: Option<Vec<Limit>>,
    pub root: Option<Root>,
    pub descriptors: Option<Vec<Descriptor>>,
    /// What could not be looked at, and why.
    pub unreadable: Vec<String>,
}

/// A thread; what it may do is each thread's own.
#[derive(Debug, PartialEq, Serialize)]
pub struct Thread {
    pub id: u32,
    pub name: String,
    pub seccomp: Option<Seccomp>,
    /// How many filters it has.
    pub filters: Option<u32>,
    pub no_new_privs: Option<bool>,
    pub effective: Option<Vec<String>>,
}

/// The root folder.
#[derive(Debug, PartialEq, Serialize)]
pub struct Root {
    /// Whether it is another than that of the process that looks.
    pub own: bool,
    /// The first names in it.
    pub names: Vec<String>,
    /// Whether there are more.
    pub more: bool,
}

/// Notes what cannot be looked at.
struct Look {
    unreadable: Vec<String>,
    refused: bool,
}

impl Look {
    fn at<T>(&mut self, what: &str, seen: io::Result<T>) -> Option<T> {
        let why = match seen {
            Ok(seen) => return Some(seen),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                self.refused = true;
                "permission denied".to_owned()
            }
            Err(error) => error.kind().to_string(),
        };
        self.unreadable.push(format!("{what}: {why}"));
        None
    }
}

impl Process {
    /// Looks at a process; `true` if something was refused.
    ///
    /// # Errors
    /// There is no such process.
    pub fn look(pid: u32) -> io::Result<(Self, bool)> {
        let folder = find::folder(pid);
        let status = text::read(folder.join("status"))?;
        let mut look = Look { unreadable: Vec::new(), refused: false };
        let process = Self {
            pid,
            inner_pid: status::inner_pid(&status).filter(|inner| *inner != pid),
            parent: text::field(&status, "PPid").and_then(|text| text.parse().ok()).filter(|pid| *pid != 0),
            command: find::arguments(pid),
            user: status::user(&status),
            namespaces: look.at("namespaces", namespaces::of(&folder)),
            capabilities: Capabilities::of(&status),
            no_new_privs: status::no_new_privs(&status),
            threads: look.at("threads", threads(&folder)),
            landlock: "unknown",
            cgroups: look.at("cgroups", groups::of(&folder)),
            limits: look.at("limits", text::read(folder.join("limits")).map(|text| limits::parse(&text))),
            root: look.at("root folder", root(&folder)),
            descriptors: look.at("descriptors", descriptors::of(&folder)),
            unreadable: look.unreadable,
        };
        Ok((process, look.refused))
    }
}

fn threads(folder: &Path) -> io::Result<Vec<Thread>> {
    let tasks = folder.join("task");
    let thread = |id: u32| {
        // It may have ended while we look.
        let status = text::read(tasks.join(id.to_string()).join("status")).ok()?;
        Some(Thread {
            id,
            name: text::field(&status, "Name").unwrap_or_default().to_owned(),
            seccomp: Seccomp::of(&status),
            filters: text::field(&status, "Seccomp_filters").and_then(|text| text.parse().ok()),
            no_new_privs: status::no_new_privs(&status),
            effective: Capabilities::of(&status).map(|it| it.effective),
        })
    };
    Ok(text::numbers(&tasks)?.into_iter().filter_map(thread).collect())
}

fn root(folder: &Path) -> io::Result<Root> {
    let path = folder.join("root/");
    let (theirs, ours) = (fs::metadata(&path)?, fs::metadata("/")?);
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Ok(Root { own: false, names: Vec::new(), more: false });
    }
    let mut names: Vec<String> = fs::read_dir(&path)?
        .take(NAMES + 1)
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let more = names.len() > NAMES;
    names.truncate(NAMES);
    names.sort();
    Ok(Root { own: true, names, more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_see_all_of_ourselves() {
        let (process, refused) = Process::look(std::process::id()).unwrap();
        assert!(!refused && process.unreadable.is_empty(), "{process:?}");
        assert_eq!(process.root.unwrap(), Root { own: false, names: Vec::new(), more: false });
        assert!(process.capabilities.is_some() && process.no_new_privs.is_some());
        assert!(process.threads.unwrap().iter().all(|thread| thread.seccomp.is_some()));
    }

    #[test]
    fn who_is_not_there_is_not_found() {
        // More than any kernel gives.
        assert_eq!(Process::look(u32::MAX).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
