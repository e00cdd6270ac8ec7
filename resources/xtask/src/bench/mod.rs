//! `cargo xtask bench`: kite measured beside the least that runs a guest and beside QEMU's microvm machine. Everything
//! that is compared runs interleaved; nothing here passes or fails by a time.

mod boot;
mod compare;
mod containers;
mod exits;
mod files;
mod image_cost;
pub mod images;
mod io;
pub mod latency;
pub mod memory;
mod run;
mod screen;
mod start;
mod vmm;

use std::ffi::OsString;
use std::fs;
use std::io::{stderr, stdout};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use self::images::Images;
use self::vmm::Programs;
use crate::e2e::PROGRAMS;
use crate::host;
use crate::lab::Lab;
use crate::setup::{Kernel, Setup};
use crate::step::{shown, step};
use crate::test::build_kite;

/// The kernel that is booted, where it is to be had: the one that published figures are of.
const KERNEL: &str = "6.1";
/// The labs' time limit: on a busy machine they are slow.
const LIMIT: Duration = Duration::from_secs(3600);
/// Starts of each on this machine, and in the labs.
const ROUNDS: (u32, u32) = (21, 7);

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// From exec to the guest's first instruction, and memory while the guest is idle: kite, bare, QEMU's microvm
    ///
    /// The guest's first instruction writes a byte to COM1, which ends the measurement. It is a tiny program, or a
    /// stock kernel patched at its entry points. All start in turn, over and over, on this machine's /dev/kvm, in the
    /// lab, and in the lab that counts instructions instead of time.
    Start {
        /// Measure only here
        #[arg(long)]
        only: Option<Place>,
        /// Starts of each [default: 21, in the labs 7]
        #[arg(long, value_name = "N", value_parser = crate::whole(1, u32::MAX))]
        rounds: Option<u32>,
    },
    /// A stock kernel's boot to user space and off again: instructions and VM exits of kite and QEMU's microvm
    ///
    /// Instructions are those of everything together (host kernel, VMM and guest), in a lab that counts them. Exits
    /// are counted in a run of their own. kite boots with a screen, too, and runs a command by each transport.
    Boot {
        /// Count only these
        #[arg(long)]
        only: Option<Count>,
        /// Boot only what has this in its name
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        subjects: String,
    },
    /// Disk and network of a running guest: kite, and QEMU's microvm with io_uring and with threads
    ///
    /// The same kernel, initrd, programs, disk and tap. Each round boots each once, and its guest does everything
    /// before it goes. VM exits are counted in a round of their own.
    Io(io::Question),
    /// VM exits: instructions for each, counted, or times beside other monitors that run the same guests
    ///
    /// `kite bench exits` alone measures times on this machine's /dev/kvm. --count runs it in the lab that counts
    /// instructions, and fails if kite adds more to an exit than it may; --peers adds QEMU to its table and page.
    Exits {
        /// Count instructions in the lab
        #[arg(long, required_unless_present = "peers")]
        count: bool,
        /// Run the same guests in QEMU, too, on this machine
        #[arg(long)]
        peers: bool,
    },
    /// A command in a guest: kite, and virtme-ng with QEMU
    ///
    /// `true` from exec to exit, and `git status` in a tree of 50,000 files, with the same kernel on the same KVM.
    Run {
        /// Rounds
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::whole(1, u32::MAX))]
        rounds: u32,
    },
    /// A container's image: the first run and later ones, beside skopeo and umoci, and a plain command; and memory
    ///
    /// The image is Debian with podman in a file. What counts are the ratios of medians, in the lab. What a layer of 1 GiB takes
    /// of memory is measured on this machine.
    Image {
        /// Rounds
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::whole(1, u32::MAX))]
        rounds: u32,
    },
    /// Measure an image where this runs, as root
    #[command(hide = true)]
    ImageHere {
        #[arg(long)]
        kite: std::path::PathBuf,
        /// The archive
        #[arg(long)]
        image: std::path::PathBuf,
        #[arg(long)]
        rounds: u32,
        /// The kernel's name below target/kernels
        kernel: String,
    },
    /// A command as a process, in a container, in a virtual machine and in a jailed one: start, memory, and reach
    ///
    /// `true` and `cat /etc/hostname` from exec to exit, all in turn; what a command can reach is tried by one. Printed
    /// as a table, and drawn.
    Compare {
        /// Rounds
        #[arg(long, value_name = "N", default_value_t = 7, value_parser = crate::whole(1, u32::MAX))]
        rounds: u32,
        /// Where the picture goes [default: target/bench/compare.svg]
        #[arg(long, value_name = "FILE")]
        svg: Option<std::path::PathBuf>,
    },
    /// How often a viewer sees a screen of 1024 by 768 pixels whose every row changes, on this machine's /dev/kvm
    Screen {
        /// How long each encoding is measured
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = crate::whole(1, 3600))]
        seconds: u32,
    },
    /// A container of podman's in a machine of kite's, and the same command by `kite run --image`
    ///
    /// `true` from exec to exit, all in turn, in the same image, and with crun for comparison.
    Containers {
        /// Rounds
        #[arg(long, value_name = "N", default_value_t = 7, value_parser = crate::whole(1, u32::MAX))]
        rounds: u32,
    },
    /// Measure containers where this runs
    #[command(hide = true)]
    ContainersHere {
        #[arg(long)]
        kite: std::path::PathBuf,
        #[arg(long)]
        rounds: u32,
        /// The kernel's name below target/kernels
        kernel: String,
    },
    /// Compare where this runs
    #[command(hide = true)]
    CompareHere {
        #[arg(long)]
        kite: std::path::PathBuf,
        /// This program: in the lab it runs by another name, which guests do not see
        #[arg(long)]
        probe: std::path::PathBuf,
        #[arg(long)]
        rounds: u32,
        #[arg(long)]
        svg: Option<std::path::PathBuf>,
        /// The kernel's name below target/kernels
        kernel: String,
    },
    /// Try what is within reach
    #[command(hide = true)]
    Probe(compare::probe::Targets),
    /// Measure commands where this runs
    #[command(hide = true)]
    RunHere {
        #[arg(long)]
        kite: std::path::PathBuf,
        #[arg(long)]
        virtme: std::path::PathBuf,
        /// The archive of files
        #[arg(long)]
        tree: std::path::PathBuf,
        #[arg(long)]
        rounds: u32,
    },
    /// Measure disk and network where this runs
    #[command(hide = true)]
    IoHere {
        /// kite, or no kite
        #[arg(long)]
        kite: Option<std::path::PathBuf>,
        #[command(flatten)]
        question: io::Question,
        /// The kernel's name below target/kernels
        kernel: String,
    },
    /// Measure starts where this runs
    #[command(hide = true)]
    StartHere {
        #[command(flatten)]
        programs: Programs,
        #[arg(long)]
        rounds: u32,
        /// The kernel's name below target/kernels
        kernel: String,
    },
    /// Boot where this runs
    #[command(hide = true)]
    BootHere {
        #[command(flatten)]
        programs: Programs,
        #[arg(long)]
        count: Count,
        #[arg(long, default_value = "")]
        subjects: String,
        /// The kernel's name below target/kernels
        kernel: String,
    },
}

