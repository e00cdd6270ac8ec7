//! A container's image: the first run and a later one, beside what copies and unpacks the image, and a plain command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::quartiles;
use crate::host;
use crate::machine::kite_run;
use crate::setup::{Kernel, Setup};
use crate::step::{output, step};

/// What unpacks images, each with its package.
const PROGRAMS: [(&str, &str); 2] = [("umoci", "umoci"), ("skopeo", "skopeo")];
/// What is timed, in turn.
const NAMES: [&str; 4] =
    ["kite run -- true", "skopeo copy, umoci unpack", "kite run --image, first", "kite run --image, later"];

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
    let mut figures: [Vec<f64>; NAMES.len()] = Default::default();
    for round in 0..=rounds {
        eprintln!("xtask: round {round} of {rounds}, the first to warm up");
        let folder = tempfile::tempdir().context("making a folder")?;
        let (layout, bundle) = (folder.path().join("layout"), folder.path().join("bundle"));
        let kite_run = |options: &[&str]| {
            let mut command = kite_run(kite, &kernel.bz_image());
            command.arg("--modules").arg(kernel.modules()).env("XDG_CACHE_HOME", folder.path());
            command.args(options).args(["--", "true"]);
            command
        };
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", &named("oci-archive", image, ":t")]);
        skopeo.arg(named("oci", &layout, ":t"));
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &format!("{}:t", layout.display())]).arg(&bundle);
        let of_image = || kite_run(&["--image", &image.display().to_string()]);
        let work = [vec![kite_run(&[])], vec![skopeo, umoci], vec![of_image()], vec![of_image()]];
        for ((name, commands), figures) in NAMES.iter().zip(work).zip(&mut figures) {
            let start = Instant::now();
            for mut command in commands {
                output(&mut command)?;
            }
            let time = start.elapsed().as_secs_f64();
            eprintln!("xtask:   {name}: {time:.2} s");
            figures.extend((round > 0).then_some(time));
        }
    }
    print(&mut figures);
    Ok(())
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
    println!("\nthe first beside unpacking and a plain command: {:.2}", first / (unpacked + plain));
    println!("a later one beside a plain command: {:.2}", later / plain);
}
