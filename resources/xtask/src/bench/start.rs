//! From exec to the guest's first instruction: the time until the byte that it writes to COM1 has come out of the VMM.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::images::{BYTE, Images};
use super::quartiles;
use super::vmm::Programs;
use crate::setup::Kernel;

/// A guest that has not said anything by then, in milliseconds, will not: emulated ones on a busy machine are slow.
const LIMIT: u16 = 60_000;
/// QEMU starts no more often than this: where KVM emulates its firmware it takes seconds.
const QEMU_ROUNDS: u32 = 7;
/// Between two starts, for the host's kernel to finish taking the last machine apart.
const REST: Duration = Duration::from_millis(20);

/// One way to start one guest.
struct Subject {
    name: &'static str,
    command: Command,
    /// No more starts than this.
    most: u32,
    times: Vec<Duration>,
}

/// Starts everything in turn `rounds` times, after once to warm up, and prints a table for each guest.
///
/// # Errors
/// A guest does not start.
pub fn run(programs: &Programs, kernel: &Kernel, images: &Images, rounds: u32) -> Result<()> {
    let guests = [
        ("a guest of ten bytes", &images.tiny),
        (&format!("Linux {}, bzImage", kernel.release), &images.bz_image),
        (&format!("Linux {}, ELF", kernel.release), &images.elf),
    ];
    for (name, image) in guests {
        let mut subjects = subjects(programs, kernel, images, image);
        for round in 0..=rounds {
            for subject in subjects.iter_mut().filter(|subject| round <= subject.most) {
                let (mut child, time) = start(&mut subject.command)?;
                child.kill().and_then(|()| child.wait()).context("ending a VMM")?;
                if round > 0 {
                    subject.times.push(time);
                }
                std::thread::sleep(REST);
            }
        }
        print(name, &mut subjects);
    }
    Ok(())
}

/// What is compared; the first is what the others are measured by.
fn subjects(programs: &Programs, kernel: &Kernel, images: &Images, image: &Path) -> Vec<Subject> {
    let mut kite = programs.kite(image);
    if *image != *images.tiny {
        kite.arg("--modules").arg(kernel.modules());
    }
    let mut with_initrd = programs.kite(image);
    with_initrd.arg("--initrd").arg(&images.small_initrd);
    [
        ("bare", programs.bare(image), u32::MAX),
        ("kite", kite, u32::MAX),
        ("kite, initrd of a byte", with_initrd, u32::MAX),
        ("QEMU microvm", programs.qemu(image), QEMU_ROUNDS),
    ]
    .map(|(name, command, most)| Subject { name, command, most, times: Vec::new() })
    .into()
}

/// Starts a VMM; answers it, and the time until its guest's first instruction.
///
/// # Errors
/// The guest does not get there.
pub fn start(command: &mut Command) -> Result<(Child, Duration)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let stdout = child.stdout.as_mut().context("a VMM has an output")?;
    let mut byte = [0];
    let ready = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LIMIT));
    let got =
        if matches!(ready, Ok(1..)) { stdout.read(&mut byte).context("reading a VMM's output")? } else { 0 };
    let time = start.elapsed();
    if got == 1 && byte == [BYTE] {
        return Ok((child, time));
    }
    let _ = child.kill();
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait().context("waiting for a VMM")?;
    bail!("{name}: no first instruction after {:.1} s ({status}): {}", time.as_secs_f64(), said.trim())
}

fn print(guest: &str, subjects: &mut [Subject]) {
    println!("\n{guest}: ms from exec to the first instruction, all in turn");
    println!("{:<26}{:>9}{:>22}{:>9}{:>9}", "", "median", "middle half", "starts", "by bare");
    let mut bare = None;
    for Subject { name, times, .. } in subjects {
        times.sort_unstable();
        let [low, median, high] = quartiles(times).map(|time| time.as_secs_f64() * 1e3);
        let bare = *bare.get_or_insert(median);
        let spread = format!("{low:.2} to {high:.2}");
        println!("{name:<26}{median:>9.2}{spread:>22}{:>9}{:>9.2}", times.len(), median / bare);
    }
}
