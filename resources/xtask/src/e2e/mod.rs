//! End-to-end tests on Linux guests: whole systems, data that is checked, networks, and machines that are killed. They run
//! where hardware KVM is, on this machine or inside the lab, in a network namespace of their own, by a hidden command of
//! this program.

mod command;
mod connected;
mod disk;
mod documented;
pub mod engines;
mod every;
mod image;
mod killed;
mod limits;
mod many;
mod network;
mod oci;
mod output;
mod own_files;
mod rights;
mod screen;
mod stats;
mod terminal;
mod today;
mod together;
mod tools;
mod wire;

use std::cell::OnceCell;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use tempfile::TempDir;

pub use self::documented::PROGRAMS as DOCUMENTED;
pub use self::wire::{GUEST, HERE, TAP, Wire};
use crate::guest::job::{self, STATUS};
use crate::images::guest::{BY_HAND, BY_TOOLS};
use crate::machine::{Access, Machine, Vmm};
use crate::running::Running;
use crate::setup::{Debian, Kernel, LAB, TODAY};
use crate::tier::{Tier, Tiers};
use crate::user;

/// What any one of the last tier takes at most, with its machine emulated: fifty kills take the longest.
pub const LIMIT: Duration = Duration::from_secs(2400);
/// And what one of the others does: a gibibyte there and back, or all that a file can be on a busy machine.
pub const USUAL_LIMIT: Duration = Duration::from_secs(900);
/// The programs of the host's that they use, with their packages.
pub const PROGRAMS: [(&str, &str); 7] = [
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("passt", "passt"),
    ("e2fsck", "e2fsprogs"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];
/// What a guest's script may take.
const SCRIPT: Duration = Duration::from_secs(300);

/// A test's function, which returns a detail for the line about it.
type Run = fn(&Fixture) -> Result<String>;

/// An end-to-end test.
#[derive(Clone, Copy)]
pub struct Test {
    name: &'static str,
    /// With a kite that an ordinary user runs, where another could.
    user: bool,
    run: Run,
}

impl fmt::Display for Test {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.user { user::MARK } else { "" })?;
        out.write_str(self.name)
    }
}

