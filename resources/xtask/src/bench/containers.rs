//! A container of podman's in a machine of kite's beside the same command by kite itself: what the engine adds.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::quartiles;
use crate::e2e::engines::{Engines, PODMAN};
use crate::setup::Kernel;

/// Ways to run `true` in the same image; the second is what the others are compared with.
const WAYS: [(&str, &str); 3] = [
    ("podman, crun", "podman run --rm tiny true"),
    ("kite run", "kite run --image /tiny.tar -- true"),
    ("podman, kite", "podman run --rm tiny true"),
];
const COMPARED: usize = 1;

/// Measures all in turn, and prints.
///
/// # Errors
/// There are no engines, or a command fails.
pub fn run(kite: &Path, kernel: &str, rounds: u32) -> Result<()> {
    let kernel = Kernel::open(kernel)?.with_context(|| format!("no kernel {kernel}"))?;
    let folder = tempfile::tempdir().context("making a folder")?;
    let engines = Engines::start(folder.path(), kite, &kernel, PODMAN)?;
    let mut times = WAYS.map(|_| Vec::new());
    for round in 0..=rounds {
        eprintln!("xtask: round {round} of {rounds}, the first to warm up");
        for ((name, script), times) in WAYS.iter().zip(&mut times) {
            let runtime = if name.ends_with("crun") { "crun" } else { "kite" };
            let time = time(&engines, runtime, script).with_context(|| (*name).to_owned())?;
            times.extend((round > 0).then_some(time));
        }
    }
    for times in &mut times {
        times.sort_unstable();
    }
    let [_, compared, _] = seconds(&times[COMPARED]);
    println!("| `true` in an image | seconds, the middle half | to `kite run` |\n|---|---|---|");
    for ((name, _), times) in WAYS.iter().zip(&times) {
        let [low, median, high] = seconds(times);
        println!("| {name} | {median:.2} ({low:.2} to {high:.2}) | {:.2} |", median / compared);
    }
    Ok(())
}

fn seconds(times: &[Duration]) -> [f64; 3] {
    quartiles(times).map(|time| time.as_secs_f64())
}

/// From exec to exit.
fn time(engines: &Engines, runtime: &str, script: &str) -> Result<Duration> {
    let mut command = engines.command(runtime, script);
    let start = Instant::now();
    let ended = command.stdin(Stdio::null()).output().context("starting a shell")?;
    let time = start.elapsed();
    ensure!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    Ok(time)
}
