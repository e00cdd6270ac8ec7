//! Linux guests: the machines to try with each kernel, and what is expected of them. Run where hardware
//! KVM is: on this machine, or inside the lab by a hidden command of this program.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use boot::modules::Modules;

use crate::machine::kite_run;
use crate::setup::{Kernel, LAB, TODAY};
use crate::tier::Tier;
use crate::user;

/// A guest that takes longer hangs. Emulated ones on a busy machine take a minute.
pub const LIMIT: Duration = Duration::from_secs(240);
/// What kite's guest needs to find its devices, unless it is built in.
const MODULE: &str = "virtio_mmio";

/// The three ways a kernel file is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    BzImage,
    Pvh,
    Elf,
}

/// How a guest is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    PowerOff,
    /// With more words for the command line.
    Reboot(&'static str),
    /// With more words for the command line.
    Panic(&'static str),
}

/// A kernel that stands still when it has panicked: pvpanic tells.
const STANDS: &str = "panic=0";
/// One that has nothing to tell by but its text.
const ONLY_PRINTS: &str = "panic=0 module_blacklist=pvpanic_mmio";
/// What is on the stack of a kernel that was asked to crash.
const CALLERS: [&str; 3] = ["panic", "sysrq_handle_crash", "write_sysrq_trigger"];

/// One guest.
#[derive(Clone, Debug)]
pub struct Case {
    kernel: Kernel,
    format: Format,
    cpus: u32,
    /// MiB.
    memory: u64,
    end: End,
    acpi: bool,
    /// Run by an ordinary user, where another could.
    user: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = match self.format {
            Format::BzImage => "bzImage",
            Format::Pvh => "ELF-PVH",
            Format::Elf => "ELF",
        };
        let words = |end: &str, how: &str| format!("{end} {how}").trim().replace(' ', ",");
        let end = match self.end {
            End::PowerOff => "poweroff".to_owned(),
            End::Reboot(how) => words("reboot", how),
            End::Panic(how) => words("panic", how),
        };
        let acpi = if self.acpi { "" } else { "/no-acpi" };
        let user = if self.user { user::MARK } else { "" };
        write!(out, "{user}linux-{}/{format}/{}cpu/{}M/{end}{acpi}", self.kernel.name, self.cpus, self.memory)
    }
}

/// Every guest with its tier: all combinations, and few that take each value once or more. Where root can run them and an
/// ordinary user, too, the few are the user's first.
pub fn cases(kernels: &[Kernel], both: bool) -> Vec<(Case, Tier)> {
    let few = machines(kernels, false);
    let is_new = |case: &Case| few.iter().all(|known| known.to_string() != case.to_string());
    let rest: Vec<_> = machines(kernels, true).into_iter().filter(is_new).collect();
    let theirs = |case: &Case| Case { user: true, ..case.clone() };
    let mut cases = Vec::new();
    if both {
        cases.extend(few.iter().map(|case| (theirs(case), Tier::Quick)));
    }
    let own = if both { Tier::Nightly } else { Tier::Quick };
    cases.extend(few.iter().map(|case| (case.clone(), own)));
    cases.extend(rest.iter().map(|case| (case.clone(), Tier::All)));
    cases.extend(rest.iter().filter(|_| both).map(|case| (theirs(case), Tier::All)));
    cases
}

