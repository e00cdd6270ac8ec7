//! The folder with all that the runs have printed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::plan::{Cell, Plan};
use crate::host::atomic_file;
use crate::host::child::Stream;

/// `--output DIR`: a folder for each kernel, two files for each command, and a picture if it fails.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes the folders.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) fn new(path: &Path, plan: &Plan) -> anyhow::Result<Self> {
        for kernel in &plan.kernels {
            let folder = path.join(kernel);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self(path.to_owned()))
    }

    /// The files of one run, new or emptied.
    pub(super) fn files(&self, cell: &Cell) -> Files {
        let open =
            |ending: &str| Kept::open(self.0.join(&cell.kernel).join(format!("{}.{ending}", cell.command)));
        Files { stdout: open("stdout"), stderr: open("stderr") }
    }

    /// The file for what was on the screen of a run that fails.
    pub(super) fn picture(&self, kernel: &str, command: &str) -> PathBuf {
        self.0.join(kernel).join(format!("{command}.png"))
    }
}

/// The files of one run.
pub(super) struct Files {
    stdout: Kept,
    stderr: Kept,
}

/// A file, until it cannot be written.
struct Kept {
    path: PathBuf,
    file: io::Result<File>,
}

impl Kept {
    /// A planted link is not followed.
    fn open(path: PathBuf) -> Self {
        Self { file: atomic_file::emptied(&path), path }
    }
}

impl Files {
    /// Appends.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if let Ok(file) = &mut kept.file
            && let Err(error) = file.write_all(bytes)
        {
            kept.file = Err(error);
        }
    }

    /// What went wrong first, in a line, if something did.
    pub(super) fn problem(self) -> Option<String> {
        [self.stdout, self.stderr].into_iter().find_map(|kept| {
            let error = kept.file.err()?;
            Some(format!("cannot write {}: {error}", kept.path.display()))
        })
    }
}
