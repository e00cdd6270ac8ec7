//! The command line as data.
#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "what is in brackets in the help of an option may be left out"
)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cmd::bench;
use crate::cmd::image;
use crate::cmd::inspect;
use crate::cmd::machines;
use crate::cmd::matrix;
use crate::cmd::oci;
use crate::spec::RunSpec;
use crate::spec::device::{PortSpec, ScreenSpec};
use crate::spec::disk::{self, DiskSpec};
use crate::spec::duration;
use crate::spec::id::MachineId;
use crate::spec::limits::{self, CgroupName, Limits};
use crate::spec::machine::{ConsoleSpec, OnReboot, TransportSpec};
use crate::spec::net::{self, NetSpec};
use crate::spec::number::{memory_size, whole};
use crate::spec::sandbox::{self, SandboxSpec};
use crate::spec::vnc::Address;

mod command;
mod config;
mod measure;
pub mod pages;
mod refusal;
mod spec;

pub use command::CommandOptions;
pub use measure::MeasureOptions;

pub use crate::host::exit_code::{
    CRASHED, DONE, FAILED, NOT_EXECUTABLE, NOT_FOUND, OUT_OF_MEMORY, QUIT, TIMED_OUT,
};
pub use crate::host::messages::{complain, printable};

/// The version, and the commit if it was built from one: `0.2.0 (0123456789ab)`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("KITE_COMMIT"));

/// Names the sandbox where no option does.
const SANDBOX_VARIABLE: &str = "KITE_SANDBOX";

/// The name by which kite is an OCI runtime.
const RUNTIME: &str = "kite-oci";

/// The command that boots a kernel.
const RUN: &str = "run";

const EXIT_CODES: &str = "\
Exit codes:
  0    the guest powered off or rebooted; or you quit its console with Ctrl-A X
  123  in a group: the machine was killed for more memory than --limit allows or the host had
  124  --timeout or --idle-timeout was over before the command was
  125  kite or the host failed: usage, KVM, memory, image, lost output, a refused system call
  126  the command cannot be executed in the guest
  127  there is no such command in the guest
  130  you quit a command with Ctrl-A X
  255  the guest crashed: kernel panic, triple fault, KVM internal error, every vCPU halted for ever
  With --test-devices, a value that the guest writes to port 0xf4 ends it with (value << 1) | 1.
  A command that has ended gives its own status, or 128 + the number of the signal that killed it; --fail-on-ktap says
  when failed cases of its KTAP or TAP make a 0 a 1. A selftest that skipped everything makes its 4 a 0.
  Killed by a signal, kite ends by that signal: a shell shows 128 + its number.";

const RUN_EXAMPLES: &str = "\
Examples:
  kite run                                     the newest kernel installed, to user space and off again
  kite run --kernel vmlinux --cpus 4 --memory 2G
  kite run --kernel bzImage --initrd rootfs.cpio.gz --append 'init=/bin/sh'
  kite run --kernel bzImage --modules target/lib/modules/6.12.0
  kite run --kernel vmlinuz --initrd initrd.img --disk debian.img --append root=/dev/vda --net user
  kite run --test-devices --kernel vmexit.flat --append cpuid
  kite run --sandbox require --kernel vmlinux  locked in with all that Linux has, or not at all
  kite run --cgroup ci --limit cpu=1.5,memory=600M,pids=64 --limit io=/dev/sda:rbps=10M
  kite run --disk path=a,,b.img,ephemeral --net tap=tap0 --port agent=/tmp/agent.sock
  kite run --stats --trace boot.json           what the boot spent its time and exits on
  kite run --cpus 4 --net user --print-spec    all of a run as JSON, which kite run --spec FILE runs

  kite run -- uname -a                         a command, in a copy-on-write view of this host's files
  kite run --kernel arch/x86/boot/bzImage --share .:rw -- make -C tools/testing/selftests run_tests
  kite run --root rootfs/ -- /bin/sh           a folder as the root; with a terminal, the shell has one
  kite run --root disk --disk path=debian.img,ephemeral -- cat /etc/os-release
  kite run --image debian:12 -- cat /etc/os-release
  kite run --image saved.tar --net user,forward=8080:80
  git bisect run kite run --timeout 5m --kernel arch/x86/boot/bzImage -- ./reproducer

