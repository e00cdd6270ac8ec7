//! A Debian guest, used from its console as a person would: booted to the login prompt, logged in, asked for what it
//! has found, powered off.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host;
use crate::machine::{Access, Machine, Net, Vmm};
use crate::running::Running;
use crate::setup::{Debian, PASSWORD};
use crate::step::output;

/// What a boot may take, and what an answer may: an emulated guest is slow.
pub const BOOT: Duration = Duration::from_secs(400);
const ANSWER: Duration = Duration::from_secs(120);
/// What a copy reads at once, in bytes.
const CHUNK: usize = 1 << 20;

/// What was seen of a guest.
#[derive(Clone, Debug)]
pub struct Visit {
    /// From the start to the login prompt.
    pub prompt: Duration,
    /// From there to the shell's prompt.
    pub login: Duration,
    /// From the word to the end.
    pub off: Duration,
    /// The addresses of its network interfaces.
    pub addresses: String,
    /// How many processors it has.
    pub cpus: String,
    /// The units of its that failed.
    pub failed: String,
}

impl fmt::Display for Visit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times =
            [("login prompt after", self.prompt), ("logged in after", self.login), ("off after", self.off)];
        for (what, time) in times {
            writeln!(out, "{what:<20}{:>7.1} s", time.as_secs_f64())?;
        }
        let or_none = |text: &'_ str| if text.is_empty() { "none" } else { text }.to_owned();
        writeln!(out, "{:<20}{}", "processors", self.cpus)?;
        writeln!(out, "{:<20}{}", "network", or_none(&self.addresses))?;
        writeln!(out, "{:<20}{}", "failed units", or_none(&self.failed))
    }
}

/// The machine that boots the disk at `disk`.
pub fn machine(debian: &Debian, disk: &Path, access: Access, cpus: u32, nets: Vec<Net>) -> Machine {
    let new = Machine::new(&debian.kernel(), &debian.initrd());
    let disks = vec![(disk.to_owned(), access)];
    Machine { cpus, memory: 768, disks, nets, append: "root=/dev/vda rw quiet".into(), ..new }
}

/// Boots the machine, logs in, looks around and powers off; with `shown`, its console is.
///
/// # Errors
/// It does not get there, or does not end well; what it said is in the message.
pub fn visit(machine: &Machine, vmm: &Vmm, shown: bool) -> Result<Visit> {
    let mut running = Running::start(machine.command(vmm), shown)?;
    look(&mut running, !machine.nets.is_empty()).map_err(|error| {
        let said = if shown { String::new() } else { format!("; it said:\n{}", running.said()) };
        error.context(format!("the Debian guest failed{said}"))
    })
}

fn look(running: &mut Running, has_network: bool) -> Result<Visit> {
    let start = Instant::now();
    running.wait_for("login: ", BOOT)?;
    let prompt = start.elapsed();
    let start = Instant::now();
    running.type_in("root\n")?;
    running.wait_for("Password: ", ANSWER)?;
    running.type_in(&format!("{PASSWORD}\n"))?;
    running.wait_for("# ", ANSWER)?;
    let login = start.elapsed();
    let cpus = ask(running, "nproc")?;
    // An address may take a moment longer than the prompt.
    let wait = if has_network {
        "for i in $(seq 60); do ip -br -4 a | grep -q '^e.*UP' && break; sleep 1; done; "
    } else {
        ""
    };
    let addresses = ask(running, &format!("{wait}ip -br -4 a | grep -v ^lo | tr -s ' ' | tr '\\n' ' '"))?;
    let failed = ask(running, "systemctl --failed --plain --no-legend | cut -d ' ' -f 1 | tr '\\n' ' '")?;
    let start = Instant::now();
    running.type_in("poweroff\n")?;
    let status = running.end(BOOT)?;
    if !status.success() {
        bail!("it did not power off but ended with {status}");
    }
    Ok(Visit { prompt, login, off: start.elapsed(), addresses, cpus, failed })
}

/// What a shell command prints, on one line.
fn ask(running: &mut Running, command: &str) -> Result<String> {
    // What is typed comes back: its quotes tell it from the answer.
    running.type_in(&format!("echo \"answer\"'='\"$({command})\"'='\n"))?;
    running.wait_for("answer=", ANSWER)?;
    Ok(running.wait_for("=", ANSWER)?.trim().to_owned())
}

/// Copies an image, holes left out.
///
/// # Errors
/// One of the files cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let mut file = File::create(to).with_context(|| format!("making {}", to.display()))?;
    let size = source.metadata().context("looking at an image")?.len();
    let (mut chunk, zeros) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let count = source.read(&mut chunk).with_context(|| format!("reading {}", from.display()))?;
        if count == 0 {
            break;
        }
        let done = match chunk[..count] == zeros[..count] {
            true => file.seek(SeekFrom::Current(count as i64)).map(drop),
            false => file.write_all(&chunk[..count]),
        };
        done.with_context(|| format!("writing {}", to.display()))?;
    }
    file.set_len(size).context("setting an image's size")
}

/// Checks the file system in an image that no machine uses, without a change.
///
/// # Errors
/// It is not clean.
pub fn check(disk: &Path) -> Result<()> {
    let program = host::program("e2fsck").context("there is no e2fsck")?;
    output(Command::new(program).arg("-fn").arg(disk)).map(drop)
}
