//! `cargo xtask bench exits`: what `kite bench exits` measures, where instructions are counted instead of time, and beside
//! other monitors that run the same guests.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host;
use crate::lab::Lab;
use crate::qemu;
use crate::setup::Setup;
use crate::step::{output, shown};

/// What kite may add to an exit that its devices answer, in instructions.
const MOST: f64 = 150.0;
/// What is counted.
const COUNTED: &str =
    "null,kvmrun.imm,cpuid,pio.kernel,pio.in.*,pio.out.*,pio.nobody,mmio.*,ioev.pio,ioev.mmio.dm";
/// What other monitors run, too.
const PEERED: [&str; 5] = ["cpuid", "pio.in.4", "pio.out.4", "mmio.r.4", "mmio.w.4"];
/// Runs of each monitor.
const ROUNDS: usize = 5;

/// Counts in the lab, and holds kite to its limit.
///
/// # Errors
/// Set-up fails, or kite adds more than it may.
pub fn count(setup: &mut Setup, kite: &Path) -> Result<()> {
    let mut lab = Lab::new(setup)?;
    lab.icount = true;
    let folder = TempDir::new_in(host::target("lab")?).context("making a folder")?;
    lab.out = Some(folder.path().to_owned());
    let mut argv: Vec<OsString> = vec![kite.into(), "bench".into(), "exits".into(), "--ticks".into()];
    argv.extend(
        ["--blocks", "3", "--time", "10ms", "--json", "/out/exits.json", "--only", COUNTED].map(Into::into),
    );
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = lab.run(&argv, &mut stdout, &mut stderr)?;
    ensure!(status == 0, "kite ended with {status}: {}", String::from_utf8_lossy(&stderr));
    let text = fs::read(folder.path().join("exits.json")).context("reading what kite wrote")?;
    let report: Value = serde_json::from_slice(&text).context("understanding what kite wrote")?;
    println!(
        "Instructions for each exit, of everything together: {:>8}{:>8}{:>12}",
        "bare", "kite", "kite adds"
    );
    let mut over = Vec::new();
    for row in list(&report, "results") {
        let (id, p50) = (text_of(row, "id"), number(row, "p50"));
        if text_of(row, "path") == "vmm" {
            continue;
        }
        match list(&report, "results").find(|it| text_of(it, "id") == id && text_of(it, "path") == "vmm") {
            None => println!("{id:<52}{p50:>8.0}"),
            Some(vmm) => {
                let vmm = number(vmm, "p50");
                println!("{id:<52}{p50:>8.0}{vmm:>8.0}{:>12.0}", vmm - p50);
                if vmm - p50 > MOST {
                    over.push(id);
                }
            }
        }
    }
    let skipped: Vec<_> = list(&report, "skipped").map(|it| text_of(it, "id")).collect();
    ensure!(skipped.is_empty(), "not counted: {skipped:?}");
    ensure!(over.is_empty(), "kite may add {MOST} instructions to an exit, and adds more to {over:?}");
    Ok(())
}

fn list<'a>(report: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    report[name].as_array().into_iter().flatten()
}

fn text_of<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or("")
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or(f64::NAN)
}

/// Measures here, with QEMU and whole kite machines running the same guests in turns; leaves a report and a page.
///
/// # Errors
/// Set-up fails, or a guest does not print its times.
pub fn beside_peers(setup: &mut Setup, kite: &Path) -> Result<()> {
    setup.qemu()?;
    let folder = host::target("bench")?;
    let (report, page) = (folder.join("exits.json"), folder.join("exits.html"));
    let mut measure = Command::new(kite);
    measure.args(["bench", "exits", "--json"]).arg(&report);
    output(&mut measure)?;
    let text = fs::read(&report).context("reading the report")?;
    let mut value: Value = serde_json::from_slice(&text).context("understanding the report")?;
    let ticks_per_ns = number(&value["host"], "tsc_khz") / 1e6;
    let own = number(&value["clock"]["pair_overhead_cycles"], "p50");
    let mut peers = Vec::new();
    for id in PEERED {
        let image = folder.join(format!("{id}.elf"));
        let mut write = Command::new(kite);
        write.args(["bench", "exits", "--only", id, "--payload"]).arg(&image);
        output(&mut write)?;
        let mut times = [Vec::new(), Vec::new()];
        // In turns, so that drift hits both alike.
        for _ in 0..ROUNDS {
            times[0].extend(run(on_kite(kite, &image))?);
            times[1].extend(run(on_qemu(&image))?);
        }
        for (name, mut times) in ["kite run", "QEMU microvm"].into_iter().zip(times) {
            times.sort_unstable();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
            let time =
                |ticks: u32| ((f64::from(ticks) - own).max(0.0) / ticks_per_ns * 100.0).round() / 100.0;
            peers.push(json!({"name": name, "id": id, "n": times.len(), "unit": "ns",
                "p50": time(at(0.5)), "p90": time(at(0.9))}));
        }
    }
    value["peers"] = peers.into();
    fs::write(&report, serde_json::to_vec_pretty(&value)?).context("writing the report")?;
    shown(Command::new(kite).args(["bench", "exits", "--from"]).arg(&report).arg("--html").arg(&page))?;
    println!("\n{}\n{}", report.display(), page.display());
    Ok(())
}

fn on_kite(kite: &Path, image: &Path) -> Command {
    let mut command = Command::new(kite);
    command.args(["run", "--memory", "64M", "--kernel"]).arg(image);
    command
}

fn on_qemu(image: &Path) -> Command {
    let mut command = qemu::microvm(64);
    command.args(["-M", "rtc=off", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(image);
    command
}

/// The times that a guest prints.
fn run(mut command: Command) -> Result<Vec<u32>> {
    let ended = command.stdin(Stdio::null()).output().context("starting a monitor")?;
    let text = String::from_utf8_lossy(&ended.stdout);
    let times: Option<Vec<u32>> =
        text.lines().map(|line| u32::from_str_radix(line.trim(), 16).ok()).collect();
    match times {
        Some(times) if times.len() == 1000 => Ok(times),
        _ => bail!(
            "{:?} did not print a thousand times, but {text:.200}{}",
            command.get_program(),
            String::from_utf8_lossy(&ended.stderr)
        ),
    }
}
