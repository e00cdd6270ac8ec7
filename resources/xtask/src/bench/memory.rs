//! What a VMM takes besides its guest's RAM, while the guest is idle.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::images::Images;
use super::start::start;
use super::vmm::{Programs, RAM};
use crate::setup::Unavailable;

/// After the first instruction a VMM may still be starting threads, and gives back what only its start needed.
const SETTLE: Duration = Duration::from_secs(2);

/// A line of `/proc/PID/smaps` with its share of memory (`proc(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// Proportional set size in KiB.
    pss: u64,
}

/// kite takes no more than this, in KiB.
const MOST: u64 = 1400;

/// What the processes of a VMM take together.
struct Taken {
    /// Proportional set size in KiB, without the guest's RAM.
    pss: u64,
    threads: usize,
    /// The program's size in bytes.
    program: u64,
}

/// Starts each with an idle guest and prints a table. The programs built here are copies, which no other process shares
/// memory with by running them, too.
///
/// # Errors
/// A guest does not start, or its RAM is not found among the VMM's mappings.
pub fn run(programs: &Programs, images: &Images) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let programs =
        Programs { kite: copy(&programs.kite, folder.path())?, bare: copy(&programs.bare, folder.path())? };
    println!(
        "\nmemory besides the guest's RAM, of all processes, two seconds after the start of an idle guest"
    );
    println!("{:<26}{:>9}{:>9}{:>15}", "", "PSS KiB", "threads", "program bytes");
    for (name, mut command) in [
        ("bare", programs.bare(&images.idle)),
        ("kite", programs.kite(&images.idle)),
        ("QEMU microvm", programs.qemu(&images.idle)),
    ] {
        let Taken { pss, threads, program } = measure(&mut command)?;
        println!("{name:<26}{pss:>9}{threads:>9}{program:>15}");
    }
    Ok(())
}

/// Fails if kite takes more memory than it may.
///
/// # Errors
/// It does, or its guest does not start; there may be no KVM here.
pub fn check(kite: &Path) -> Result<()> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Err(Unavailable(format!("/dev/kvm: {error}")).into());
    }
    let folder = tempfile::tempdir().context("making a folder")?;
    let images = Images::at(folder.path());
    images.make_idle()?;
    let kite = copy(kite, folder.path())?;
    let programs = Programs { bare: kite.clone(), kite };
    let Taken { pss, .. } = measure(&mut programs.kite(&images.idle))?;
    ensure!(pss <= MOST, "with an idle guest kite takes {pss} KiB, and may take {MOST}");
    Ok(())
}

fn copy(program: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join(program.file_name().context("a program has a name")?);
    fs::copy(program, &to).with_context(|| format!("copying {}", program.display()))?;
    Ok(to)
}

/// Starts a VMM, and looks at it when it has settled.
fn measure(command: &mut Command) -> Result<Taken> {
    let (mut child, _) = start(command)?;
    std::thread::sleep(SETTLE);
    let proc = format!("/proc/{}", child.id());
    let read = || -> Result<Taken> {
        // Where a process runs the machine for the one that was started, both count.
        let children = fs::read_to_string(format!("{proc}/task/{}/children", child.id()))?;
        let machine = children.split_whitespace().next().map(|id| format!("/proc/{id}"));
        let mut taken = Taken { pss: 0, threads: 0, program: fs::metadata(format!("{proc}/exe"))?.len() };
        for (process, ram) in
            [(machine.as_ref(), RAM), (Some(&proc), if machine.is_some() { 0 } else { RAM })]
        {
            let Some(process) = process else { continue };
            taken.pss += pss_without_ram(&fs::read_to_string(format!("{process}/smaps"))?, ram)?;
            taken.threads += fs::read_dir(format!("{process}/task"))?.count();
        }
        Ok(taken)
    };
    let read = read().with_context(|| format!("measuring {}", command.get_program().display()));
    child.kill().and_then(|()| child.wait()).context("ending a VMM")?;
    read
}

/// The PSS in KiB of every mapping but the guest's RAM: the run of neighbouring mappings, `ram` bytes together, that
/// has the largest of all in it. All of them if there is no RAM.
fn pss_without_ram(smaps: &str, ram: u64) -> Result<u64> {
    let mappings = parse(smaps);
    if ram == 0 {
        return Ok(mappings.iter().map(|mapping| mapping.pss).sum());
    }
    let largest = mappings.iter().max_by_key(|mapping| mapping.end - mapping.start).context("no mappings")?;
    let is_ram = |first: usize| {
        let start = mappings[first].start;
        let mut end = start;
        let run: Vec<_> = mappings[first..]
            .iter()
            .take_while(|mapping| {
                let joins = mapping.start == end && end - start < ram;
                end = if joins { mapping.end } else { end };
                joins
            })
            .collect();
        (end - start == ram && run.contains(&largest)).then_some(first..first + run.len())
    };
    let ram = (0..mappings.len()).find_map(is_ram).context("no mappings are as large as the guest's RAM")?;
    let rest = mappings[..ram.start].iter().chain(&mappings[ram.end..]);
    Ok(rest.map(|mapping| mapping.pss).sum())
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            mappings.push(Mapping { start, end, pss: 0 });
        } else if first == "Pss:"
            && let (Some(mapping), Some(Ok(pss))) = (mappings.last_mut(), words.next().map(str::parse))
        {
            mapping.pss = pss;
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "00200000-00201000 r-xp 00000000 08:01 1 /bin/vmm\nSize: 4 kB\nPss: 3 kB\nPss_Dirty: 9 kB\n\
        10000000-10004000 rw-p 00000000 00:00 0\nPss: 100 kB\n10004000-10005000 rw-p 00001000 08:01 2 /kernel\n\
        Pss: 20 kB\n10005000-10010000 rw-p 00000000 00:00 0\nPss: 1000 kB\n\
        10010000-10011000 rw-p 00000000 00:00 0\nPss: 5 kB\n";

    #[test]
    fn guest_ram_is_left_out_with_the_files_mapped_into_it() {
        assert_eq!(pss_without_ram(SMAPS, 0x1_0000).unwrap(), 8);
    }

    #[test]
    fn memory_that_is_not_guest_ram_is_not_taken_for_it() {
        assert!(pss_without_ram(SMAPS, 0x2_0000).is_err());
        assert!(pss_without_ram(SMAPS, 0x4000).is_err());
        assert!(pss_without_ram("", 0x1_0000).is_err());
    }
}
