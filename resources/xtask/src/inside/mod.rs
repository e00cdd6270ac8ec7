//! What runs inside the guests of tests and benchmarks: this program as their first process. It loads modules, does its
//! one job, says how that ended, and powers off. The job is a file of the initrd.

pub mod records;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use boot::initramfs::{Initramfs, MANIFEST, MODULES};
use boot::modules::Modules;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{chdir, chroot, sync};

use crate::host;
use crate::lab::{self, initrd};
use crate::setup::Kernel;
use crate::step::output;

/// What a guest says when its job is done, before the status.
pub const STATUS: &str = "guest: status ";
/// The file that is the job.
const JOB: &str = "/job";
/// The job that is no script.
pub const RECORDS: &str = "records";
/// What guests need of a stock kernel.
const NEEDED: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_net", "ext4"];
/// What they may use.
const USEFUL: [&str; 3] = ["virtio_console", "virtio_rng", "virtio_balloon"];
/// Where the disk of programs is mounted.
const ROOT: &str = "/root";
const FOLDERS: [&str; 4] = ["/dev", "/proc", "/sys", ROOT];
/// What a disk may take to appear.
const LIMIT: Duration = Duration::from_secs(30);

/// Writes the initrd of a guest that does `job`, which is [`RECORDS`] or a script for the shell of the first disk.
///
/// # Errors
/// A needed module is missing, or the file cannot be written.
pub fn write_initrd(kernel: &Kernel, job: &str, path: &Path) -> Result<()> {
    let modules = Modules::open(&kernel.modules())?;
    let mut archive = Initramfs::new();
    for folder in FOLDERS {
        archive.dir(folder, 0o755)?;
    }
    archive.device("/dev/console", 0o600, 5, 1)?.dir(MODULES, 0o755)?;
    let mut manifest = String::new();
    for module in modules.resolve(&NEEDED, &USEFUL)? {
        initrd::add(&mut archive, &module)
            .with_context(|| format!("adding kernel module {}", module.name))?;
        manifest += &format!("{MODULES}/{}.ko\n", module.name);
    }
    archive.file(MANIFEST, 0o644, manifest.as_bytes())?;
    archive.file(JOB, 0o644, job.as_bytes())?;
    archive.file_from("/init", 0o755, Arc::new(program(path)?))?;
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    archive
        .finish()
        .write_to(&mut BufWriter::new(file))
        .with_context(|| format!("writing {}", path.display()))
}

/// This program, without what debuggers want of it where that can be had: a guest unpacks it.
fn program(beside: &Path) -> Result<File> {
    let stripped = beside.with_file_name("guest-program");
    // Not by the name "self", which to strip would be strip.
    let own = format!("/proc/{}/exe", std::process::id());
    if stripped.exists() {
        return File::open(&stripped).context("opening the guest's program");
    }
    let strip =
        host::program("strip").map(|strip| output(Command::new(strip).arg("-o").arg(&stripped).arg(&own)));
    let path = if matches!(strip, Some(Ok(_))) { stripped.as_path() } else { Path::new(&own) };
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

/// Whether this process, which is the first of its machine, is that of such a guest.
pub fn is_guest() -> bool {
    Path::new(JOB).exists()
}

/// The role of such a guest's PID 1; does not return.
pub fn main() -> ! {
    match work() {
        Ok(status) => println!("{STATUS}{status}"),
        Err(error) => println!("guest: {error:#}\n{STATUS}125"),
    }
    sync();
    // Refused only to those who are not root.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1)
}

fn work() -> Result<u8> {
    lab::mounted("dev", "/dev", "devtmpfs", "")?;
    lab::mounted("proc", "/proc", "proc", "")?;
    lab::mounted("sys", "/sys", "sysfs", "")?;
    lab::load_modules()?;
    let job = fs::read_to_string(JOB).context("reading the job")?;
    appear("/dev/vda")?;
    if job == RECORDS {
        return records::write().map(|never| match never {});
    }
    script(&job)
}

/// Waits for a device's file.
fn appear(path: &str) -> Result<()> {
    let start = Instant::now();
    while !Path::new(path).exists() {
        if start.elapsed() > LIMIT {
            bail!("no {path}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Runs a script with the programs of the first disk, which is not written.
fn script(script: &str) -> Result<u8> {
    mount(Some("/dev/vda"), ROOT, Some("ext4"), MsFlags::MS_RDONLY, Some("noload"))
        .context("mounting the disk of programs")?;
    let pseudo =
        [("dev", "devtmpfs"), ("proc", "proc"), ("sys", "sysfs"), ("run", "tmpfs"), ("tmp", "tmpfs")];
    for (folder, kind) in pseudo {
        lab::mounted(kind, &format!("{ROOT}/{folder}"), kind, "")?;
    }
    // Bash opens its own kind of network files; these are what its process substitution takes.
    let _ = std::os::unix::fs::symlink("/proc/self/fd", format!("{ROOT}/dev/fd"));
    fs::write(format!("{ROOT}/run/script"), script).context("writing the script")?;
    let mut shell = Command::new("/bin/bash");
    shell.arg("/run/script").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/tmp");
    let enter = || -> std::io::Result<()> {
        chroot(ROOT)?;
        chdir("/")?;
        Ok(())
    };
    shell_in(&mut shell, enter)
}

#[expect(unsafe_code, reason = "a child goes into the root folder before it becomes the shell")]
fn shell_in(
    shell: &mut Command,
    enter: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<u8> {
    // SAFETY: between fork and exec the closure makes two system calls and nothing else: this process has one thread.
    let status = unsafe { shell.pre_exec(enter) }.status().context("running the script")?;
    std::io::stdout().flush().context("writing to the console")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