/// Every test, with its tiers. A boot costs six seconds, and ten commands in one guest no more than one: a test of the
/// quick tier checks much in one boot.
const TESTS: &[(&str, Tiers, Run)] = &[
    ("debian/1cpu", Tiers::ALL, |fixture| disk::debian(fixture, 1)),
    ("debian/2cpu", Tiers::USER, |fixture| disk::debian(fixture, 2)),
    ("debian/4cpu", Tiers::ALL, |fixture| disk::debian(fixture, 4)),
    ("disk/verified/1cpu", Tiers::ALL, |fixture| disk::verified(fixture, 1)),
    ("disk/verified/2cpu", Tiers::ROOT, |fixture| disk::verified(fixture, 2)),
    ("disk/verified/4cpu", Tiers::ALL, |fixture| disk::verified(fixture, 4)),
    ("disk/verified/pci", Tiers::NIGHTLY, disk::verified_on_pci),
    ("disk/killed-2-times", Tiers::ROOT, |fixture| killed::killed(fixture, 2)),
    ("disk/killed-50-times", Tiers::ALL, |fixture| killed::killed(fixture, 50)),
    ("net/tap", Tiers::ROOT, network::tap),
    ("net/user", Tiers::USER, network::user),
    ("net/flooded", Tiers::ROOT, network::flooded),
    ("stats/6.1", Tiers::ROOT, |fixture| stats::boot(fixture, "6.1")),
    ("stats/6.12", Tiers::NIGHTLY, |fixture| stats::boot(fixture, "6.12")),
    ("command/together/6.1", Tiers::USER, |fixture| together::command(fixture, "6.1")),
    ("command/streams/6.1", Tiers::NIGHTLY_BY_BOTH, |fixture| command::streams(fixture, "6.1")),
    ("command/streams/6.12", Tiers::NIGHTLY, |fixture| command::streams(fixture, "6.12")),
    ("command/pci/6.1", Tiers::NIGHTLY, |fixture| command::on_pci(fixture, "6.1")),
    ("command/pci/6.12", Tiers::ROOT, |fixture| command::on_pci(fixture, "6.12")),
    ("command/bytes/64M", Tiers::ROOT, |fixture| command::bytes(fixture, "6.12", 64)),
    ("command/bytes/1G", Tiers::NIGHTLY, |fixture| command::bytes(fixture, "6.1", 1024)),
    ("command/files/6.1", Tiers::NIGHTLY, |fixture| command::files(fixture, "6.1")),
    ("command/files/6.12", Tiers::NIGHTLY_BY_BOTH, |fixture| command::files(fixture, "6.12")),
    ("command/connected", Tiers::USER, |fixture| connected::connected(fixture, "6.12")),
    ("screen/6.1", Tiers::NIGHTLY, |fixture| screen::frame_buffer(fixture, "6.1")),
    ("screen/6.12", Tiers::BOTH, |fixture| screen::frame_buffer(fixture, "6.12")),
    ("screen/viewers", Tiers::ALL_ALONE, screen::viewers),
    ("screen/xorg/fbdev", Tiers::NIGHTLY_ALONE, |fixture| screen::xorg(fixture, "6.12", "fbdev")),
    ("screen/xorg/modesetting", Tiers::NIGHTLY_ALONE, |fixture| screen::xorg(fixture, LAB, "modesetting")),
    ("command/rights", Tiers::BOTH, |fixture| rights::rights(fixture, "6.12")),
    ("command/today", Tiers::ROOT, |fixture| today::command(fixture, TODAY)),
    ("command/own-files", Tiers::NIGHTLY_BY_BOTH, |fixture| own_files::own_files(fixture, "6.12")),
    ("command/terminal", Tiers::ROOT, |fixture| terminal::session(fixture, "6.12")),
    ("command/terminal/ways-out", Tiers::NIGHTLY, |fixture| terminal::ways_out(fixture, "6.12")),
    ("command/crash", Tiers::NIGHTLY, |fixture| command::crash(fixture, "6.12")),
    ("command/as-root/6.12", Tiers::ROOT, |fixture| together::as_root(fixture, "6.12")),
    ("command/tools", Tiers::ROOT, |fixture| tools::tools(fixture, "6.1")),
    ("command/selftests/6.1", Tiers::NIGHTLY, |fixture| tools::selftests(fixture, "6.1")),
    ("command/selftests/6.12", Tiers::NIGHTLY, |fixture| tools::selftests(fixture, "6.12")),
    ("oci/life", Tiers::ROOT, |fixture| oci::life(fixture, "6.12")),
    ("oci/podman/process", Tiers::NIGHTLY_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::PODMAN, "process/")
    }),
    ("oci/podman/files", Tiers::ALL_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::PODMAN, "files/")
    }),
    ("oci/podman/life", Tiers::ALL_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::PODMAN, "life/")
    }),
    ("oci/podman/pods", Tiers::ALL_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::PODMAN, "pods/")
    }),
    ("oci/podman/rootless", Tiers::ALL_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::ROOTLESS, "rootless/")
    }),
    ("oci/podman/terminal", Tiers::ALL_ALONE, |fixture| engines::terminal(fixture, "6.12", engines::PODMAN)),
    ("oci/docker/scripts", Tiers::ALL_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::DOCKER, "")
    }),
    ("oci/docker/terminal", Tiers::ALL_ALONE, |fixture| engines::terminal(fixture, "6.12", engines::DOCKER)),
    ("oci/containerd", Tiers::ALL_ALONE, |fixture| {
        engines::compare(fixture, "6.12", engines::CONTAINERD, "")
    }),
    ("oci/killed", Tiers::ALL_ALONE, |fixture| many::killed(fixture, "6.12")),
    ("oci/many/16", Tiers::ALL_ALONE, |fixture| many::many(fixture, "6.12", 16)),
    ("oci/many/50", Tiers::ALL_ALONE, |fixture| many::many(fixture, "6.12", 50)),
    // These are traced, too: see `seccomp_coverage`.
    ("jail/devices", Tiers::ROOT, every::devices),
    ("jail/devices/pci", Tiers::NIGHTLY, every::devices_on_pci),
    ("jail/share", Tiers::ROOT, |fixture| every::share(fixture, "6.12")),
    ("output/terminal", Tiers::ROOT, |fixture| output::terminal(fixture, "6.12")),
    ("output/lost", Tiers::ROOT, |fixture| output::lost(fixture, "6.1")),
    ("limits/cpu", Tiers::ROOT_ALONE, limits::cpu),
    ("limits/memory", Tiers::ROOT_ALONE, |fixture| limits::memory(fixture, "6.12")),
    ("limits/io-and-streams", Tiers::ROOT_ALONE, |fixture| limits::io_and_streams(fixture, "6.12")),
    ("limits/delegated", Tiers::ROOT_ALONE, limits::delegated),
    ("docs/readme", Tiers::NIGHTLY_ALONE, |fixture| documented::page(fixture, "README.md")),
    ("docs/reference", Tiers::NIGHTLY_ALONE, |fixture| {
        documented::page(fixture, "resources/doc/reference.md")
    }),
    ("docs/sandbox", Tiers::NIGHTLY_ALONE, |fixture| documented::page(fixture, "resources/doc/sandbox.md")),
    ("docs/screen", Tiers::NIGHTLY_ALONE, |fixture| documented::page(fixture, "resources/doc/screen.md")),
    ("docs/json", Tiers::NIGHTLY_ALONE, |fixture| documented::page(fixture, "resources/doc/json.md")),
    ("docs/benchmarks", Tiers::NIGHTLY_ALONE, |fixture| {
        documented::page(fixture, "resources/doc/benchmarks.md")
    }),
    ("image/command", Tiers::USER, |fixture| image::command(fixture, "6.1")),
    ("image/trees/by-tools", Tiers::NIGHTLY_BY_USER, |fixture| image::trees(fixture, "6.12", &BY_TOOLS)),
    ("image/trees/by-hand", Tiers::NIGHTLY_BY_USER, |fixture| image::trees(fixture, "6.12", &BY_HAND)),
    ("image/podman", Tiers::NIGHTLY, |fixture| image::podman(fixture, "6.12")),
    ("command/podman", Tiers::NIGHTLY_ALONE, |fixture| image::podman_here(fixture, "6.12")),
    ("image/command/6.12", Tiers::NIGHTLY, |fixture| image::command(fixture, "6.12")),
    ("command/many/3", Tiers::NIGHTLY, |fixture| command::many(fixture, "6.12", 3)),
    ("command/many/200", Tiers::ALL, |fixture| command::many(fixture, "6.1", 200)),
];

