//! `cargo xtask`: what a developer of kite runs.

mod bench;
mod debian;
mod demo;
mod e2e;
mod fuzz;
mod guest;
mod guests;
mod host;
mod images;
mod lab;
mod lab_batch;
mod machine;
mod package;
mod qemu;
mod recording;
mod running;
mod saved_image;
mod seccomp_coverage;
mod setup;
mod step;
mod test;
mod tier;
mod user;
mod vmlinux;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::lab::Lab;
use crate::machine::Vmm;
use crate::setup::{Kernel, Setup};

/// What a developer of kite runs. Each command does its own set-up.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build kite and boot a stock kernel with it, on /dev/kvm if that can run it, else in the lab
    ///
    /// The kernel is the newest in /boot if it can be read, else one fetched into target/kernels. The exit
    /// status is kite's.
    #[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo debian")]
    Demo {
        #[command(subcommand)]
        what: Option<Demo>,
    },
    /// Run the tests: format, lints, unit tests, tiny guests, Linux guests
    ///
    /// What every push runs takes twenty minutes on two processors; --nightly adds what takes longer, --all every
    /// combination. Linux guests run on /dev/kvm if that can run them, else in the lab. Every kite has to be locked in with
    /// all that Linux has, if this host allows that. Root's tests are run by an ordinary user who may use KVM, and by root
    /// those that take root; names of the former begin with user/. A table of minutes comes at the end. The last line
    /// counts; what was skipped is listed above it with the reason. The exit status is 1 if anything failed.
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --nightly\n  \
                            cargo xtask test clippy net/tap linux-6.12/ a_disk_that_is_reset\n  \
                            cargo xtask test --list")]
    Test(test::Options),
    /// Run a command as root on an emulated machine with hardware-style KVM
    ///
    /// The machine sees this one's root folder; what it writes there is lost, but in /out (--out). Standard
    /// output, standard error, current folder, environment and exit status are the command's. The exit status
    /// is 125 if the lab itself fails.
    #[command(after_help = "Examples:\n  cargo xtask lab -- ls -l /dev/kvm\n  \
                            cargo xtask lab --out /tmp/o -- sh -c 'dmesg >/out/dmesg'\n  \
                            cargo xtask lab --icount -- kite run")]
    Lab(LabOptions),
    /// Fetch the kernels that tests boot into target/kernels, and make the Debian disk in target/debian
    ///
    /// demo, test and lab do this by themselves.
    Kernels,
    /// Build kite as users get it, and pack it: an archive and a Debian package with their checksums, in target/package
    #[command(after_help = "Example:\n  cargo xtask package && sudo apt install ./target/package/kite_*.deb")]
    Package,
    /// Draw the README's picture of a terminal anew, from a real run of the commands in it
    ///
    /// They run on /dev/kvm if that can run Linux guests, else in the lab.
    Recording,
    /// Measure kite beside a bare program and QEMU's microvm machine
    #[command(subcommand)]
    Bench(bench::Task),
    /// Check that every system call which the sandbox lets through is made
    ///
    /// kite is traced while its tests and Linux guests run, with this host's C library and with the other one of Debian's
    /// releases 12 and 13. The exit status is 1 if a rule is not needed.
    #[command(name = "calls", alias = "seccomp-coverage")]
    SeccompCoverage {
        /// Trace only what is linked with this host's C library
        #[arg(long)]
        own: bool,
    },
    /// Run a fuzz target with libFuzzer, which looks for input that reaches new code
    ///
    /// What it learns is kept in target/fuzz/TARGET/corpus, so that the next run goes on from there; what breaks the
    /// target is in target/fuzz/TARGET/findings. The targets are those of tests/fuzz/src/lib.rs. The exit status is 1
    /// if there was a finding.
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz queue\n  cargo xtask fuzz kernel --seconds 600\n  \
                            cargo xtask fuzz queue target/fuzz/queue/findings/crash-da39a3ee"
    )]
    Fuzz(fuzz::Options),
    /// Boot Linux guests where there is hardware KVM, a line about each
    #[command(hide = true)]
    Guests {
        /// The program under test
        #[arg(long)]
        kite: PathBuf,
        /// The names below target/kernels of their kernels
        #[arg(long = "kernel")]
        kernels: Vec<String>,
        /// Leave out the first of them
        #[arg(long, default_value_t = 0)]
        skip: usize,
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Run end-to-end tests on Linux guests where there is hardware KVM, a line about each
    #[command(hide = true)]
    E2e {
        /// The program under test, or `qemu`
        #[arg(long)]
        kite: PathBuf,
        /// The name below target/kernels of the kernel
        #[arg(long)]
        kernel: String,
        /// Leave out the first of them
        #[arg(long, default_value_t = 0)]
        skip: usize,
        /// Show what guests say
        #[arg(long)]
        shown: bool,
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Compare what kite makes of images of containers with what umoci makes, as root, a line about each
    #[command(hide = true)]
    Images {
        /// The program under test
        kite: PathBuf,
        /// Which
        names: Vec<String>,
    },
    /// Make images of containers that guests are to see as umoci does, as root
    #[command(hide = true)]
    ImagesForGuests {
        /// Where
        folder: PathBuf,
    },
    /// List the root folder of the guest that this runs in
    #[command(hide = true)]
    GuestTree,
    /// Become an ordinary user who may use KVM, in a mount namespace, and then this command
    #[command(hide = true)]
    AsUser {
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Go into the lab's root folder and become its command
    #[command(hide = true)]
    LabEnter,
}

#[derive(Subcommand)]
enum Demo {
    /// Boot a whole Debian from a disk to its login prompt, log in, look around, power off, check the disk
    Debian {
        /// Do that in the lab, where this runs, with this kite
        #[arg(long, hide = true, value_name = "KITE")]
        here: Option<PathBuf>,
    },
}

#[derive(Args)]
struct LabOptions {
    /// Count instructions instead of time: one a nanosecond
    #[arg(long)]
    icount: bool,
    /// RAM in MiB
    #[arg(long, value_name = "MIB", default_value_t = 6144)]
    memory: u32,
    /// Processors. With more than one, emulation may ruin nested guests that have several
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::whole(1, 64))]
    cpus: u32,
    /// The folder that is /out in the lab
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// End the lab after this many seconds
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,
    /// More for the lab kernel's command line
    #[arg(long, value_name = "STR", default_value = "", hide_default_value = true)]
    append: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// A parser of whole numbers from `least` to `most`, which refuses others in words.
fn whole(least: u32, most: u32) -> impl Fn(&str) -> Result<u32, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| match most {
            u32::MAX => format!("it is a whole number, at least {least}"),
            most => format!("it is a whole number from {least} to {most}"),
        })
    }
}

