//! A container's image: the first run and later ones, beside what copies and unpacks the image, and a plain command; and what a
//! large layer takes of memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::quartiles;
use crate::host;
use crate::machine::kite_run;
use crate::setup::{Kernel, Setup};
use crate::step::{output, step};

/// What unpacks images, each with its package.
const PROGRAMS: [(&str, &str); 2] = [("umoci", "umoci"), ("skopeo", "skopeo")];
/// What is timed.
const NAMES: [&str; 4] =
    ["kite run -- true", "skopeo copy, umoci unpack", "kite run --image, first", "kite run --image, later"];
/// The turns of a round. Those that are quick come twice, each once before the other.
const TURNS: [usize; 6] = [PLAIN, UNPACKED, FIRST, LATER, LATER, PLAIN];
const PLAIN: usize = 0;
const UNPACKED: usize = 1;
const FIRST: usize = 2;
const LATER: usize = 3;
/// What all rounds may take in the lab: one of them takes some minutes there.
pub const LIMIT: Duration = Duration::from_secs(3 * 3600);
/// What any one command may: after each is a line.
pub const SILENCE: Duration = Duration::from_secs(1500);

/// An image with layers as registries have them, of Debian with podman, as an archive; it is made once.
///
/// # Errors
/// It cannot be made.
pub fn image(setup: &mut Setup) -> Result<PathBuf> {
    setup.programs(&PROGRAMS)?;
    let saved = setup.podman()?;
    let archive = host::target("bench")?.join("image.oci.tar");
    if !archive.exists() {
        step("compressing the image", || {
            let part = archive.with_extension("part");
            // That of an interrupted run would be added to.
            let _ = fs::remove_file(&part);
            let (from, to) = (named("docker-archive", &saved, ""), named("oci-archive", &part, ":t"));
            output(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &from, &to]))?;
            fs::rename(&part, &archive).context("naming the archive")
        })?;
    }
    Ok(archive)
}

fn named(transport: &str, path: &Path, tag: &str) -> String {
    format!("{transport}:{}{tag}", path.display())
}

/// Measures, as root, and prints.
///
/// # Errors
/// A command fails.
pub fn run(kite: &Path, image: &Path, kernel: &str, rounds: u32) -> Result<()> {
    let kernel = Kernel::open(kernel)?.with_context(|| format!("no kernel {kernel}"))?;
    // In the lab, other files than its own are far.
    let near = tempfile::tempdir().context("making a folder")?;
    let archive = near.path().join("image.oci.tar");
    fs::copy(image, &archive).context("copying the image")?;
    let mut figures: [Vec<f64>; NAMES.len()] = Default::default();
    for round in 0..=rounds {
        eprintln!("xtask: round {round} of {rounds}, the first to warm up");
        let folder = tempfile::tempdir().context("making a folder")?;
        for turn in TURNS {
            let start = Instant::now();
            for mut command in commands(turn, kite, &archive, &kernel, folder.path()) {
                output(&mut command)?;
            }
            let time = start.elapsed().as_secs_f64();
            eprintln!("xtask:   {}: {time:.2} s", NAMES[turn]);
            figures[turn].extend((round > 0).then_some(time));
        }
    }
    print(&mut figures);
    Ok(())
}

/// What is timed as one, with a cache and all else that it makes in the round's `folder`.
fn commands(turn: usize, kite: &Path, image: &Path, kernel: &Kernel, folder: &Path) -> Vec<Command> {
    let (layout, bundle) = (folder.join("layout"), folder.join("bundle"));
    if turn == UNPACKED {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", &named("oci-archive", image, ":t")]);
        skopeo.arg(named("oci", &layout, ":t"));
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &format!("{}:t", layout.display())]).arg(&bundle);
        return vec![skopeo, umoci];
    }
    let mut command = kite_run(kite, &kernel.bz_image());
    command.arg("--modules").arg(kernel.modules()).env("XDG_CACHE_HOME", folder);
    if turn != PLAIN {
        command.arg("--image").arg(image);
    }
    command.args(["--", "true"]);
    vec![command]
}

fn print(figures: &mut [Vec<f64>; NAMES.len()]) {
    println!("seconds: medians, quartiles");
    for (name, figures) in NAMES.iter().zip(figures.iter_mut()) {
        figures.sort_unstable_by(f64::total_cmp);
        let [low, median, high] = quartiles(figures);
        let spread = format!("{low:.2} to {high:.2}");
        println!("{name:<28}{median:>8.2}{spread:>20}");
    }
    let [plain, unpacked, first, later] = figures.each_ref().map(|it| quartiles(it)[1]);
    println!(
        "\nthe first beside unpacking and a plain command: {:.2}, at most 1.5 is meant",
        first / (unpacked + plain)
    );
    println!("a later one beside a plain command: {:.2}, at most 1.1 is meant", later / plain);
}