/// The tests with their tiers: as root, then as an ordinary user, where `both` can run them.
pub fn tests(both: bool) -> Vec<(Test, Tier)> {
    let runs = |&(name, tiers, run): &(&'static str, Tiers, Run)| {
        tiers.runs(both).into_iter().map(move |(user, tier)| (Test { name, user, run }, tier))
    };
    let (theirs, own): (Vec<_>, Vec<_>) = TESTS.iter().flat_map(runs).partition(|(test, _)| test.user);
    [own, theirs].concat()
}

/// What every test uses: the VMM, a kernel, a disk and a folder.
pub struct Fixture {
    vmm: Vmm,
    kernel: Kernel,
    debian: Debian,
    folder: TempDir,
    /// Whose number kite has that is not this process's.
    user: Option<u32>,
    /// Why no machine can be limited here, once that was tried.
    groups: OnceCell<Result<(), String>>,
    /// What guests say is passed on as they say it.
    pub shown: bool,
}

impl Fixture {
    /// # Errors
    /// The Debian disk or the kernel is missing, or there is no folder to be had.
    pub fn new(vmm: Vmm, kernel: &str) -> Result<Self> {
        let kernel = Kernel::open(kernel)?.with_context(|| format!("no kernel {kernel}"))?;
        let debian = Debian::open()?.context("there is no Debian disk")?;
        let folder = tempfile::tempdir().context("making a folder")?;
        Ok(Self { vmm, kernel, debian, folder, user: None, groups: OnceCell::new(), shown: false })
    }

    /// The same with a kite that an ordinary user runs.
    fn of_user(&self) -> Result<Self> {
        let Vmm::Kite(kite) = &self.vmm else { return Err(NotHere("it is kite's".to_owned()).into()) };
        let folder = tempfile::tempdir().context("making a folder")?;
        let vmm = user::program(kite, folder.path()).map_err(|error| NotHere(format!("{error:#}")))?;
        let (kernel, debian) = (self.kernel.clone(), self.debian.clone());
        let (user, groups) = (Some(user::USER), OnceCell::new());
        Ok(Self { vmm: Vmm::Kite(vmm), kernel, debian, folder, user, groups, shown: self.shown })
    }

    /// Who runs kite.
    pub fn user(&self) -> u32 {
        self.user.unwrap_or_else(|| geteuid().as_raw())
    }

    /// kite, which alone runs commands and has limits.
    ///
    /// # Errors
    /// Another VMM is tried.
    pub fn program(&self) -> Result<&Path> {
        match &self.vmm {
            Vmm::Kite(program) => Ok(program),
            _ => bail!("only kite runs commands and has limits"),
        }
    }

