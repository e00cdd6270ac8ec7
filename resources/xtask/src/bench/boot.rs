//! A stock kernel's boot to user space and off again, counted in instructions or in VM exits.
//!
//! Instructions are those between exec and exit by the clock of a lab in which an instruction takes a nanosecond.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Count;
use super::exits::{ALL, Event, Histograms, TO_USER, hits};
use super::images::Images;
use super::start::start;
use super::vmm::Programs;
use crate::qemu;
use crate::setup::Kernel;

/// Port accesses, in the order that the histogram prints its keys.
const PORTS: Event = ("kvm_pio", "port,rw");
/// How many ports are shown.
const BUSIEST: usize = 10;

/// One boot.
struct Subject {
    name: String,
    command: Command,
}

/// What kite alone can have beside what QEMU's machine has.
const VARIANTS: [(&str, &[&str]); 2] = [("screen", &["--screen"]), ("PCI bus", &["--transport", "pci"])];

/// Boots each whose name has `only` in it, once, after a start of a tiny guest to warm up, and prints a table.
///
/// # Errors
/// A boot fails.
pub fn run(programs: &Programs, kernel: &Kernel, images: &Images, count: Count, only: &str) -> Result<()> {
    for mut command in [programs.kite(&images.tiny), programs.qemu(&images.tiny)] {
        let (mut child, _) = start(&mut command)?;
        child.kill().and_then(|()| child.wait()).context("ending a VMM")?;
    }
    match count {
        Count::Instructions => {
            println!(
                "\nLinux {} to user space and off: million instructions from exec to exit",
                kernel.release
            );
            println!("{:<34}{:>9}{:>16}{:>14}{:>9}", "", "all", "kernel to init", "init to off", "bytes");
        }
        Count::Exits => {
            println!("\nLinux {} to user space and off: VM exits", kernel.release);
            println!("{:<34}{:>9}{:>16}{:>14}{:>9}", "", "to user", "in all", "port accesses", "bytes");
        }
    }
    let mut subjects = subjects(programs, kernel, &images.initrd);
    subjects.retain(|subject| subject.name.contains(only));
    for mut subject in subjects {
        match count {
            Count::Instructions => instructions(&mut subject)?,
            Count::Exits => exits(&mut subject)?,
        }
    }
    Ok(())
}

fn subjects(programs: &Programs, kernel: &Kernel, initrd: &Path) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (log, words) in [("log", ""), ("quiet", "quiet")] {
        for (format, image) in [("ELF", kernel.elf()), ("bzImage", kernel.bz_image())] {
            let mut kite = programs.kite(&image);
            kite.args(["--append", words]);
            let mut qemu = programs.qemu(&image);
            qemu.arg("-append").arg(format!("{} {words}", qemu::CMDLINE));
            for (name, mut command) in [("kite", kite), ("QEMU microvm", qemu)] {
                let option: &OsStr = if name == "kite" { "--initrd" } else { "-initrd" }.as_ref();
                command.arg(option).arg(initrd);
                subjects.push(Subject { name: format!("{name}, {format}, {log}"), command });
            }
        }
        for (what, options) in VARIANTS {
            let mut command = programs.kite(&kernel.bz_image());
            command.args(["--append", words]).args(options).arg("--initrd").arg(initrd);
            subjects.push(Subject { name: format!("kite, bzImage, {log}, {what}"), command });
        }
    }
    for transport in ["mmio", "pci"] {
        let mut command = programs.kite(&kernel.bz_image());
        command.arg("--modules").arg(kernel.modules()).args(["--transport", transport]);
        command.args(["--", "echo", "kite: up"]);
        subjects.push(Subject { name: format!("kite, command, {transport}"), command });
    }
    subjects
}

fn instructions(subject: &mut Subject) -> Result<()> {
    let (time, output) = boot(subject)?;
    let millions = |time: Duration| time.as_micros() / 1000;
    let (init, off) = (stamp(&output, "Run /init"), stamp(&output, "reboot: Power down"));
    let column = |time: Option<Duration>| time.map_or("-".to_owned(), |time| millions(time).to_string());
    let user = init.zip(off).map(|(init, off)| off.saturating_sub(init));
    println!(
        "{:<34}{:>9}{:>16}{:>14}{:>9}",
        subject.name,
        millions(time),
        column(init),
        column(user),
        output.len()
    );
    Ok(())
}

fn exits(subject: &mut Subject) -> Result<()> {
    let histograms = Histograms::start([TO_USER, ALL, PORTS])?;
    let (_, output) = boot(subject)?;
    let [to_user, all, ports] = histograms.read()?;
    let (to_user, all, accesses) = (hits(&to_user)?, hits(&all)?, hits(&ports)?);
    println!("{:<34}{to_user:>9}{all:>16}{accesses:>14}{:>9}", subject.name, output.len());
    println!("  {}", busiest(&ports).join(", "));
    Ok(())
}

/// Boots; answers the time from exec to exit and what was printed. A file takes the output: a pipe would need a reader.
fn boot(subject: &mut Subject) -> Result<(Duration, String)> {
    let name = &subject.name;
    let mut file = tempfile::tempfile().context("making a file for the guest's output")?;
    let (stdout, stderr): (File, File) = (file.try_clone()?, file.try_clone()?);
    subject.command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let start = Instant::now();
    let mut child = subject.command.spawn().with_context(|| format!("starting {name}"))?;
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    let time = start.elapsed();
    let mut output = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut output)?;
    let output = String::from_utf8_lossy(&output).into_owned();
    if !status.success() || !output.contains("kite: ") {
        bail!("{name}: the guest did not come to user space ({status}):\n{output}");
    }
    Ok((time, output))
}

/// The kernel's time of the line that has `text`: "[    1.544333] Run /init as init process".
fn stamp(log: &str, text: &str) -> Option<Duration> {
    let line = log.lines().find(|line| line.contains(text))?;
    let (time, _) = line.strip_prefix('[')?.split_once(']')?;
    Duration::try_from_secs_f64(time.trim().parse().ok()?).ok()
}

/// The entries with the most hits: "{ port:       1021, rw:          0 } hitcount:        106".
fn busiest(histogram: &str) -> Vec<String> {
    let mut entries: Vec<(u64, String)> = histogram.lines().filter_map(entry).collect();
    entries.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    entries.into_iter().take(BUSIEST).map(|(hits, port)| format!("{port} {hits}")).collect()
}

fn entry(line: &str) -> Option<(u64, String)> {
    let (keys, hits) = line.strip_prefix("{ port:")?.split_once("} hitcount:")?;
    let (port, write) = keys.split_once(", rw:")?;
    let port: u16 = port.trim().parse().ok()?;
    let how = if write.trim() == "1" { "w" } else { "r" };
    Some((hits.trim().parse().ok()?, format!("{port:x}{how}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read_with_its_busiest_ports_first() {
        let text = "# event histogram\n#\n\n{ port:       1021, rw:          0 } hitcount:        106\n\
            { port:       1016, rw:          1 } hitcount:        407\n\nTotals:\n    Hits: 513\n    Entries: 2\n";
        assert_eq!(hits(text).unwrap(), 513);
        assert_eq!(busiest(text), ["3f8w 407", "3fdr 106"]);
        assert!(hits("").is_err());
    }

    #[test]
    fn a_line_of_the_log_tells_its_time() {
        let log = "[    0.000000] Linux version\n[    1.544333] Run /init as init process\nkite: up\n";
        assert_eq!(stamp(log, "Run /init"), Some(Duration::from_micros(1_544_333)));
        assert_eq!(stamp(log, "kite: up"), None);
    }
}
