//! `config.json` of a bundle (OCI runtime-spec 1.2, `config.md` and `config-linux.md`): the part of it that kite reads.
//!
//! What is not named here is passed over, as the specification asks of unknown properties. These structures are our own:
//! the crate `oci-spec` reads every property into one of a hundred types, and refuses documents for values of properties
//! that mean nothing in a machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use nix::fcntl::OFlag;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The file's name in a bundle.
const FILE: &str = "config.json";
/// How long it may be, in bytes.
const LONGEST: u64 = 8 << 20;
/// How many mounts, variables, groups or words there may be of each.
const MOST: usize = 4096;

/// The document.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The version of the specification.
    pub oci_version: String,
    /// What runs; `start` refuses where it is absent.
    pub process: Option<Process>,
    /// The root folder.
    pub root: Option<Root>,
    /// The container's own name.
    pub hostname: Option<String>,
    /// What is mounted.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// What others say of it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[serde(default)]
    pub linux: Linux,
    /// What runs at points of its life.
    #[serde(default)]
    pub hooks: Hooks,
}

/// A process of a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// It has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Who it is.
    #[serde(default)]
    pub user: User,
    /// The program and its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// The whole environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// The folder to start in.
    pub cwd: PathBuf,
    /// What it may do.
    pub capabilities: Option<Capabilities>,
    /// What it may use.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// No program gives it rights.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// How soon the kernel ends it for want of memory.
    pub oom_score_adj: Option<i32>,
    /// A profile that means nothing in a machine.
    pub apparmor_profile: Option<String>,
    /// A label that means nothing in a machine.
    pub selinux_label: Option<String>,
}

/// Who a process is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The user.
    #[serde(default)]
    pub uid: u32,
    /// The group.
    #[serde(default)]
    pub gid: u32,
    /// What new files do not permit.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// Names of capabilities.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "capabilities(7) has these names")]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
    pub inheritable: Vec<String>,
    pub ambient: Vec<String>,
}

/// A limit.
#[derive(Debug, Deserialize)]
pub struct Rlimit {
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// The root folder.
#[derive(Debug, Deserialize)]
pub struct Root {
    /// Where it is, from the bundle.
    pub path: PathBuf,
    /// It cannot be written.
    #[serde(default)]
    pub readonly: bool,
}

/// Something mounted.
#[derive(Debug, Deserialize)]
pub struct Mount {
    /// Where.
    pub destination: PathBuf,
    /// The type of file system.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What.
    pub source: Option<PathBuf>,
    /// How.
    #[serde(default)]
    pub options: Vec<String>,
}

/// What only Linux has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// The container's namespaces, of which the network's is the host's affair.
    pub namespaces: Vec<Namespace>,
    /// What is written below `/proc/sys`.
    pub sysctl: BTreeMap<String, String>,
    /// Paths that show nothing.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<PathBuf>,
    /// What it may use.
    pub resources: Resources,
    /// Its group, as a path or as `SLICE:PREFIX:NAME`.
    pub cgroups_path: String,
    /// System calls that it may make, which means nothing in a machine.
    pub seccomp: Option<serde::de::IgnoredAny>,
}

/// A namespace.
#[derive(Debug, Deserialize)]
pub struct Namespace {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is, if there is one to be joined.
    pub path: Option<PathBuf>,
}

/// What a container may use.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Memory.
    pub memory: Memory,
    /// Processors.
    pub cpu: Cpu,
    /// Processes.
    pub pids: Pids,
    /// Disks.
    #[serde(rename = "blockIO")]
    pub block_io: BlockIo,
    /// Files of its group, and what is written to them.
    pub unified: BTreeMap<String, String>,
}

/// How much memory, in bytes; none or a negative number is no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The most.
    pub limit: Option<i64>,
    /// What it has before others do.
    pub reservation: Option<i64>,
    /// The most of memory and swap together.
    pub swap: Option<i64>,
}

/// How much of processors.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// The share among others, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds of each period; none or a negative number is no limit.
    pub quota: Option<i64>,
    /// In microseconds.
    pub period: Option<u64>,
    /// Which processors, as `0-2,4`.
    pub cpus: String,
    /// Which nodes of memory.
    pub mems: String,
}