    /// A file of the run's own folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A machine that does a job; its first disk is the one of programs, unless the job needs none.
    ///
    /// # Errors
    /// Its initrd cannot be written.
    pub fn machine(&self, job: &str) -> Result<Machine> {
        self.machine_with(job, "virtio_mmio")
    }

    /// The same with its devices on a PCI bus.
    ///
    /// # Errors
    /// As [`Self::machine`].
    pub fn machine_on_pci(&self, job: &str) -> Result<Machine> {
        Ok(Machine { transport: Some("pci"), ..self.machine_with(job, "virtio_pci")? })
    }

    fn machine_with(&self, job: &str, transport: &str) -> Result<Machine> {
        let initrd = self.file("initrd");
        job::write_initrd(&self.kernel, job, transport, &initrd)?;
        let mut machine = Machine::new(&self.kernel.bz_image(), &initrd);
        machine.append = "quiet".into();
        if job != job::RECORDS {
            machine.disks.push((self.debian.disk(), Access::ReadOnly));
        }
        Ok(machine)
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// The program that runs it does not start.
    pub fn start(&self, machine: &Machine) -> Result<Running> {
        Running::start(machine.command(&self.vmm), self.shown)
    }
}

/// The kernel of this name.
///
/// # Errors
/// It is not there.
fn kernel(name: &str) -> Result<Kernel> {
    Kernel::open(name)?.with_context(|| format!("no kernel {name}"))
}

/// Waits until a guest's script is done and the guest is off.
///
/// # Errors
/// The script failed, or there is no end.
pub fn finish(running: &mut Running) -> Result<()> {
    running.wait_for(STATUS, SCRIPT)?;
    let status = running.wait_for("\n", SCRIPT)?;
    let ended = running.end(SCRIPT)?;
    if status.trim() != "0" {
        bail!("the guest's script ended with {}", status.trim());
    }
    if !ended.success() {
        bail!("the machine ended with {ended}");
    }
    Ok(())
}

/// Does `work` with a running machine; what that has said is part of the error.
fn watched<T>(mut running: Running, work: impl FnOnce(&mut Running) -> Result<T>) -> Result<T> {
    work(&mut running).map_err(|error| {
        let said = running.said();
        anyhow::anyhow!("{error:#}\n{said}")
    })
}

/// Why a test cannot run on this host.
#[derive(Debug)]
struct NotHere(String);

impl fmt::Display for NotHere {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// Runs each and writes a line about it: `ok NAME (SECONDS) DETAIL`, `skip NAME: WHY`, or `FAIL NAME: WHY` and more below.
///
/// # Errors
/// `out` cannot be written.
pub fn run(fixture: &Fixture, tests: &[Test], out: &mut dyn Write) -> Result<()> {
    let theirs = tests.iter().any(|test| test.user).then(|| fixture.of_user());
    for test in tests {
        let start = Instant::now();
        let result = match &theirs {
            Some(Ok(theirs)) if test.user => (test.run)(theirs),
            Some(Err(why)) if test.user => Err(NotHere(format!("{why:#}")).into()),
            _ => (test.run)(fixture),
        };
        match result {
            Ok(detail) => writeln!(out, "ok {test} ({:.1} s) {detail}", start.elapsed().as_secs_f64())?,
            Err(error) if error.is::<NotHere>() => writeln!(out, "skip {test}: {error}")?,
            Err(error) => {
                let text = format!("{error:#}");
                let mut lines = text.lines();
                writeln!(out, "FAIL {test}: {}", lines.next().unwrap_or_default())?;
                for line in lines {
                    writeln!(out, "  | {}", line.trim_end())?;
                }
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Gives this process a network of its own, in which it is root.
///
/// # Errors
/// The kernel does not let it.
pub fn go_alone() -> Result<()> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace");
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .context("making user and network namespaces")?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ];
    for (file, text) in maps {
        fs::write(format!("/proc/self/{file}"), text).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// A command that is started and ends with its owner.
pub struct Started(std::process::Child);

impl Started {
    /// Starts `command`.
    ///
    /// # Errors
    /// It does not start.
    pub fn new(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.spawn().map(Self).with_context(|| format!("starting {name}"))
    }
}

impl From<std::process::Child> for Started {
    fn from(child: std::process::Child) -> Self {
        Self(child)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Writes a file of bytes without a pattern.
fn noise(path: &Path, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut bytes))
        .context("reading /dev/urandom")?;
    fs::write(path, &bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(bytes)
}