Keys:
  Ctrl-A X quits, Ctrl-A H lists the keys, Ctrl-A Ctrl-A sends one Ctrl-A.";

/// A minimal KVM hypervisor: boots a Linux kernel from the command line.
#[derive(Debug, Parser)]
#[command(name = "kite", version = VERSION, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What kite is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel, its console on standard input and output; or run a command in it
    #[command(after_help = format!("{RUN_EXAMPLES}\n\n{}\n\n{EXIT_CODES}", config::HELP))]
    Run(Box<RunOptions>),
    /// Run commands on kernels, every one on every one, several at a time
    #[command(after_help = matrix::HELP)]
    Matrix(matrix::Options),
    /// Show what confines a running kite, as seen from outside: namespaces, capabilities, seccomp, cgroup, descriptors
    #[command(after_help = inspect::HELP)]
    Inspect {
        /// The process [default: every running kite of this user, or for root of everybody]
        #[arg(value_name = "PID", value_parser = process)]
        pid: Option<u32>,
        /// Print which system calls each kind of thread may make in any sandbox, and nothing of a process
        #[arg(long, conflicts_with = "pid")]
        calls: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show the machines that run and have a name or a screen
    #[command(after_help = machines::LIST_HELP)]
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Write what is on the screen of a machine into a PNG file
    #[command(after_help = machines::SCREENSHOT_HELP, allow_missing_positional = true)]
    Screenshot {
        /// The machine, as `kite list` names it [default: the one that has a screen]
        #[arg(value_name = "ID", value_parser = ValueParser::new(MachineId::parse))]
        id: Option<MachineId>,
        /// The file
        #[arg(value_name = "FILE", required = true)]
        file: PathBuf,
    },
    /// Pause a machine that runs
    #[command(after_help = machines::PAUSE_HELP)]
    Pause {
        /// The machine, as `kite list` names it
        #[arg(value_name = "ID", value_parser = ValueParser::new(MachineId::parse))]
        id: MachineId,
    },
    /// Let a machine go on that is paused
    #[command(after_help = machines::RESUME_HELP)]
    Resume {
        /// The machine, as `kite list` names it
        #[arg(value_name = "ID", value_parser = ValueParser::new(MachineId::parse))]
        id: MachineId,
    },
    /// End a machine that runs
    #[command(after_help = machines::STOP_HELP)]
    Stop {
        /// The machine, as `kite list` names it
        #[arg(value_name = "ID", value_parser = ValueParser::new(MachineId::parse))]
        id: MachineId,
        /// Kill it if it takes longer than this: 90, 90s, 5m, 1h30m
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = ValueParser::new(duration::parse))]
        timeout: Duration,
    },
    /// Get images of containers, show those that are there, and remove them
    #[command(subcommand, after_help = image::HELP)]
    Image(image::Command),
    /// Run containers for podman, Docker or containerd, each in a machine of its own
    #[command(after_help = oci::HELP)]
    Oci(Box<oci::Options>),
    /// Measure how long things take on this host
    #[command(subcommand)]
    Bench(bench::Command),
    /// Check whether this host can run guests, and how to mend what cannot
    #[command(after_help = "Exit status: 0, or 1 if a check that `kite run` needs fails.\n\nExample:\n  \
        kite doctor --json | jq -r '.checks[] | select(.status != \"ok\") | .fix'")]
    Doctor {
        /// Print JSON instead of a line a check
        #[arg(long)]
        json: bool,
    },
    /// Print the script by which a shell completes kite's commands and options
    #[command(after_help = pages::COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: pages::Shell,
    },
    /// Print the manual page of kite or of one of its commands, for man(1)
    #[command(after_help = pages::MAN_HELP)]
    Man {
        /// The command, such as `run` or `bench exits` [default: kite itself]
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
}