/// The machines to try. The lab's own kernel is the one that reads an MP table.
fn machines(kernels: &[Kernel], all: bool) -> Vec<Case> {
    use Format::{BzImage, Elf, Pvh};
    let mut cases = Vec::new();
    for (index, kernel) in kernels.iter().enumerate() {
        let mut add = |format, cpus, memory, end, acpi| {
            cases.push(Case { kernel: kernel.clone(), format, cpus, memory, end, acpi, user: false });
        };
        if kernel.name == LAB {
            if all {
                add(Elf, 2, 1024, End::Reboot(""), false);
            }
        } else if all {
            for format in [BzImage, Pvh, Elf] {
                for cpus in [1, 2, 4] {
                    for memory in [128, 1024, 5120] {
                        add(format, cpus, memory, End::PowerOff, true);
                    }
                }
                for end in [End::Reboot(""), End::Panic("")] {
                    add(format, 2, 1024, end, true);
                }
            }
            for how in ["reboot=t", "reboot=k", "reboot=a"] {
                add(BzImage, 2, 1024, End::Reboot(how), true);
            }
            for how in [STANDS, ONLY_PRINTS] {
                add(BzImage, 2, 1024, End::Panic(how), true);
            }
            // These kernels are built without MP tables: one CPU and the legacy controllers are left.
            add(BzImage, 1, 1024, End::PowerOff, false);
        } else if kernel.name == TODAY {
            add(Pvh, 1, 1024, End::PowerOff, true);
            add(BzImage, 2, 1024, End::Panic(""), true);
        } else if index % 2 == 0 {
            add(BzImage, 1, 128, End::Panic(STANDS), true);
            add(Pvh, 2, 1024, End::PowerOff, true);
            add(Elf, 4, 5120, End::Reboot(""), true);
        } else {
            add(BzImage, 4, 1024, End::PowerOff, true);
            add(Pvh, 1, 5120, End::Panic(""), true);
            add(Elf, 2, 128, End::PowerOff, true);
        }
    }
    cases
}

