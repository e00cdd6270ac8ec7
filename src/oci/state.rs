//! A container's state: a folder `ROOT/ID`, which is its user's alone, with `state.json` and the socket of its monitor
//! (OCI runtime-spec 1.2, `runtime.md`).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::config;
use crate::host::atomic_file;

/// The version of the specification.
pub const VERSION: &str = "1.2.0";
/// The longest name, as that of a folder.
const LONGEST: usize = 255;
/// The record's file.
const RECORD: &str = "state.json";
/// The run that the machine is, as `kite run --spec` takes it.
pub const RUN: &str = "run.json";
/// The folder of single files that the container shows.
pub const FILES: &str = "files";
/// Why the monitor could not begin.
pub const FAILURE: &str = "failure";
/// The monitor's socket. The name is short, as is the room for a socket's path (unix(7)).
pub const SOCKET: &str = "c";
/// The socket of the guest's port for more processes.
pub const PROCESSES: &str = "x";

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its process runs.
    Running,
    /// Its machine is paused.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl Status {
    /// The specification's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's record: what `state` prints, and what distinguishes its monitor from a later process of that number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of the specification.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// What it did when this was written.
    pub status: Status,
    /// Its monitor's number.
    pub pid: i32,
    /// When that began, in the kernel's ticks since the boot.
    pub begun: u64,
    /// Its bundle.
    pub bundle: PathBuf,
    /// When it was made.
    pub created: String,
    /// What others say of it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Its group on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRecord>,
}

/// A container's group on the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Where it is, from the root of the hierarchy.
    pub path: PathBuf,
    /// How many of the groups on the way were there already; none while it is being made.
    pub found: Option<usize>,
}

/// A container's folder, open.
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// It itself.
    pub handle: OwnedFd,
}

/// Whether `id` names a container and nothing else.
///
/// # Errors
/// Why not, in one line.
pub fn check_id(id: &str) -> anyhow::Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
    let is_name = (1..=LONGEST).contains(&id.len()) && id.bytes().all(fits) && id != "." && id != "..";
    ensure!(is_name, "a container's ID is 1 to {LONGEST} letters, digits and _ + - . and no folder's dots");
    Ok(())
}

/// Where containers are if `--root` does not say.
pub fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty() && !is_host_root());
    own.map_or_else(|| "/run".into(), PathBuf::from).join("kite-oci")
}

/// Whether this process is root, and not only in a user namespace, as engines without root have it.
pub fn is_host_root() -> bool {
    const ALL: [&str; 3] = ["0", "0", "4294967295"];
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    geteuid().is_root() && (map.is_empty() || map.split_whitespace().eq(ALL))
}

/// Whether an error says that there is no such container.
#[derive(Debug)]
pub struct NoContainer(String);

impl std::fmt::Display for NoContainer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "container '{}' does not exist", self.0)
    }
}

impl std::error::Error for NoContainer {}

