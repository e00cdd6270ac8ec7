//! This program as PID 1 of a guest: of the lab, or of a guest with a job. Both mount what every program expects, load the
//! kernel modules of their initrd, do their work and power off.
//!
//! kite's own init serves neither: it takes its command over a virtio console and its files over virtio-fs, which QEMU
//! would need a daemon for, and the guests with a job run on QEMU's microvm, too, to be compared.

pub mod initrd;
pub mod job;
pub mod lab;
pub mod records;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use boot::initramfs::{MANIFEST, MODULES};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

/// The folder that becomes the root folder of a guest's programs.
const ROOT: &str = "/root";
/// How long a driver may take to make its device's file.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether this process is PID 1 of a guest. That of a container has another name.
pub fn is_init() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init")
}

/// Runs the guest until it is off.
pub fn main() -> ! {
    if job::is_there() {
        job::run();
    } else if let Err(error) = lab::run() {
        eprintln!("lab: {error:#}");
    }
    sync();
    // Refused only to those who are not root.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1)
}

/// Mounts the pseudo file systems and loads the kernel modules that came with the initrd, in the manifest's order.
fn prepare() -> Result<()> {
    mount_all("", &[("dev", "devtmpfs"), ("proc", "proc"), ("sys", "sysfs")])?;
    let manifest = fs::read_to_string(MANIFEST).with_context(|| format!("reading {MANIFEST}"))?;
    for module in manifest.lines() {
        load(&Path::new(MODULES).join(module)).with_context(|| format!("loading {module}"))?;
    }
    Ok(())
}

fn load(module: &Path) -> Result<()> {
    match finit_module(File::open(module)?, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Mounts file systems on folders below `root`, each by its folder and its kind.
fn mount_all(root: &str, kinds: &[(&str, &str)]) -> Result<()> {
    kinds.iter().try_for_each(|(folder, kind)| mounted(kind, &format!("{root}/{folder}"), kind, ""))
}

/// Mounts a file system of this kind on a folder, which is made if it is missing.
fn mounted(source: &str, target: &str, kind: &str, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("making {target}"))?;
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} at {target}"))
}

/// Waits for a device's file.
fn appear(path: &str) -> Result<()> {
    let start = Instant::now();
    while !Path::new(path).exists() {
        if start.elapsed() > LIMIT {
            bail!("no {path}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