/// Where to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// On this machine's /dev/kvm
    Native,
    /// In the lab
    Lab,
    /// In the lab, with instructions counted
    Counting,
}

/// What to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Count {
    /// Instructions of everything, in the counting lab
    Instructions,
    /// VM exits
    Exits,
}

/// Measures and prints.
///
/// # Errors
/// Set-up fails, or a guest does not start.
pub fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Start { only, rounds } => start_everywhere(only, rounds)?,
        Task::Boot { only, subjects } => boot_everywhere(only, &subjects)?,
        Task::Io(question) => io_somewhere(&question)?,
        Task::Exits { count, peers } => {
            let kite = build_kite()?;
            let mut setup = Setup::new();
            if count {
                latency::count(&mut setup, &kite)?;
            }
            if peers {
                latency::beside_peers(&mut setup, &kite)?;
            }
        }
        Task::Run { rounds } => run_in_lab(rounds)?,
        Task::Image { rounds } => image_in_lab(rounds)?,
        Task::ImageHere { kite, image, rounds, kernel } => image_cost::run(&kite, &image, &kernel, rounds)?,
        Task::Compare { rounds, svg } => compare_somewhere(rounds, svg)?,
        Task::Screen { seconds } => screen::run(&build_kite()?, seconds)?,
        Task::Containers { rounds } => containers_somewhere(rounds)?,
        Task::ContainersHere { kite, rounds, kernel } => containers::run(&kite, &kernel, rounds)?,
        Task::CompareHere { kite, probe, rounds, svg, kernel } => {
            let programs = compare::Programs { kite, probe };
            compare::run(&programs, &kernel, rounds, svg.as_deref())?;
        }
        Task::Probe(targets) => compare::probe::run(&targets),
        Task::RunHere { kite, virtme, tree, rounds } => run::run(&kite, &virtme, &tree, rounds)?,
        Task::IoHere { kite, question, kernel } => io::run(kite, &kernel, &question)?,
        Task::StartHere { programs, rounds, kernel } => {
            let (kernel, images) = here(&programs, &kernel)?;
            start::run(&programs, &kernel, &images, rounds)?;
            memory::run(&programs, &images)?;
        }
        Task::BootHere { programs, count, subjects, kernel } => {
            let (kernel, images) = here(&programs, &kernel)?;
            boot::run(&programs, &kernel, &images, count, &subjects)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is booted, all of it near.
fn here(programs: &Programs, kernel: &str) -> Result<(Kernel, Images)> {
    let kernel = Kernel::open(kernel)?.with_context(|| format!("no kernel {kernel}"))?;
    let images = Images::at(&host::target("bench")?);
    files::settle(programs, &kernel, &images)?;
    Ok((kernel, images))
}

fn start_everywhere(only: Option<Place>, rounds: Option<u32>) -> Result<()> {
    let mut setup = Setup::new();
    let (programs, kernel) = prepare(&mut setup)?;
    let arguments = |rounds: u32| {
        let mut arguments = vec!["start-here".into(), "--rounds".into(), rounds.to_string().into()];
        arguments.extend(programs.arguments());
        arguments.push(OsString::from(&kernel.name));
        arguments
    };
    let wanted = |place| only.is_none_or(|only| only == place);
    if wanted(Place::Native) {
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            println!("Not measured on this machine: /dev/kvm cannot be opened.");
        } else {
            println!("On this machine's /dev/kvm");
            let own = std::env::current_exe().context("finding this program")?;
            shown(Command::new(own).arg("bench").args(arguments(rounds.unwrap_or(ROUNDS.0))))?;
        }
    }
    for place in [Place::Lab, Place::Counting].into_iter().filter(|place| wanted(*place)) {
        let mut lab = Lab::new(&mut setup)?;
        lab.timeout = LIMIT;
        if place == Place::Counting {
            println!("\nIn the counting lab, where a million instructions of everything together take a ms");
            lab.icount = true;
        } else {
            lab.cpus = 2;
            println!("\nIn the lab, whose times are an emulator's: only their ratios mean something");
        }
        in_lab(&mut lab, arguments(rounds.unwrap_or(ROUNDS.1)))?;
    }
    Ok(())
}