/// How many processes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// The most; none, or one that is not positive, is no limit.
    pub limit: Option<i64>,
}

/// How much of disks.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification has these names")]
pub struct BlockIo {
    /// The share among others, 10 to 1000.
    pub weight: Option<u64>,
    pub throttle_read_bps_device: Vec<Throttle>,
    pub throttle_write_bps_device: Vec<Throttle>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<Throttle>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<Throttle>,
}

/// How fast a disk is.
#[derive(Debug, Deserialize)]
pub struct Throttle {
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Bytes or requests a second.
    pub rate: u64,
}

/// Programs that run at points of a container's life.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification has these names")]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// A program that runs at a point of a container's life.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// The program.
    pub path: PathBuf,
    /// Its arguments, the program's name among them.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// How many seconds it may take.
    pub timeout: Option<u64>,
}

/// Reads a JSON file of bounded length.
///
/// # Errors
/// It cannot be read, is too long, or is no such document; in one line that names it.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let what = || format!("cannot read {}", path.display());
    // What is a pipe is not waited for.
    let file =
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).with_context(what)?;
    ensure!(file.metadata().with_context(what)?.is_file(), "{} is not a regular file", path.display());
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).with_context(what)?;
    ensure!(bytes.len() as u64 <= LONGEST, "{} is longer than {} MiB", path.display(), LONGEST >> 20);
    serde_json::from_slice(&bytes)
        .map_err(|error| anyhow!("{}: {}", path.display(), short(&error.to_string())))
}

/// The beginning of a text that may quote a hostile document.
pub(super) fn short(text: &str) -> &str {
    text.char_indices().nth(300).map_or(text, |(end, _)| &text[..end])
}

impl Config {
    /// Reads that of a bundle.
    ///
    /// # Errors
    /// Those of [`read`], or it has more of something than any container needs.
    pub fn of_bundle(bundle: &Path) -> anyhow::Result<Self> {
        let config: Self = read(&bundle.join(FILE))?;
        config.check().map_err(|why| anyhow!("{}: {why}", bundle.join(FILE).display()))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let version = &self.oci_version;
        if !version.starts_with("1.") {
            return Err(format!("ociVersion is '{}', and this kite knows versions 1.x", short(version)));
        }
        let lists = [
            self.mounts.len(),
            self.linux.sysctl.len(),
            self.linux.masked_paths.len(),
            self.annotations.len(),
            self.linux.resources.unified.len(),
        ];
        if lists.into_iter().chain([self.linux.readonly_paths.len()]).any(|count| count > MOST) {
            return Err(format!("it has more than {MOST} mounts, annotations, sysctls or paths"));
        }
        if let Some(name) = self.linux.sysctl.keys().find(|name| name.split(['.', '/']).any(str::is_empty)) {
            return Err(format!("linux.sysctl has '{}', which is no name of one", short(name)));
        }
        self.process.as_ref().map_or(Ok(()), Process::check)
    }
}

impl Process {
    /// Whether a guest can be asked to start it.
    ///
    /// # Errors
    /// Why not, in one line.
    pub fn check(&self) -> Result<(), String> {
        match self.args.first() {
            None => return Err("process.args is empty".to_owned()),
            Some(program) if program.is_empty() => {
                return Err("process.args begins with an empty word".to_owned());
            }
            Some(_) => {}
        }
        if !self.cwd.is_absolute() {
            return Err(format!(
                "process.cwd '{}' does not begin with /",
                short(&self.cwd.to_string_lossy())
            ));
        }
        let words = self.args.iter().chain(&self.env);
        if words.clone().any(|word| word.contains('\0')) || self.cwd.to_string_lossy().contains('\0') {
            return Err("process has a word with a NUL".to_owned());
        }
        // As execve(2) would refuse them.
        if words.map(|word| word.len() + 9).sum::<usize>() > 2 << 20 {
            return Err("process.args and process.env are longer than 2 MiB".to_owned());
        }
        if self.user.additional_gids.len() > MOST || self.rlimits.len() > MOST {
            return Err(format!("process has more than {MOST} groups or limits"));
        }
        Ok(())
    }
}
