//! Runs of kite to their end, most of which it refuses, in a folder of their own.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::child::{End, Running};
use super::{KITE, NOBODY};

/// A folder with kite's input in it. It is kite's current and temporary folder, too.
pub struct Attempt {
    folder: TempDir,
}

impl Attempt {
    /// An empty folder that everybody can look into.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    /// A folder with a kernel of this content, and that kernel.
    pub fn with(kernel: &[u8]) -> (Self, PathBuf) {
        let attempt = Self::new();
        let kernel = attempt.file("kernel", kernel);
        (attempt, kernel)
    }

    /// Where a file of this name is or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file with this content.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A file that begins with this content and goes on as a hole up to `len` bytes.
    pub fn sparse(&self, name: &str, content: &[u8], len: u64) -> PathBuf {
        let path = self.file(name, content);
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        path
    }

    /// A pipe with a name, and nobody at its other end.
    pub fn pipe(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        path
    }

    /// A copy of kite that everybody may run.
    pub fn kite(&self) -> PathBuf {
        let path = self.path("kite");
        // Not written by this process: a child of another test may inherit the open file, and until it has become
        // another program a file that is open for writing cannot be run.
        assert!(Command::new("cp").arg(KITE).arg(&path).status().unwrap().success());
        path
    }

    /// Runs kite with these arguments to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> End {
        self.end_of(Command::new(KITE).args(arguments))
    }

    /// Runs a command that becomes kite to its end. It must leave no file.
    pub fn end_of(&self, command: &mut Command) -> End {
        let folder = self.folder.path();
        let before = files(folder);
        command.current_dir(folder).env("TMPDIR", folder).env_remove("KITE_KERNEL");
        // Whoever runs the tests may have defaults.
        command.env("XDG_CONFIG_HOME", folder.join("config"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let end = Running::spawn(command).end();
        assert_eq!(files(folder), before, "{}", end.stderr);
        end
    }

    /// Fails the test unless kite refuses these arguments in one line that contains `expected`.
    #[track_caller]
    pub fn refused<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, expected: &str) {
        self.run(arguments).assert_refusal(expected);
    }

    /// The same with `kite run --memory 64M --kernel KERNEL` before the arguments.
    #[track_caller]
    pub fn kernel_refused(&self, kernel: &Path, arguments: &[&str], expected: &str) {
        self.end_of(run(KITE, kernel).args(arguments)).assert_refusal(expected);
    }

    /// The same as a user who may do nothing; `kite` is a copy.
    #[track_caller]
    pub fn refused_to_nobody(&self, kite: &Path, kernel: &Path, arguments: &[&str], expected: &str) {
        self.end_of(run(kite, kernel).args(arguments).uid(NOBODY).gid(NOBODY)).assert_refusal(expected);
    }
}

/// `kite run --memory 64M --kernel KERNEL`; `--force`, because some of the kernels look like Linux.
pub fn run(kite: impl AsRef<OsStr>, kernel: &Path) -> Command {
    let mut command = Command::new(kite);
    command.args(["run", "--force", "--memory", "64M", "--kernel"]).arg(kernel);
    command
}

/// The names and sizes of all files below a folder.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        }
        found.push((entry.path(), metadata.len()));
    }
    found.sort();
    found
}