fn boot_everywhere(only: Option<Count>, subjects: &str) -> Result<()> {
    let mut setup = Setup::new();
    let (programs, kernel) = prepare(&mut setup)?;
    let mut lab = Lab::new(&mut setup)?;
    lab.timeout = LIMIT;
    for (count, name) in [(Count::Exits, "exits"), (Count::Instructions, "instructions")] {
        if only.is_some_and(|only| only != count) {
            continue;
        }
        lab.icount = count == Count::Instructions;
        let mut arguments = vec!["boot-here".into(), "--count".into(), name.into()];
        arguments.extend(["--subjects".into(), subjects.into()]);
        arguments.extend(programs.arguments());
        arguments.push(OsString::from(&kernel.name));
        in_lab(&mut lab, arguments)?;
    }
    Ok(())
}

fn io_somewhere(question: &io::Question) -> Result<()> {
    let kite = build_kite()?;
    let mut setup = Setup::new();
    setup.qemu()?;
    setup.debian()?;
    setup.programs(&PROGRAMS)?;
    let kernel = setup.kernel()?;
    let mut arguments: Vec<OsString> = vec!["io-here".into(), "--kite".into(), kite.into()];
    arguments.extend(question.arguments());
    arguments.push(kernel.name.into());
    if question.count {
        let mut lab = Lab::new(&mut setup)?;
        (lab.timeout, lab.icount) = (LIMIT, true);
        return in_lab(&mut lab, arguments);
    }
    somewhere(&mut setup, |lab| lab.cpus = 2, arguments)
}

/// Runs this program's `bench` on this machine where its KVM runs Linux, else in the lab.
fn somewhere(setup: &mut Setup, fit: impl FnOnce(&mut Lab), arguments: Vec<OsString>) -> Result<()> {
    let Err(reason) = host::hardware_kvm() else {
        let own = std::env::current_exe().context("finding this program")?;
        return shown(Command::new(own).arg("bench").args(arguments));
    };
    println!("In the lab, whose figures are an emulator's: only their ratios mean something. {reason}.");
    let mut lab = Lab::new(setup)?;
    lab.timeout = LIMIT;
    fit(&mut lab);
    in_lab(&mut lab, arguments)
}

