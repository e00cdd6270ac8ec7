//! `cargo xtask test`: everything of a tier, or what is named. What passed, failed and was skipped is counted; why, and how
//! many minutes each part took, is told at the end.
//!
//! Two lanes run side by side, of about a processor each: one compiles and runs what needs no Linux guest, the other what
//! does; who is done first helps with what is left of the guests.

mod lab;
mod native;
mod sources;
mod state;
mod tally;
mod watched;

pub use native::Programs;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::lab::Queue;
use self::tally::Tally;
use crate::bench::memory;
use crate::fuzz;
use crate::host;
use crate::images;
use crate::package;
use crate::setup::Setup;
use crate::step::{open_step, output, shown, step};
use crate::tier::{Choice, Tier};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Run what takes an hour, too
    #[arg(long, conflicts_with = "all")]
    nightly: bool,
    /// And every combination of kernel, format, CPUs and memory, as both users
    #[arg(long)]
    all: bool,
    /// List the tests with their tiers instead
    #[arg(long)]
    list: bool,
    /// Run these instead, of whatever tier: parts by their names, Linux guests by what their names begin with, others by a
    /// part of their names
    names: Vec<String>,
}

/// A part of a run that is not for the lab.
struct Part {
    name: &'static str,
    tier: Tier,
    run: fn(&mut Tally) -> Result<()>,
}

/// The parts that need neither Linux guests nor what tests are built from.
const PARTS: [Part; 8] = [
    Part { name: "format", tier: Tier::Quick, run: format },
    Part { name: "clippy", tier: Tier::Quick, run: clippy },
    Part { name: "docs", tier: Tier::Nightly, run: docs },
    Part { name: "images", tier: Tier::Nightly, run: images },
    Part { name: "fuzz", tier: Tier::Nightly, run: fuzzers },
    Part { name: "demo", tier: Tier::Nightly, run: demo },
    Part { name: "package", tier: Tier::Nightly, run: packages },
    Part { name: "memory", tier: Tier::Nightly, run: memory },
];
/// Unit tests and tests of the binary.
const NATIVE: (&str, Tier) = ("native", Tier::Quick);
/// How long each fuzzer looks for what breaks its target, in seconds.
const FUZZED: u64 = 20;

/// Runs what is chosen.
///
/// # Errors
/// Something that all tests need cannot be made.
pub fn run(options: Options) -> Result<ExitCode> {
    let tier = match (options.all, options.nightly) {
        (true, _) => Tier::All,
        (_, true) => Tier::Nightly,
        _ => Tier::Quick,
    };
    let choice = Choice { tier, names: options.names };
    if options.list {
        return list(&choice);
    }
    if choice.names.is_empty() {
        let time = match tier {
            Tier::Quick => "some fifteen minutes",
            Tier::Nightly => "an hour",
            Tier::All => "hours",
        };
        println!(
            "This takes {time} on two processors; cargo xtask test NAME... runs a part, --list names them."
        );
    }
    components()?;
    let queue = Queue::default();
    let (ready, set_up) = channel();
    let (mut tally, guests) = thread::scope(|scope| {
        let guests = scope.spawn(|| {
            let mut tally = Tally::default();
            if let Err(error) = lab::prepare(&choice, &mut tally, &queue, &ready) {
                tally.failed.push(format!("Linux guests: {error:#}"));
            }
            drop(ready);
            queue.work(&mut tally);
            tally
        });
        let mut tally = Tally::default();
        native_lane(&choice, &mut tally, &set_up);
        // Ends when the queue has all that it is to have.
        set_up.iter().for_each(drop);
        queue.work(&mut tally);
        (tally, guests.join())
    });
    match guests {
        Ok(guests) => tally.add(guests),
        Err(_) => tally.failed.push("Linux guests: their lane has panicked".to_owned()),
    }
    for name in &choice.names {
        if !tally.found.contains(name) {
            tally.failed.push(format!("{name}: no test is called that: see cargo xtask test --list"));
        }
    }
    tally.close();
    Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What no Linux guest takes part in.
fn native_lane(choice: &Choice, tally: &mut Tally, set_up: &Receiver<()>) {
    for part in &PARTS {
        if tally.wants(choice, part.name, part.tier) {
            tally.check(part.name, part.run);
        }
    }
    let filters = tally.native_filters(choice);
    if filters.is_none() {
        return;
    }
    let built = tally.part("building the tests", |tally| {
        let built = Programs::built();
        if let Err(error) = &built {
            tally.failed.push(format!("native: {error:#}"));
        }
        built.ok()
    });
    // Tests read kernels, too, and use programs that are installed.
    let Some(programs) = built.filter(|_| set_up.recv().is_ok()) else { return };
    if choice.names.is_empty() {
        tally.check("every source file is part of a test or a program", |tally| {
            sources::check(tally, &programs)
        });
    }
    tally.native(&programs, choice.tier, &filters.unwrap_or_default());
}

/// How kite is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As users get it.
    Release,
    /// In a third of the time.
    Ci,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Ci => "ci",
        }
    }

    /// kite; answers where it is.
    ///
    /// # Errors
    /// It does not build.
    pub fn build(self) -> Result<PathBuf> {
        step(format!("building kite ({})", self.name()), || shown(self.command().arg("--quiet")))?;
        self.built()
    }

    fn command(self) -> Command {
        let mut cargo = cargo();
        cargo.args(["build", "--profile", self.name(), "--package", "kite"]);
        cargo
    }

    /// Where it is: this program lies beside it, in the folder of its own profile.
    fn built(self) -> Result<PathBuf> {
        let own = std::env::current_exe().context("finding this program")?;
        let profiles = own.parent().and_then(Path::parent).context("this program is in no build folder")?;
        Ok(profiles.join(self.name()).join("kite"))
    }
}