impl Folder {
    /// Makes that of a new container.
    ///
    /// # Errors
    /// There is one of that name, or it cannot be made.
    pub fn make(root: &Path, id: &str) -> anyhow::Result<Self> {
        check_id(id)?;
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(|| format!("cannot make {}", root.display()))?;
        let path = root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Self::open(root, id),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("container '{id}' already exists")
            }
            Err(error) => Err(error).with_context(|| format!("cannot make {}", path.display())),
        }
    }

    /// Opens that of a container.
    ///
    /// # Errors
    /// There is none, or it is another user's or a link.
    pub fn open(root: &Path, id: &str) -> anyhow::Result<Self> {
        check_id(id)?;
        let path = root.join(id);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = match open(&path, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(nix::Error::ENOENT) => return Err(NoContainer(id.to_owned()).into()),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        };
        let metadata = File::from(handle.try_clone()?).metadata()?;
        let is_ours = metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        ensure!(is_ours, "{} is another user's, or others can write to it", path.display());
        Ok(Self { path, handle })
    }

    /// The names of the containers below `root`.
    pub fn all(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| check_id(name).is_ok());
        names.sort();
        names
    }

    /// What is known of the container, as it is now: a monitor that has gone has stopped.
    ///
    /// # Errors
    /// The record cannot be read, or is no record.
    pub fn record(&self) -> anyhow::Result<Record> {
        let mut record: Record = config::read(&self.path.join(RECORD))?;
        if !record.is_alive() {
            record.status = Status::Stopped;
        }
        Ok(record)
    }

    /// Replaces the record in one step.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_record(&self, record: &Record) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(record).context("a record cannot be written as JSON")?;
        atomic_file::write(&self.path.join(RECORD), |file| file.write_all(&json))
    }

    /// Removes the folder and all in it. A link in it is removed, and not followed.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Record {
    /// Whether its monitor runs: the process of its number, if that is no later one.
    pub fn is_alive(&self) -> bool {
        self.pid > 0 && begun(self.pid) == Some(self.begun)
    }

    /// What `state` prints.
    pub fn to_json(&self) -> String {
        let pid = if self.status == Status::Stopped { 0 } else { self.pid };
        let state = serde_json::json!({
            "ociVersion": self.oci_version, "id": self.id, "status": self.status.name(), "pid": pid,
            "bundle": self.bundle, "created": self.created, "annotations": self.annotations,
        });
        format!("{state:#}")
    }
}

/// When a process began, in the kernel's ticks since the boot; nothing if it has ended (proc_pid_stat(5)).
pub fn begun(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    (!has_ended).then(|| fields.nth(18)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: i32, begun: u64) -> Record {
        Record {
            oci_version: VERSION.to_owned(),
            id: "a".to_owned(),
            status: Status::Running,
            pid,
            begun,
            bundle: "/b".into(),
            created: String::new(),
            annotations: BTreeMap::new(),
            group: None,
        }
    }

    #[test]
    fn an_id_names_one_folder() {
        for id in ["a", "A-b_c+d.e", "..a", &"x".repeat(255)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "/", "a b", "ä", "a\0", "a\n", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_container_is_made_once_and_its_state_is_nobody_else_s() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::make(root.path(), "a").unwrap();
        assert_eq!(fs::metadata(&folder.path).unwrap().mode() & 0o777, 0o700);
        assert!(Folder::make(root.path(), "a").err().unwrap().to_string().contains("already exists"));
        assert!(Folder::open(root.path(), "b").err().unwrap().is::<NoContainer>());
        std::os::unix::fs::symlink(&folder.path, root.path().join("link")).unwrap();
        assert!(Folder::open(root.path(), "link").is_err());
        assert_eq!(Folder::all(root.path()), ["a", "link"]);
    }

    #[test]
    fn a_monitor_that_has_gone_has_stopped_though_another_process_has_its_number() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::make(root.path(), "a").unwrap();
        let pid = std::process::id() as i32;
        let since = begun(pid).unwrap();
        for (begun, expected) in [(since, Status::Running), (since + 1, Status::Stopped)] {
            folder.write_record(&record(pid, begun)).unwrap();
            let found = folder.record().unwrap();
            assert_eq!(found.status, expected);
            let shown: serde_json::Value = serde_json::from_str(&found.to_json()).unwrap();
            assert_eq!(shown["pid"], if begun == since { pid } else { 0 });
        }
        assert_eq!(begun(0), None);
    }

    #[test]
    fn removal_follows_no_link() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("precious")).unwrap();
        fs::write(root.path().join("precious/file"), "x").unwrap();
        let folder = Folder::make(root.path(), "a").unwrap();
        std::os::unix::fs::symlink(root.path().join("precious"), folder.path.join("files")).unwrap();
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(root.path().join("precious/file").exists() && !folder.path.exists());
    }

    #[test]
    fn a_hostile_record_is_one_error() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::make(root.path(), "a").unwrap();
        for text in ["", "{", "[]", "{\"id\": 1}", &"[".repeat(100_000)] {
            fs::write(folder.path.join(RECORD), text).unwrap();
            assert!(!folder.record().unwrap_err().to_string().contains('\n'), "{text:.20}");
        }
    }
}