/// On this machine where its KVM runs Linux, else in the lab.
fn compare_somewhere(rounds: u32, svg: Option<std::path::PathBuf>) -> Result<()> {
    let kite = build_kite()?;
    let mut setup = Setup::new();
    setup.programs(&[("busybox", "busybox-static")])?;
    let kernel = setup.kernel()?;
    let svg = svg.map_or_else(compare::default_picture, Ok)?;
    let own = std::env::current_exe().context("finding this program")?;
    let arguments = |svg: &std::path::Path| -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["compare-here".into(), "--kite".into(), kite.clone().into()];
        arguments.extend(["--probe".into(), own.clone().into()]);
        arguments.extend(["--rounds".into(), rounds.to_string().into(), "--svg".into(), svg.into()]);
        arguments.push((&kernel.name).into());
        arguments
    };
    let Err(reason) = host::hardware_kvm() else {
        return shown(Command::new(&own).arg("bench").args(arguments(&svg)));
    };
    println!("In the lab, whose times are an emulator's: only their ratios mean something. {reason}.\n");
    let out = tempfile::tempdir().context("making a folder")?;
    let mut lab = Lab::new(&mut setup)?;
    (lab.timeout, lab.out) = (LIMIT, Some(out.path().to_owned()));
    in_lab(&mut lab, arguments(std::path::Path::new("/out/compare.svg")))?;
    fs::copy(out.path().join("compare.svg"), &svg).with_context(|| format!("writing {}", svg.display()))?;
    println!("the picture: {}", svg.display());
    Ok(())
}

fn containers_somewhere(rounds: u32) -> Result<()> {
    let kite = build_kite()?;
    let mut setup = Setup::new();
    setup.engines()?;
    let kernel = setup.kernel()?;
    let mut arguments: Vec<OsString> = vec!["containers-here".into(), "--kite".into(), kite.into()];
    arguments.extend(["--rounds".into(), rounds.to_string().into(), kernel.name.into()]);
    somewhere(&mut setup, |_| (), arguments)
}

/// virtme-ng installs a kernel to boot it: that is the lab's to forget.
fn run_in_lab(rounds: u32) -> Result<()> {
    let kite = build_kite()?;
    let mut setup = Setup::new();
    let mut lab = Lab::new(&mut setup)?;
    let virtme = run::virtme(&mut setup)?;
    println!("In the lab, whose times are an emulator's: only their ratios mean something.");
    lab.timeout = LIMIT;
    let mut arguments: Vec<OsString> = vec!["run-here".into(), "--kite".into(), kite.into()];
    arguments.extend(["--tree".into(), run::tree()?.into()]);
    arguments.extend(["--virtme".into(), virtme.into(), "--rounds".into(), rounds.to_string().into()]);
    in_lab(&mut lab, arguments)
}

/// In the lab, where this is root; memory here, as it is the same everywhere.
fn image_in_lab(rounds: u32) -> Result<()> {
    let kite = build_kite()?;
    let mut setup = Setup::new();
    let (image, kernel) = (image_cost::image(&mut setup)?, setup.kernel()?);
    let mut lab = Lab::new(&mut setup)?;
    for line in crate::images::measure_memory(&mut setup, &kite)? {
        println!("a layer of 1 GiB, {line}");
    }
    println!("\nIn the lab, whose times are an emulator's: only their ratios mean something.");
    (lab.timeout, lab.silence) = (image_cost::LIMIT, image_cost::SILENCE);
    let mut arguments: Vec<OsString> = vec!["image-here".into(), "--kite".into(), kite.into()];
    arguments.extend(["--image".into(), image.into(), "--rounds".into(), rounds.to_string().into()]);
    arguments.push(kernel.name.into());
    in_lab(&mut lab, arguments)
}

/// Runs this program's `bench` in the lab.
fn in_lab(lab: &mut Lab, arguments: Vec<OsString>) -> Result<()> {
    let mut argv: Vec<OsString> = vec!["/proc/self/exe".into(), "bench".into()];
    argv.extend(arguments);
    match lab.run(&argv, &mut stdout(), &mut stderr())? {
        0 => Ok(()),
        status => bail!("the bench in the lab ended with {status}"),
    }
}

/// The first quartile, the median and the third of figures in order, of which there is one at least.
fn quartiles<T: Copy>(sorted: &[T]) -> [T; 3] {
    [1, 2, 3].map(|part| sorted[(sorted.len() - 1) * part / 4])
}

/// Builds what is measured, and fetches and makes what it boots.
fn prepare(setup: &mut Setup) -> Result<(Programs, Kernel)> {
    let kite = build_kite()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(host::root()).args(["build", "--quiet", "--release", "--package", "bare"]);
    step("building bare", || shown(&mut cargo))?;
    setup.qemu()?;
    let (kernels, _) = setup.kernels()?;
    let wanted = kernels.iter().find(|kernel| kernel.name == KERNEL).or(kernels.first());
    let kernel = wanted.context("there is no kernel to boot")?.clone();
    let programs = Programs { bare: kite.with_file_name("bare"), kite };
    let images = Images::at(&host::target("bench")?);
    step("patching kernels", || images.make(&kernel, &programs.kite))?;
    Ok((programs, kernel))
}