/// kite as users get it; answers where it is.
///
/// # Errors
/// It does not build.
pub fn build_kite() -> Result<PathBuf> {
    Profile::Release.build()
}

/// The same with what Cargo says, as it takes minutes the first time.
///
/// # Errors
/// It does not build.
pub fn build_kite_for_all_to_see() -> Result<PathBuf> {
    let what = "building kite, which takes two to four minutes the first time";
    open_step(what, || shown(&mut Profile::Release.command()))?;
    Profile::Release.built()
}

/// Cargo, in the root folder of this tree.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(host::root());
    // A relative one is from where this was started.
    cargo.envs(host::targets().ok().map(|folder| ("CARGO_TARGET_DIR", folder)));
    cargo
}

/// rustfmt and clippy are no part of rustup's minimal profile.
fn components() -> Result<()> {
    for (program, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if output(cargo().args([program, "--version"])).is_err() {
            let mut rustup = Command::new("rustup");
            rustup.args(["component", "add", component]).current_dir(host::root());
            step(format!("installing {component}"), || output(&mut rustup))?;
        }
    }
    Ok(())
}

fn format(tally: &mut Tally) -> Result<()> {
    shown(cargo().args(["fmt", "--all", "--check"]))?;
    tally.passed += 1;
    Ok(())
}

fn clippy(tally: &mut Tally) -> Result<()> {
    shown(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    tally.passed += 1;
    Ok(())
}

/// What documentation comments say, and the examples in them.
fn docs(tally: &mut Tally) -> Result<()> {
    let mut doc = cargo();
    doc.args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented, too, so that links to them lead somewhere.
    shown(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))?;
    shown(cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
    tally.passed += 1;
    Ok(())
}

/// Images of containers, against umoci.
fn images(tally: &mut Tally) -> Result<()> {
    let outcome = images::compare_all(&mut Setup::new(), &Profile::Release.build()?)?;
    tally.passed += outcome.passed;
    tally.failed.extend(outcome.failed);
    Ok(())
}

/// The README's first command, which a newcomer tries.
fn demo(tally: &mut Tally) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let said = output(Command::new(own).arg("demo"))?;
    for expected in ["kite's demonstration: ", "\nkite: kernel ", "\nkite's exit code: 0\n", "\nNext:\n"] {
        ensure!(said.contains(expected), "it does not say {expected:?}: {said}");
    }
    tally.passed += 1;
    Ok(())
}

/// What users install.
fn packages(tally: &mut Tally) -> Result<()> {
    package::check()?;
    tally.passed += 1;
    Ok(())
}

/// What kite takes besides its guest's RAM.
fn memory(tally: &mut Tally) -> Result<()> {
    memory::check(&Profile::Release.build()?)?;
    tally.passed += 1;
    Ok(())
}

/// Each fuzz target in libFuzzer's hands, for a moment.
fn fuzzers(tally: &mut Tally) -> Result<()> {
    for target in fuzz::targets()? {
        match fuzz::run(&fuzz::Options::brief(&target, FUZZED)) {
            Ok(ExitCode::SUCCESS) => tally.passed += 1,
            Ok(_) => tally.failed.push(format!("fuzz {target}: it found something")),
            Err(error) => tally.failed.push(format!("fuzz {target}: {error:#}")),
        }
    }
    Ok(())
}

/// Every test with its tier.
fn list(choice: &Choice) -> Result<ExitCode> {
    let (kernels, _) = Setup::new().kernels()?;
    let mut tests: Vec<(Tier, String)> = PARTS.iter().map(|part| (part.tier, part.name.to_owned())).collect();
    tests.push((NATIVE.1, format!("{}: what cargo test runs", NATIVE.0)));
    tests.extend(lab::tests(&kernels).into_iter().map(|(name, tier)| (tier, name)));
    tests.retain(|(tier, name)| choice.names.is_empty() || choice.takes(name, *tier));
    for (tier, name) in tests {
        println!("{tier:<8} {name}");
    }
    Ok(ExitCode::SUCCESS)
}