/// How to build the machine and what to boot in it.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// The kernel: a bzImage, an ELF vmlinux or a Multiboot image; a folder that one was built in; or the version of an
    /// installed one, or its beginning, as in 6.12, unless a file has that name [default: $KITE_KERNEL, else the one
    /// built in the current folder, else the newest of /boot/vmlinuz-*, /usr/lib/modules/*/vmlinuz and /lib/modules/*/vmlinuz]
    #[arg(short, long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Use this initrd as it is, for a Multiboot image as its module [default: kite itself as /init, and the modules it
    /// needs]
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// Where the kernel's modules are: a folder like /lib/modules/VERSION, or the one that the kernel was built in
    /// [default: where it was built, lib/modules/VERSION beside it, or /lib/modules/VERSION]
    #[arg(long, value_name = "DIR", conflicts_with = "initrd")]
    pub modules: Option<PathBuf>,
    /// Load this module too, after those it depends on; may be given more than once
    #[arg(long = "module", value_name = "NAME", conflicts_with = "initrd", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub more_modules: Vec<String>,
    /// Add this to kite's own kernel command line
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// Use this kernel command line instead of kite's own
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// How many vCPUs, from 1 to what the host's KVM can; Linux uses the first 255
    #[arg(short, long, value_name = "N", default_value = "1", allow_negative_numbers = true, value_parser = whole::<u32>(1..))]
    pub cpus: u32,
    /// RAM, such as 512M or 4G; at least 64M [default: 512M, with a command 1G]
    #[arg(short, long, value_name = "SIZE", allow_negative_numbers = true, value_parser = ValueParser::new(memory_size))]
    pub memory: Option<u64>,
    /// Give the guest an MP table instead of ACPI
    #[arg(long)]
    pub no_acpi: bool,
    /// Add a disk, a raw image or a block device: PATH, or path=PATH[,readonly][,ephemeral][,direct][,raw][,queues=N]
    /// [,id=SERIAL]; what the guest writes to an ephemeral one is dropped at the end; what looks like qcow2 or another
    /// format is refused, unless it is said to be raw; may be given more than once
    #[arg(long = "disk", value_name = "DISK", value_parser = ValueParser::new(disk::parse), conflicts_with = "no_acpi")]
    pub disks: Vec<DiskSpec>,
    /// Add a network: user[,mac=MAC][,mtu=N][,forward=HOST:GUEST[/udp]...], through passt, without privileges; or
    /// tap=NAME[,mac=MAC][,mtu=N][,queues=N], a tap device of this host, made if need be. A command finds it set up:
    /// by passt, by a DHCP server or a router behind the tap, or by ip=ADDR/LEN[,gw=ADDR][,dns=ADDR...], in IPv4 or
    /// IPv6; ip=none leaves it to the command. May be given more than once
    #[arg(long = "net", value_name = "NETWORK", value_parser = ValueParser::new(net::parse), conflicts_with = "no_acpi")]
    pub networks: Vec<NetSpec>,
    /// Where the guest's console is [default: with kite's own initrd, serial for the kernel and virtio for its user
    /// space; with another, serial]
    #[arg(long, value_name = "DEVICE")]
    pub console: Option<ConsoleSpec>,
    /// Connect /dev/virtio-ports/NAME in the guest with a UNIX socket that kite listens on, NAME=PATH; may be given
    /// more than once
    #[arg(long = "port", value_name = "PORT", value_parser = ValueParser::new(PortSpec::parse), conflicts_with = "no_acpi")]
    pub ports: Vec<PortSpec>,
    /// What is between the guest and its virtio devices: auto is mmio for now
    #[arg(long, value_name = "TRANSPORT", default_value = "auto")]
    pub transport: TransportSpec,
    /// Leave out the balloon, which gives memory that the guest has freed back to the host
    #[arg(long)]
    pub no_balloon: bool,
    /// Leave out the entropy device
    #[arg(long)]
    pub no_rng: bool,
    /// Add a screen of WIDTHxHEIGHT pixels, with a keyboard and a pointer [default with --screen: 1024x768]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "1024x768", value_parser = ValueParser::new(ScreenSpec::parse))]
    pub screen: Option<ScreenSpec>,
    /// Serve the screen to VNC viewers and browsers, at ADDRESS:PORT of this host or at unix:PATH, a UNIX socket [default
    /// with --vnc: unix:kite-vnc.sock]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = Address::DEFAULT, requires = "screen", value_parser = ValueParser::new(Address::parse))]
    pub vnc: Option<Address>,
    /// Let in those viewers that know the password in this file's first line, of at most 8 bytes; an address that other
    /// hosts can reach needs one
    #[arg(long, value_name = "FILE", requires = "vnc")]
    pub vnc_password_file: Option<PathBuf>,
    /// Where noVNC is, which shows the screen in a browser [default: where Debian's package novnc or npm puts it]
    #[arg(long, value_name = "DIR", requires = "vnc")]
    pub novnc: Option<PathBuf>,
    /// Give the machine a name, by which `kite list` and other commands find it while it runs [default with --screen:
    /// the number of kite's process; else it has none]
    #[arg(long, value_name = "NAME", value_parser = ValueParser::new(MachineId::parse))]
    pub id: Option<MachineId>,
    /// Add what KVM's unit tests expect of a machine: isa-debug-exit, pc-testdev, fw_cfg, a PM timer, pci-testdev
    #[arg(long, conflicts_with = "subject")]
    pub test_devices: bool,
    /// What a guest's reboot does
    #[arg(long, value_name = "ACTION", default_value = "exit")]
    pub on_reboot: OnReboot,
    /// Lock kite itself in, with everything that Linux has: MODE[,no-LAYER]..., where MODE is auto, which uses what the
    /// host allows, require, which ends where that is not all, or none; and LAYER is namespaces, root, capabilities,
    /// no-new-privs, rlimits, landlock or seccomp [default: $KITE_SANDBOX, else auto]
    #[arg(long, value_name = "SANDBOX", value_parser = ValueParser::new(sandbox::parse))]
    sandbox: Option<SandboxSpec>,
    /// Go on where kite expects the guest to fail, as with a stock kernel on PVM
    #[arg(long)]
    pub force: bool,
    /// Put the machine into a cgroup of this name, made for it and removed afterwards [default with --limit: kite-PID]
    #[arg(long, value_name = "NAME", value_parser = ValueParser::new(CgroupName::parse))]
    pub cgroup: Option<CgroupName>,
    /// Limit what the machine takes of the host: cpu=CPUS, memory=SIZE, pids=N, io=DEVICE:RATE..., between commas; a RATE
    /// is rbps=SIZE, wbps=SIZE, riops=N or wiops=N; may be given more than once
    #[arg(long = "limit", value_name = "LIMITS", value_parser = ValueParser::new(limits::parse))]
    pub limits: Vec<Limits>,
    /// Read no defaults from kite.toml and ~/.config/kite/config.toml
    #[arg(long, overrides_with = "no_config")]
    no_config: bool,
    /// Print what the other options and the defaults come to, as JSON for --spec, and run nothing
    #[arg(long)]
    pub print_spec: bool,
    /// Run what this JSON file describes, or standard input if it is -; no other option goes with it, and no default,
    /// neither of files nor of the environment, is added. Paths are from the file's folder
    #[arg(long, value_name = "FILE", conflicts_with_all = spec::EXCLUDED)]
    spec: Option<PathBuf>,
    /// What to measure.
    #[command(flatten)]
    pub measure: MeasureOptions,
    /// What to run in the guest.
    #[command(flatten)]
    pub command: CommandOptions,
}