fn main() -> ExitCode {
    if guest::is_init() {
        guest::main();
    }
    let task = Cli::parse().command;
    let failure = if matches!(task, Task::Lab(_)) { 125 } else { 1 };
    match run(task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(failure)
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo { what: None } => demo::run(),
        Task::Demo { what: Some(Demo::Debian { here: None }) } => demo::debian::run(),
        Task::Demo { what: Some(Demo::Debian { here: Some(kite) }) } => demo::debian::in_lab(&kite),
        Task::Test(options) => test::run(options),
        Task::Lab(options) => run_lab(options),
        Task::Kernels => list_kernels(),
        Task::Package => package::run().map(|made| {
            made.iter().for_each(|path| println!("{}", path.display()));
            ExitCode::SUCCESS
        }),
        Task::Recording => recording::run(),
        Task::Bench(task) => bench::run(task),
        Task::SeccompCoverage { own } => {
            seccomp_coverage::run(&mut Setup::new(), test::Profile::Release, !own).map(|()| ExitCode::SUCCESS)
        }
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Guests { kite, kernels, skip, names } => run_guests(&kite, &kernels, names.get(skip..)),
        Task::E2e { kite, kernel, skip, shown, names } => {
            e2e::go_alone()?;
            let mut fixture = e2e::Fixture::new(Vmm::named(&kite), &kernel)?;
            fixture.shown = shown;
            let known = e2e::tests(true);
            let tests = named(known.into_iter().map(|(test, _)| test).collect(), names.get(skip..))?;
            e2e::run(&fixture, &tests, &mut io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Images { kite, names } => images::compare(&kite, &names).map(|()| ExitCode::SUCCESS),
        Task::ImagesForGuests { folder } => images::guest::make(&folder).map(|()| ExitCode::SUCCESS),
        Task::GuestTree => images::guest::list().map(|()| ExitCode::SUCCESS),
        Task::AsUser { command } => match user::run(&command)? {},
        Task::LabEnter => Ok(guest::lab::enter()),
    }
}

fn run_lab(options: LabOptions) -> Result<ExitCode> {
    let mut lab = Lab::new(&mut Setup::new())?;
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    }
    lab.memory = options.memory;
    lab.cpus = options.cpus;
    lab.icount = options.icount;
    lab.out = options.out;
    lab.timeout = Duration::from_secs(options.timeout);
    lab.append = options.append;
    Ok(ExitCode::from(lab.run(&options.command, &mut io::stdout(), &mut io::stderr())?))
}

fn run_guests(kite: &Path, kernels: &[String], names: Option<&[String]>) -> Result<ExitCode> {
    let open = |name: &String| Kernel::open(name)?.with_context(|| format!("no kernel {name}"));
    let kernels = kernels.iter().map(open).collect::<Result<Vec<_>>>()?;
    let known = guests::cases(&kernels, true);
    guests::run(kite, &named(known.into_iter().map(|(case, _)| case).collect(), names)?, &mut io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Those of these names, in their order.
fn named<T: Clone + ToString>(known: Vec<T>, names: Option<&[String]>) -> Result<Vec<T>> {
    let find = |name: &String| known.iter().find(|it| it.to_string() == *name).cloned();
    let names = names.unwrap_or_default().iter();
    names.map(|name| find(name).with_context(|| format!("no test {name}"))).collect()
}

fn list_kernels() -> Result<ExitCode> {
    let mut setup = Setup::new();
    let (kernels, missing) = setup.kernels()?;
    for kernel in kernels {
        println!("{}: {} in {}", kernel.name, kernel.release, kernel.bz_image().with_file_name("").display());
    }
    for kernel in missing {
        println!("{}: {}", kernel.name, kernel.reason);
    }
    match setup.debian() {
        Ok(debian) => println!("Debian: {}", debian.disk().display()),
        Err(error) if error.is::<setup::Unavailable>() => println!("Debian: {error}"),
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_xtask_of_the_pages_is_one() {
        let mut pages = vec![host::root().join("README.md"), host::root().join(".github/CONTRIBUTING.md")];
        let folder = std::fs::read_dir(host::root().join("resources/doc")).unwrap();
        pages.extend(folder.map(|entry| entry.unwrap().path()));
        let mut count = 0;
        for page in pages.iter().filter(|page| page.extension().is_some_and(|it| it == "md")) {
            let text = std::fs::read_to_string(page).unwrap();
            for after in text.split("cargo xtask ").skip(1) {
                // Up to a comment, the end of the line, or of the sentence's code.
                let line = after.split(['#', '\n', '`']).next().unwrap_or_default();
                let words = line.split_whitespace().filter(|word| !word.ends_with("..."));
                if let Err(error) = Cli::try_parse_from(["xtask"].into_iter().chain(words)) {
                    panic!("{}: cargo xtask {line}: {error}", page.display());
                }
                count += 1;
            }
        }
        assert!(count >= 20, "only {count}");
    }
}
