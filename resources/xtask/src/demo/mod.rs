//! `cargo xtask demo`: builds kite, finds a stock kernel and boots it where that is possible, for all to see.

pub mod debian;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host;
use crate::lab::Lab;
use crate::setup::Setup;
use crate::test::build_kite_for_all_to_see;

/// What the guest's own lines start with.
const GUEST: &[u8] = b"kite: ";

/// Runs the demonstration; the exit code is kite's.
///
/// # Errors
/// Set-up fails, or the lab does.
pub fn run() -> Result<ExitCode> {
    println!("kite's demonstration: build kite, find a stock kernel, boot it, and power off.");
    let mut times = Times::default();
    let kite = times.part("build kite", build_kite_for_all_to_see)?;
    let shown_kite = short(&kite);
    let mut setup = Setup::new();
    let (kernel, modules) = times.part("find a kernel", || kernel(&mut setup))?;
    let mut argv: Vec<OsString> = vec![kite.into(), "run".into(), "--kernel".into(), kernel.into()];
    argv.extend(["--modules".into(), modules.into(), "--cpus".into(), "2".into()]);
    let shown: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    let mut watch = Watch::new(io::stdout());
    let here = host::hardware_kvm();
    let is_here = here.is_ok();
    let status = match here {
        Ok(()) => {
            println!("Booting on this machine's /dev/kvm, which is hardware's.\n$ {}", shown.join(" "));
            natively(&argv, &mut watch)?
        }
        Err(reason) => {
            println!("Booting in the lab, an emulated machine with KVM, which is slow: {reason}.");
            let lab = times.part("set up the lab", || Lab::new(&mut setup))?;
            println!("$ {}", shown.join(" "));
            watch.start = Instant::now();
            lab.run(&argv, &mut watch, &mut io::stderr())?
        }
    };
    let end = watch.start.elapsed();
    let first = watch.first.unwrap_or(end);
    let up = watch.up.unwrap_or(end);
    times.0.push(("start, to the kernel's first line", first));
    times.0.push(("boot, to the guest's own lines", up.saturating_sub(first)));
    times.0.push(("power off", end.saturating_sub(up)));
    println!("\nkite's exit code: {status}\n\n{times}");
    print!("{}", next(&shown_kite, &argv, is_here));
    Ok(ExitCode::from(status))
}

/// A path as the user would write it in the current folder.
fn short(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// What to try next; `argv` are kite's arguments here.
fn next(kite: &str, argv: &[OsString], is_here: bool) -> String {
    let words: Vec<_> = argv.iter().skip(1).take(5).map(|word| short(Path::new(word))).collect();
    let run = format!("{kite} {}", words.join(" "));
    let (run, note) = match is_here {
        true => (run, ""),
        false => (format!("cargo xtask lab -- {run}"), ", in the lab"),
    };
    format!(
        "Next:\n  {run} -- uname -a\n      a command in a guest, on a view of this machine's files{note}\n  \
         {kite} run --help\n      every option, with examples\n  \
         {kite} doctor\n      what this machine can do, and what to mend\n  \
         cargo xtask demo debian\n      a whole Debian on a disk, to its login prompt\n"
    )
}

/// A kernel image and the folder of its modules: the newest of this machine's own, or one that is fetched.
fn kernel(setup: &mut Setup) -> Result<(PathBuf, PathBuf)> {
    let installed = boot::kernel::installed(Path::new("/"));
    for kernel in installed.into_iter().filter(boot::kernel::Installed::is_readable) {
        let modules = boot::modules::of_kernel(&kernel.path, Some(&kernel.version));
        if let Some(modules) = modules.filter(|modules| modules.join("modules.dep").exists()) {
            println!("Kernel: {}", kernel.path.display());
            return Ok((kernel.path, modules));
        }
    }
    let kernel = setup.kernel()?;
    println!("Kernel: {}, as none is installed that can be read", kernel.release);
    Ok((kernel.bz_image(), kernel.modules()))
}

fn natively(argv: &[OsString], watch: &mut impl Write) -> Result<u8> {
    let (program, arguments) = argv.split_first().context("a command has a name")?;
    let mut command = Command::new(program);
    let mut kite = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting kite")?;
    let mut out = kite.stdout.take().context("kite has an output")?;
    io::copy(&mut out, watch).context("passing on kite's output")?;
    let status = kite.wait().context("waiting for kite")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Passes output on, and notes when the kernel and when the guest's own program begin to speak.
struct Watch<W> {
    out: W,
    start: Instant,
    first: Option<Duration>,
    up: Option<Duration>,
    line: Vec<u8>,
}

impl<W> Watch<W> {
    fn new(out: W) -> Self {
        Self { out, start: Instant::now(), first: None, up: None, line: Vec::new() }
    }
}

impl<W: Write> Write for Watch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = self.start.elapsed();
        self.first.get_or_insert(now);
        for &byte in bytes {
            if byte == b'\n' {
                self.line.clear();
            } else if self.line.len() < GUEST.len() {
                self.line.push(byte);
            }
            if self.line == GUEST {
                self.up.get_or_insert(now);
            }
        }
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// How long each part took.
#[derive(Default)]
struct Times(Vec<(&'static str, Duration)>);

impl Times {
    fn part<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = work()?;
        self.0.push((name, start.elapsed()));
        Ok(done)
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total = self.0.iter().map(|(_, time)| *time).sum();
        for (name, time) in self.0.iter().chain([&("together", total)]) {
            writeln!(out, "{name:<36}{:>8.2} s", time.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_try_next_is_a_whole_command() {
        let argv = ["kite", "run", "--kernel", "/k", "--modules", "/m", "--cpus", "2"].map(OsString::from);
        let here = next("target/kite", &argv, true);
        assert!(here.contains("\n  target/kite run --kernel /k --modules /m -- uname -a\n"), "{here}");
        let lab = next("target/kite", &argv, false);
        assert!(lab.contains("\n  cargo xtask lab -- target/kite run --kernel /k "), "{lab}");
    }

    #[test]
    fn the_guests_first_line_is_noted_even_in_parts() {
        let mut watch = Watch::new(Vec::new());
        watch.write_all(b"a kite: b\nki").unwrap();
        assert!(watch.first.is_some() && watch.up.is_none());
        watch.write_all(b"te: cpus 1\n").unwrap();
        assert!(watch.up.is_some());
    }
}
