//! What is booted, and by whom: kite and its peer are given the same kernel, command line and initrd, one vCPU, as much
//! RAM, and the same devices. The serial port is the only console.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::options::Options;
use crate::cmd::bench::measured::Way;
use crate::lifecycle::BootPlan;
use crate::spec::machine::{self, BootSpec, ConsoleSpec};
use crate::spec::{MachineSpec, MeasureSpec, RunSpec};

/// The other monitor.
const QEMU: &str = "qemu-system-x86_64";
/// kite itself, whatever has become of its file.
const ITSELF: &str = "/proc/self/exe";
/// Has kite's `/init` say at once that it is there.
const SAY: &str = "kite.trace";

/// Who boots it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Monitor {
    /// QEMU's microvm.
    Qemu,
    /// kite.
    Kite,
}

impl Way for Monitor {
    fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Kite => "kite",
        }
    }

    fn rank(self) -> usize {
        self as usize
    }
}

/// A kernel to boot.
pub struct Guest {
    /// What it is called: its path.
    pub id: String,
    /// What the kernel calls itself, if it does.
    pub version: Option<String>,
    /// Whether it comes to kite's own `/init`.
    pub is_linux: bool,
    /// Why it is not to be booted here.
    pub refusal: Option<String>,
    kernel: PathBuf,
    append: Option<String>,
    cmdline: String,
    memory: u64,
    /// The file that QEMU is given; not there if the guest has none.
    initrd: Option<PathBuf>,
}

/// Looks at the kernels. What only a peer needs is written to `folder`.
///
/// # Errors
/// A kernel is none, or is named twice.
pub fn guests(options: &Options, folder: &Path) -> anyhow::Result<Vec<Guest>> {
    let named = options.kernels.iter().map(|path| Some(path.as_path()));
    let kernels: Vec<_> = if options.kernels.is_empty() { vec![None] } else { named.collect() };
    let mut ids = HashSet::new();
    let mut guests = Vec::new();
    for (index, kernel) in kernels.into_iter().enumerate() {
        let initrd = options.peers.then(|| folder.join(format!("initrd{index}")));
        let guest = Guest::new(options, kernel, initrd)?;
        ensure!(ids.insert(guest.id.clone()), "--kernel names {} twice", guest.id);
        guests.push(guest);
    }
    Ok(guests)
}

impl Guest {
    fn new(options: &Options, kernel: Option<&Path>, initrd: Option<PathBuf>) -> anyhow::Result<Self> {
        let prepare = |append: Option<&str>| {
            let run = run_spec(kernel, append).map_err(|why| anyhow!(why))?;
            anyhow::Ok((BootPlan::new(&run)?, run.machine.memory))
        };
        let (prepared, memory) = prepare(options.append.as_deref())?;
        let is_linux = prepared.is_linux();
        let append = match (&options.append, is_linux) {
            (Some(words), true) => Some(format!("{SAY} {words}")),
            (None, true) => Some(SAY.to_owned()),
            (words, false) => words.clone(),
        };
        let (prepared, _) = prepare(append.as_deref())?;
        let initrd = initrd.filter(|_| prepared.has_initrd());
        if let Some(path) = &initrd {
            write_initrd(&prepared, path)
                .with_context(|| format!("cannot write an initrd to {}", path.display()))?;
        }
        Ok(Self {
            id: prepared.kernel().display().to_string(),
            version: prepared.version(),
            is_linux,
            refusal: prepared.refusal().filter(|_| !options.force).map(str::to_owned),
            kernel: prepared.kernel().to_owned(),
            append,
            cmdline: prepared.cmdline().to_owned(),
            memory,
            initrd,
        })
    }

    #[cfg(test)]
    pub(super) fn for_tests(id: &str, is_linux: bool) -> Self {
        Self {
            id: id.to_owned(),
            version: None,
            is_linux,
            refusal: None,
            kernel: id.into(),
            append: None,
            cmdline: "panic=-1".to_owned(),
            memory: 512 << 20,
            initrd: None,
        }
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// How a monitor boots it; kite writes its trace to `trace`.
    pub fn command(&self, monitor: Monitor, trace: &Path) -> Command {
        match monitor {
            Monitor::Kite => {
                let mut command = Command::new(ITSELF);
                command.arg("run").args(arguments(Some(&self.kernel), self.append.as_deref()));
                command.arg("--trace").arg(trace);
                command
            }
            Monitor::Qemu => self.qemu(),
        }
    }

    fn qemu(&self) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-M", "microvm,accel=kvm,auto-kernel-cmdline=off", "-m"]);
        command.arg((self.memory >> 20).to_string());
        // IA32_ARCH_CAPABILITIES is an MSR that PVM refuses to be set.
        command.args(["-cpu", "host,arch-capabilities=off", "-smp", "1"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        command.args(["-device", "virtio-rng-device", "-device", "virtio-balloon-device"]);
        command.arg("-kernel").arg(&self.kernel).arg("-append").arg(&self.cmdline);
        if let Some(initrd) = &self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        command
    }
}

/// How long an initrd for QEMU is beyond whole pages.
const REST: u64 = 4;
const PAGE: u64 = 4096;

/// QEMU's microvm loads an initrd into whole pages up to the end of memory, over the ACPI tables that its firmware has put
/// there, unless there is room for them behind it: zeros at its end, which Linux skips, make its length such.
fn write_initrd(prepared: &BootPlan, path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    prepared.write_initrd(&mut BufWriter::new(&mut file))?;
    let len = file.metadata()?.len();
    file.set_len(padded(len))
}

/// The least length from `len` on that is so much beyond whole pages.
fn padded(len: u64) -> u64 {
    len + (PAGE + REST - len % PAGE) % PAGE
}

/// What `kite run` does with [`arguments`].
fn run_spec(kernel: Option<&Path>, append: Option<&str>) -> Result<RunSpec, String> {
    let kernel = kernel.map(Path::to_owned).or_else(machine::default_kernel);
    let append = append.map(str::to_owned);
    let boot = BootSpec { kernel, append, force: true, ..BootSpec::default() };
    let machine = MachineSpec { boot, console: ConsoleSpec::Serial, ..MachineSpec::default() };
    let run = RunSpec::new(machine, None, MeasureSpec::default(), false);
    run.validate().map(|()| run)
}

/// The options of `kite run`. What it would refuse has been refused already.
fn arguments(kernel: Option<&Path>, append: Option<&str>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["--no-config", "--force", "--console", "serial"].map(Into::into).into();
    if let Some(kernel) = kernel {
        arguments.extend(["--kernel".into(), kernel.into()]);
    }
    if let Some(words) = append {
        arguments.extend(["--append".into(), words.into()]);
    }
    arguments
}

/// What QEMU calls itself.
///
/// # Errors
/// There is none.
pub fn qemu_version() -> anyhow::Result<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let runs =
        |file: PathBuf| file.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    ensure!(
        env::split_paths(&path).any(|folder| runs(folder.join(QEMU))),
        "--peers: there is no {QEMU} in $PATH; install it (Debian: apt install qemu-system-x86)"
    );
    let output =
        Command::new(QEMU).arg("--version").output().with_context(|| format!("cannot run {QEMU}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or(QEMU).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_for_qemu_leaves_most_of_its_last_page() {
        for (len, expected) in
            [(4096, 4100), (4100, 4100), (4104, 8196), (8191, 8196), (3_997_268, 3_997_700)]
        {
            assert_eq!(padded(len), expected, "{len}");
        }
    }
}