impl RunOptions {
    /// Whether a command is run.
    pub fn has_command(&self) -> bool {
        self.command.has_command()
    }
}

fn process(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|id| *id > 0).ok_or_else(|| "it is the number of a process".to_owned())
}

/// The command line. The name of a link to kite may be a command's, as engines want one path to a runtime.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<_> = env::args_os().collect();
    let is_runtime =
        arguments.first().is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(RUNTIME)));
    if is_runtime {
        arguments.insert(1, "oci".into());
    }
    arguments
}

/// Matches the command line with the grammar: with as little of it as will do, as to make all of it takes longer than all else
/// before the machine. What is wrong or asked for is said by the whole.
fn matches(arguments: &[OsString]) -> Result<ArgMatches, clap::Error> {
    if arguments.get(1).is_some_and(|name| name == RUN) {
        let run = clap::Command::new("kite").subcommand(RunOptions::augment_args(clap::Command::new(RUN)));
        if let Ok(matches) = run.try_get_matches_from(arguments) {
            return Ok(matches);
        }
    }
    Cli::command().try_get_matches_from(arguments)
}

/// Reads the command line. What is wrong with it is printed as one line; help and version as they are.
///
/// # Errors
/// The exit code, if there is nothing more to do.
pub fn parse() -> Result<Command, ExitCode> {
    let arguments = arguments();
    let refused = |error: clap::Error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader who has gone needs no help.
            match error.print() {
                Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
                    complain(&format!("cannot write to standard output: {why}"));
                    ExitCode::from(FAILED)
                }
                _ => ExitCode::from(DONE),
            }
        }
        // What there is, on standard error.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(FAILED)
        }
        _ => complained(&refusal::line(&error, &arguments)),
    };
    let matches = matches(&arguments).map_err(refused)?;
    let command = Cli::from_arg_matches(&matches).map_err(refused)?.command;
    let (Command::Run(options), Some((_, given))) = (&command, matches.subcommand()) else {
        return Ok(command);
    };
    if !options.has_command() && refusal::is_empty_command(&arguments) {
        let why = "there is no command after `--`; without `--`, `kite run` boots a kernel and nothing more";
        return Err(complained(why));
    }
    let is_empty = |word: &OsString| word.is_empty() && options.command.image.is_none();
    if options.command.command.first().is_some_and(is_empty) {
        return Err(complained("the command after `--` begins with an empty word, which names no program"));
    }
    if options.no_config || options.spec.is_some() {
        return Ok(command);
    }
    let completed = config::complete(&arguments, given).map_err(|why| complained(&why))?;
    Ok(completed.map_or(command, Command::Run))
}

fn complained(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(FAILED)
}

/// Whether kite would take these arguments, the program's name not among them.
///
/// # Errors
/// What is wrong with them, in one line.
pub fn check(arguments: &[OsString]) -> Result<(), String> {
    match parsed(arguments)? {
        // What a file says is known when it is read.
        Command::Run(options) if options.spec.is_none() => options.spec().map(drop),
        _ => Ok(()),
    }
}

/// What a `kite run` with these words behind it does, without the defaults of files.
///
/// # Errors
/// What is wrong with them, in one line.
pub fn run_spec(words: &[OsString]) -> Result<RunSpec, String> {
    match parsed(&[&[RUN.into()], words].concat())? {
        Command::Run(options) => options.spec(),
        _ => Err("this is no `kite run`".to_owned()),
    }
}

/// The command of these arguments, the program's name not among them.
fn parsed(arguments: &[OsString]) -> Result<Command, String> {
    let all = [&["kite".into()], arguments].concat();
    let command = Cli::try_parse_from(&all).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => "they only ask for help".to_owned(),
        _ => refusal::why(&error, &all),
    });
    Ok(command?.command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
