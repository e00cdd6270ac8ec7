//! What runs inside the guest: this same binary as its first process, `/init` of the initramfs.
//!
//! It mounts what every program expects, loads the kernel modules that came with it, says on the console where
//! it is and does the job that the kernel's command line names.

mod command;
mod console;
mod job;
mod modprobe;
mod modules;
mod network;
mod power;
mod report;

use std::convert::Infallible;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::termios::{OutputFlags, SetArg, tcdrain, tcgetattr, tcsetattr};

use crate::spec::wire;
use job::Job;

/// What `/init` prints for the trace, on a kernel that says little else.
pub const OWN_INIT: &str = "kite: init";

/// Whether the guest's user space is at the virtio console, given the kernel's command line: the last `console=`, or
/// `kite.console=` for kite's own `/init` alone, names it.
pub fn prefers_hvc(cmdline: &str) -> bool {
    let words = cmdline.split_ascii_whitespace();
    let mut consoles = words.filter_map(|it| it.strip_prefix("kite.").unwrap_or(it).strip_prefix("console="));
    consoles.next_back().is_some_and(|console| console.starts_with("hvc"))
}

/// Whether this process is the init of a guest that kite started. Process 1 of a container is not.
pub fn is_init() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init")
}

/// Whether the kernel of such a guest has started this process to have a module loaded.
pub fn is_modprobe() -> bool {
    modprobe::is_it(std::env::args_os())
}

/// Loads the module.
pub fn load_module() -> ExitCode {
    modprobe::run(std::env::args_os())
}

/// Runs the guest until it is off. What cannot be done without is printed and ends this process, on which the
/// kernel panics: the crash that it is.
pub fn main() -> ! {
    let Err(error) = run();
    say(format_args!("{error:#}"));
    drain();
    std::process::exit(1)
}

fn run() -> anyhow::Result<Infallible> {
    mount_all()?;
    let words = fs::read_to_string("/proc/cmdline").context("cannot read the kernel's command line")?;
    if words.split_ascii_whitespace().any(|word| word == "kite.trace") {
        // A notice, which the kernel shows although it says little else. Nobody needs it but the trace.
        let _ = fs::write("/dev/kmsg", format!("<5>{OWN_INIT}\n"));
    }
    let loaded = modules::load();
    match fs::read(wire::FILE) {
        Ok(spec) => return command::run(&spec),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("cannot read the command"),
    }
    if prefers_hvc(&words) {
        console::take();
    }
    print(&report::Report::read(loaded)?.to_string());
    match Job::parse(&words) {
        Ok(job) => job.run(),
        Err(unknown) => {
            say(unknown);
            Job::PowerOff.run()
        }
    }
}

fn mount_all() -> anyhow::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (kind, target, flags) in [
        ("proc", "/proc", plain | MsFlags::MS_NODEV),
        ("sysfs", "/sys", plain | MsFlags::MS_NODEV),
        ("devtmpfs", "/dev", plain),
    ] {
        match mount(Some(kind), target, Some(kind), flags, None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot mount {target}")),
        }
    }
    Ok(())
}

/// Prints one of our lines among the kernel's.
fn say(message: impl Display) {
    print(&format!("kite: {message}\n"));
}

/// Prints whole lines in one piece: left to the terminal, the end of each goes to the serial port by itself, with the
/// exits of a piece. A guest without a console goes on without.
fn print(lines: &str) {
    let mut out = io::stdout().lock();
    let settings = tcgetattr(&out);
    if let Ok(mut raw) = settings.clone() {
        raw.output_flags.remove(OutputFlags::OPOST);
        let _no_terminal = tcsetattr(&out, SetArg::TCSANOW, &raw);
    }
    let _no_console = out.write_all(lines.replace('\n', "\r\n").as_bytes());
    if let Ok(settings) = settings {
        let _no_terminal = tcsetattr(&out, SetArg::TCSANOW, &settings);
    }
}

/// Waits until the console has sent everything: what it holds is lost when the machine goes.
fn drain() {
    let _no_terminal = tcdrain(io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_console_of_the_command_line_is_listened_to() {
        for (cmdline, hvc) in [
            ("console=ttyS0 console=hvc0", true),
            ("console=hvc0 panic=-1", true),
            ("console=hvc0 console=ttyS0,115200", false),
            ("earlycon console=ttyS0", false),
            ("init=/x xconsole=hvc0", false),
            ("", false),
        ] {
            assert_eq!(prefers_hvc(cmdline), hvc, "{cmdline}");
        }
    }
}
