//! The machine this runs on: its distribution, its privileges, its KVM, where this tree is.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::output;

/// The root folder of this tree.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Marks the folder that Cargo builds in.
const BUILT: &str = "CACHEDIR.TAG";

/// The folder that Cargo builds in: the one that this program lies in, wherever `CARGO_TARGET_DIR` or a configuration has
/// put it; else `target/` of this tree.
///
/// # Errors
/// This tree is gone.
pub fn targets() -> Result<PathBuf> {
    let own = std::env::current_exe().ok();
    let above = own.as_deref().and_then(built_in).map(Path::to_owned);
    above.map_or_else(|| Ok(fs::canonicalize(root()).context("finding the source tree")?.join("target")), Ok)
}

/// Cargo marks the folder of a named target, too, which lies in the one that is meant.
fn built_in(program: &Path) -> Option<&Path> {
    let is_marked = |folder: &&Path| folder.join(BUILT).is_file();
    let folder = program.ancestors().skip(1).find(is_marked)?;
    let is_target = folder.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-"));
    folder.parent().filter(is_marked).filter(|_| is_target).or(Some(folder))
}

/// A folder of the one that Cargo builds in, made if missing.
///
/// # Errors
/// It cannot be made.
pub fn target(name: &str) -> Result<PathBuf> {
    let folder = targets()?.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// What `/etc/os-release` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// `debian`, `ubuntu` or another.
    pub id: String,
    /// The release's name, such as `bookworm`.
    pub codename: String,
    /// The release's number, such as `12` or `24.04`.
    pub version: String,
    /// How it calls itself.
    pub name: String,
}

impl Distribution {
    /// The distribution running here.
    ///
    /// # Errors
    /// It is neither Debian nor Ubuntu.
    pub fn here() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let here = Self::parse(&text);
        if !matches!(here.id.as_str(), "debian" | "ubuntu") || here.codename.is_empty() {
            bail!("set-up knows Debian and Ubuntu, this is {}", here.name);
        }
        Ok(here)
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim().trim_matches('"').to_owned()
        };
        Self {
            id: field("ID"),
            codename: field("VERSION_CODENAME"),
            version: field("VERSION_ID"),
            name: field("PRETTY_NAME"),
        }
    }

    /// Whether this is Ubuntu.
    pub fn is_ubuntu(&self) -> bool {
        self.id == "ubuntu"
    }
}

/// Whether `/dev/kvm` may be opened and is a hardware one, which runs stock kernels; the reason if not.
///
/// # Errors
/// Why it cannot be used, in a few words.
pub fn hardware_kvm() -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm cannot be opened ({error})"))?;
    let info =
        fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("reading /proc/cpuinfo: {error}"))?;
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if flags.split_whitespace().any(|flag| matches!(flag, "svm" | "vmx")) {
        return Ok(());
    }
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    let whose = if pvm { " (it is PVM's, which runs kernels built for it)" } else { "" };
    Err(format!("/dev/kvm has no hardware virtualisation behind it: no svm or vmx CPU flag{whose}"))
}

/// The path of a program that is installed, looked for in `PATH` and the administrator's folders.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    folders.chain(more).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The SHA-256 of a file in hexadecimal digits, by the program that is faster than a build for tests.
///
/// # Errors
/// It cannot be read.
pub fn sha256(file: &Path) -> Result<String> {
    let printed = output(Command::new("sha256sum").arg("--").arg(file))?;
    Ok(printed.split(' ').next().unwrap_or_default().to_owned())
}

/// A command that runs `program` as root: by itself for root, through sudo for others.
///
/// # Errors
/// This is not root, and there is no sudo.
pub fn as_root(program: &str) -> Result<Command> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if self::program("sudo").is_none() {
        bail!("installing packages needs root, and there is no sudo: run this once as root");
    }
    eprintln!("xtask: not root: running {program} through sudo");
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_lies_where_cargo_has_built_this() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("elsewhere/x86_64-unknown-linux-gnu/debug/xtask");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        assert_eq!(built_in(&program).filter(|it| it.starts_with(folder.path())), None);
        let elsewhere = folder.path().join("elsewhere");
        for marked in [&elsewhere, &elsewhere.join("x86_64-unknown-linux-gnu"), folder.path()] {
            fs::write(marked.join(BUILT), "").unwrap();
            assert_eq!(built_in(&program), Some(elsewhere.as_path()), "{}", marked.display());
        }
        assert_eq!(built_in(&elsewhere.join("debug/xtask")), Some(elsewhere.as_path()));
    }

    #[test]
    fn os_release_gives_names_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n\
                    VERSION_CODENAME=bookworm\nID=debian\n";
        let debian = Distribution::parse(text);
        assert_eq!((debian.id.as_str(), debian.codename.as_str()), ("debian", "bookworm"));
        assert_eq!((debian.version.as_str(), debian.is_ubuntu()), ("12", false));
    }
}