/// Runs each guest and writes a line about it: `ok NAME (SECONDS)`, `skip NAME: WHY`, or `FAIL NAME: WHY` and its output
/// below.
///
/// # Errors
/// `out` cannot be written, or this machine cannot start a process.
pub fn run(kite: &Path, cases: &[Case], out: &mut dyn Write) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let theirs = cases.iter().any(|case| case.user).then(|| user::program(kite, folder.path()));
    for case in cases {
        let program = match &theirs {
            Some(Ok(program)) if case.user => program,
            Some(Err(why)) if case.user => {
                writeln!(out, "skip {case}: {why:#}")?;
                continue;
            }
            _ => kite,
        };
        let start = Instant::now();
        let (status, output) = boot(program, case)?;
        match judge(case, status, &output) {
            Ok(()) => writeln!(out, "ok {case} ({:.1} s)", start.elapsed().as_secs_f64())?,
            Err(why) => {
                writeln!(out, "FAIL {case}: {why}")?;
                for line in output.lines() {
                    writeln!(out, "  | {}", line.trim_end())?;
                }
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// The exit status, unless the guest hung, and everything that was printed.
fn boot(kite: &Path, case: &Case) -> Result<(Option<ExitStatus>, String)> {
    // A file, since a pipe that nobody reads would hold the guest up.
    let mut output = tempfile::tempfile().context("making a file for the guest's output")?;
    let mut child = command(kite, case)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {}", kite.display()))?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if start.elapsed() > LIMIT => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    Ok((status, contents(&mut output)?))
}

fn contents(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn command(kite: &Path, case: &Case) -> Command {
    let kernel = match case.format {
        Format::BzImage => case.kernel.bz_image(),
        Format::Pvh => case.kernel.elf(),
        Format::Elf => case.kernel.elf_without_pvh(),
    };
    let mut command = kite_run(kite, &kernel);
    command.arg("--modules").arg(case.kernel.modules());
    command.args(["--cpus", &case.cpus.to_string(), "--memory", &format!("{}M", case.memory)]);
    match case.end {
        End::PowerOff => {}
        End::Reboot(how) => drop(command.arg(format!("--append=kite.job=reboot {how}"))),
        End::Panic(how) => drop(command.arg(format!("--append=kite.job=panic {how}"))),
    }
    if !case.acpi {
        command.arg("--no-acpi");
        if case.kernel.name != LAB {
            // Without either kind of table Debian's 6.1 masks the line that the legacy controllers come in by.
            command.arg("--append=nolapic");
        }
    }
    command
}

/// Compares what a guest said and how it ended with what was expected.
fn judge(case: &Case, status: Option<ExitStatus>, output: &str) -> Result<(), String> {
    let Some(status) = status else { return Err(format!("no end after {} s", LIMIT.as_secs())) };
    let panics = matches!(case.end, End::Panic(_));
    let expected = if panics { 255 } else { 0 };
    if let Some(signal) = status.signal() {
        return Err(format!("kite died of signal {signal}"));
    }
    if status.code() != Some(expected) {
        return Err(format!("{status} instead of {expected}"));
    }
    if panics {
        judge_trace(output)?;
    }
    let report = report(output);
    let said =
        |name: &str| report.get(name).copied().ok_or_else(|| format!("the guest did not say its {name}"));
    let kernel = said("kernel")?;
    if kernel.split(' ').next() != Some(case.kernel.release.as_str()) {
        return Err(format!("kernel {kernel} instead of {}", case.kernel.release));
    }
    let cpus = said("cpus")?;
    if cpus.parse() != Ok(case.cpus) {
        return Err(format!("{cpus} CPUs instead of {}", case.cpus));
    }
    let memory = said("memory")?;
    let seen: u64 =
        memory.trim_end_matches(" MiB").parse().map_err(|_| format!("no memory size: {memory}"))?;
    if !plausible(case.memory, seen) {
        return Err(format!("{seen} MiB of memory seen of {}", case.memory));
    }
    let modules: Vec<&str> = said("modules")?.split(' ').collect();
    let wanted = Modules::open(&case.kernel.modules()).and_then(|modules| modules.resolve(&[MODULE], &[]));
    for module in wanted.map_err(|error| error.to_string())? {
        if !modules.contains(&module.name.as_str()) {
            return Err(format!("module {} is not loaded", module.name));
        }
    }
    Ok(())
}

/// Looks for the callers, by name and in their order, in what kite tells of a crash.
fn judge_trace(output: &str) -> Result<(), String> {
    let (printed, told) =
        output.split_once("kite: the guest crashed: kernel panic\n").ok_or("kite did not tell of a panic")?;
    if !printed.contains("Kernel panic - not syncing: sysrq triggered crash") {
        return Err("the kernel's own words are missing".to_owned());
    }
    let mut lines = told.lines().map(str::trim);
    for name in CALLERS {
        let is_call = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with("+0x"));
        lines.find(|line| is_call(line)).ok_or_else(|| format!("no call of {name} where it belongs"))?;
    }
    Ok(())
}

/// Whether a guest of `given` MiB may see `seen` of them: the kernel keeps a quarter at most, half of little.
fn plausible(given: u64, seen: u64) -> bool {
    let least = if given <= 128 { given / 2 } else { given / 4 * 3 };
    (least..=given).contains(&seen)
}

/// The lines `kite: NAME VALUE` of a guest's output.
fn report(output: &str) -> BTreeMap<&str, &str> {
    let line = |line: &'_ str| -> Option<(usize, usize)> {
        let rest = line.strip_prefix("kite: ")?;
        let end = rest.find(' ')?;
        Some((6, 6 + end))
    };
    output.lines().filter_map(|text| line(text).map(|(a, b)| (&text[a..b], text[b..].trim()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> [Kernel; 2] {
        ["6.1", "6.12"].map(|name| Kernel::at(name, &format!("{name}.0"), Path::new("/nowhere")))
    }

    /// Those up to a tier, as they are called.
    fn names(kernels: &[Kernel], both: bool, tier: Tier) -> Vec<String> {
        let taken = cases(kernels, both).into_iter().filter(|(_, of)| *of <= tier);
        taken.map(|(case, _)| case.to_string()).collect()
    }

    #[test]
    fn the_quick_cases_take_every_value_of_every_axis() {
        let cases = cases(&kernels(), false);
        let quick: Vec<_> = cases.iter().filter(|(_, tier)| *tier == Tier::Quick).map(|it| &it.0).collect();
        assert_eq!((quick.len(), cases.len()), (6, 81));
        for (case, _) in cases.iter().filter(|(case, _)| case.end == End::PowerOff) {
            for same in [
                |a: &Case, b: &Case| a.kernel.name == b.kernel.name && a.format == b.format,
                |a: &Case, b: &Case| a.kernel.name == b.kernel.name && a.cpus == b.cpus,
                |a: &Case, b: &Case| a.kernel.name == b.kernel.name && a.memory == b.memory,
            ] {
                assert!(quick.iter().any(|one| same(one, case)), "{case}");
            }
        }
        for end in ["poweroff", "reboot", "panic", "panic,panic=0"] {
            assert!(quick.iter().any(|case| case.to_string().ends_with(&format!("/{end}"))), "{end}");
        }
    }

    #[test]
    fn an_ordinary_user_runs_the_few_before_root_and_each_all() {
        let alone = names(&kernels(), false, Tier::Quick);
        let theirs: Vec<_> = alone.iter().map(|name| format!("user/{name}")).collect();
        assert_eq!(names(&kernels(), true, Tier::Quick), theirs);
        assert_eq!(names(&kernels(), true, Tier::Nightly), [theirs, alone].concat());
        let all = names(&kernels(), true, Tier::All);
        assert_eq!(all.len(), 2 * names(&kernels(), false, Tier::All).len());
    }

    #[test]
    fn todays_kernel_has_one_boot_and_one_crash_in_the_quick_run() {
        let [first, second] = kernels();
        let kernels = [first, second, Kernel::at(TODAY, "7.3.4", Path::new("/nowhere"))];
        let of = |tier| -> Vec<_> {
            names(&kernels, false, tier).into_iter().filter(|name| name.starts_with("linux-7.3/")).collect()
        };
        assert_eq!(
            of(Tier::Quick),
            ["linux-7.3/ELF-PVH/1cpu/1024M/poweroff", "linux-7.3/bzImage/2cpu/1024M/panic"]
        );
        assert_eq!(of(Tier::All).len(), 39);
    }

    #[test]
    fn the_labs_kernel_is_tried_with_an_mp_table() {
        let kernel = Kernel::at(LAB, "6.1.0", Path::new("/nowhere"));
        assert_eq!(names(&[kernel], false, Tier::All), ["linux-lab/ELF/2cpu/1024M/reboot/no-acpi"]);
    }

    #[test]
    fn names_tell_cases_apart() {
        let mut names = names(&kernels(), true, Tier::All);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 162);
        for name in ["reboot,reboot=t", "panic,panic=0", "panic,panic=0,module_blacklist=pvpanic_mmio"] {
            assert!(names.contains(&format!("linux-6.1/bzImage/2cpu/1024M/{name}")), "{name}");
        }
    }

    #[test]
    fn a_report_is_read_between_the_kernels_lines() {
        let report = report("[ 1.0] Run /init\r\nkite: cpus     4\r\nkite: memory   972 MiB\r\nkite:\r\n");
        assert_eq!(report["cpus"], "4");
        assert_eq!(report["memory"], "972 MiB");
        assert_eq!(report.len(), 2);
    }

    #[test]
    fn a_guest_that_ends_otherwise_or_says_nothing_fails() {
        let case = &machines(&kernels(), true)[0];
        assert!(judge(case, None, "").unwrap_err().contains("no end"));
        assert!(judge(case, Some(ExitStatus::from_raw(255 << 8)), "").unwrap_err().contains("instead of 0"));
        assert!(judge(case, Some(ExitStatus::from_raw(0)), "").unwrap_err().contains("did not say"));
        let wrong = "kite: kernel   6.1.0 x86_64\nkite: cpus     2\n";
        assert_eq!(judge(case, Some(ExitStatus::from_raw(0)), wrong).unwrap_err(), "2 CPUs instead of 1");
    }

    #[test]
    fn a_panic_is_told_with_its_callers() {
        let kernel = "[ 1.0] Kernel panic - not syncing: sysrq triggered crash\n";
        let told = "kite: the guest crashed: kernel panic\nvCPU 0: RIP delay+0x1/0x2\n  Call trace:\n";
        let calls = "    panic+0x1/0x2\n    ? a+0x1/0x2\n    sysrq_handle_crash+0x1/0x2\n    write_sysrq_trigger+0x1/0x2\n";
        assert_eq!(judge_trace(&[kernel, told, calls].concat()), Ok(()));
        for parts in [[kernel, told, ""], [kernel, "", calls], ["", told, calls], [calls, kernel, told]] {
            assert!(judge_trace(&parts.concat()).is_err(), "{parts:?}");
        }
        assert!(judge_trace(&[kernel, told, &calls.replace("    panic", "    ? panic")].concat()).is_err());
    }

    #[test]
    fn memory_is_plausible_within_a_quarter() {
        assert!(plausible(1024, 972) && plausible(128, 70));
        assert!(!plausible(5120, 3072) && !plausible(1024, 1025));
    }
}
