//! The guest of tests and benchmarks: it does the one job that a file of its initrd names, prints the job's status and
//! powers off.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::initrd::Initrd;
use super::{ROOT, appear, mount_all, records};
use crate::host;
use crate::setup::Kernel;
use crate::step::output;

/// What a guest prints when its job is done, before the status.
pub const STATUS: &str = "guest: status ";
/// The job that is no script.
pub const RECORDS: &str = "records";
/// The file that holds the job.
const JOB: &str = "/job";
/// Modules of a stock kernel without which no job is done, beside that of the transport.
const NEEDED: [&str; 3] = ["virtio_blk", "virtio_net", "ext4"];
/// Modules that jobs may use.
const USEFUL: [&str; 4] = ["virtio_console", "virtio_rng", "virtio_balloon", "virtiofs"];

/// Writes the initrd of a guest that does `job`, which is [`RECORDS`] or a script for the shell of the first disk, and has
/// its devices over the transport with this module.
///
/// # Errors
/// A needed module is missing, or the file cannot be written.
pub fn write_initrd(kernel: &Kernel, job: &str, transport: &str, path: &Path) -> Result<()> {
    let needed = [&[transport], &NEEDED[..]].concat();
    let files = [(JOB, job.as_bytes())];
    Initrd { program: program(path)?, needed: &needed, useful: &USEFUL, files: &files }.write(kernel, path)
}

/// This program, stripped where strip(1) is installed: a guest unpacks it.
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

/// Whether this guest has a job.
pub(super) fn is_there() -> bool {
    Path::new(JOB).exists()
}

/// Does the job and prints its status.
pub(super) fn run() {
    match work() {
        Ok(status) => println!("{STATUS}{status}"),
        Err(error) => println!("guest: {error:#}\n{STATUS}125"),
    }
}

fn work() -> Result<u8> {
    super::prepare()?;
    let job = fs::read_to_string(JOB).context("reading the job")?;
    appear("/dev/vda")?;
    if job == RECORDS {
        return records::write().map(|never| match never {});
    }
    script(&job)
}

/// Runs a script with the programs of the first disk, which is not written.
fn script(script: &str) -> Result<u8> {
    fs::create_dir_all(ROOT).with_context(|| format!("making {ROOT}"))?;
    mount(Some("/dev/vda"), ROOT, Some("ext4"), MsFlags::MS_RDONLY, Some("noload"))
        .context("mounting the disk of programs")?;
    mount_all(
        ROOT,
        &[("dev", "devtmpfs"), ("proc", "proc"), ("sys", "sysfs"), ("run", "tmpfs"), ("tmp", "tmpfs")],
    )?;
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
