//! The lab: a machine with a hardware-style KVM, emulated. QEMU's TCG emulates an AMD processor with SVM; a
//! stock Debian kernel runs on it, with this machine's root folder read-only under a layer of memory and runs
//! one command as root.
//!
//! The command's name, arguments, environment and folder, and its exit status, pass through a folder of the
//! run's own that both sides see; its output passes through two consoles.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::guest;
use crate::host;
use crate::qemu;
use crate::setup::{Kernel, Setup};
use crate::step::output;

/// What QEMU says when TCG trips over its own lock, which it rarely does in nested runs.
const TCG_ABORT: &str = "tcg_handle_interrupt: assertion failed: (bql_locked())";
/// How often the machine is typed to, which nobody there reads. While it runs a nested machine, TCG now and then loses an
/// interrupt, as the processor's thread and QEMU's main loop change at once what is pending; where that was the timer's,
/// the machine stands still until the next one.
const BEAT: Duration = Duration::from_secs(1);
/// What is typed: a terminal that has yet to be set up doesn't echo it.
const XON: &[u8] = b"\x11";
/// How many lines of a dead machine's console are shown.
const TAIL: usize = 20;

/// A machine to run a command on.
#[derive(Clone, Debug)]
pub struct Lab {
    kernel: Kernel,
    /// RAM in MiB.
    pub memory: u32,
    /// Processors. With more than one, TCG now and then ruins a nested guest that has several itself, whatever VMM runs
    /// it: the guest stands still, or crashes.
    pub cpus: u32,
    /// Time is counted in instructions instead of passing: one a nanosecond.
    pub icount: bool,
    /// This machine's folder that is the lab's `/out`.
    pub out: Option<PathBuf>,
    /// A run that takes longer is ended.
    pub timeout: Duration,
    /// And so is one whose command has written nothing for so long.
    pub silence: Duration,
    /// More for the kernel's command line.
    pub append: String,
}

/// Where a command's output goes as it comes.
pub type Sink<'a> = &'a mut (dyn Write + Send);

impl Lab {
    /// A machine of one processor and 6 GiB, with QEMU and its kernel made ready.
    ///
    /// # Errors
    /// Set-up fails.
    pub fn new(setup: &mut Setup) -> Result<Self> {
        setup.qemu()?;
        let kernel = setup.lab_kernel()?;
        let timeout = Duration::from_secs(600);
        let (silence, append) = (Duration::MAX, String::new());
        Ok(Self { kernel, memory: 6144, cpus: 1, icount: false, out: None, timeout, silence, append })
    }

    /// Runs a command on this host where its KVM has hardware behind it, or else in the lab; answers its standard output.
    ///
    /// # Errors
    /// Set-up fails, or the command.
    pub fn captured(setup: &mut Setup, argv: &[OsString]) -> Result<String> {
        if host::hardware_kvm().is_ok() {
            return output(Command::new(&argv[0]).args(&argv[1..]));
        }
        let mut stdout = Vec::new();
        let status = Self::new(setup)?.run(argv, &mut stdout, &mut io::stderr())?;
        let said = String::from_utf8_lossy(&stdout).into_owned();
        ensure!(status == 0, "the lab ended with {status}: {said}");
        Ok(said)
    }

    /// Runs a command in this process's folder and environment; answers its exit status, 128 and more for a
    /// signal. The name `/proc/self/exe` is this program.
    ///
    /// # Errors
    /// The machine does not start, takes too long, or ends without the command's status.
    pub fn run(&self, argv: &[OsString], stdout: Sink<'_>, stderr: Sink<'_>) -> Result<u8> {
        let folder = host::target("lab")?;
        let folder = TempDir::with_prefix_in("run-", &folder).context("making the run's folder")?;
        prepare(folder.path(), argv)?;
        guest::lab::write_initrd(&self.kernel, &folder.path().join("initrd"))?;
        let mut ended = self.emulate(folder.path(), stdout, stderr)?;
        if ended.is_tcg_abort() {
            eprintln!("xtask: QEMU's TCG aborted ({TCG_ABORT}): running the lab once more");
            ended = self.emulate(folder.path(), stdout, stderr)?;
        }
        let status = fs::read_to_string(folder.path().join("status")).unwrap_or_default();
        if let Ok(status) = status.trim().parse() {
            return Ok(status);
        }
        let folder = folder.keep();
        // The console is what is looked at; the rest can be made again.
        let _ = fs::remove_file(folder.join("initrd"));
        let console = folder.join("console");
        show_tail(&console);
        match ended.status {
            None if ended.unread => bail!("nobody reads what the lab's command writes"),
            None => bail!("the lab took too long or stood still; its console: {}", console.display()),
            Some(status) => {
                bail!("the lab gave no exit status (QEMU: {status}); its console: {}", console.display())
            }
        }
    }

    /// Runs the machine until it powers itself off.
    fn emulate(&self, folder: &Path, stdout: Sink<'_>, stderr: Sink<'_>) -> Result<Ended> {
        let mut qemu = self
            .qemu(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", qemu::PROGRAM))?;
        let out = qemu.stdout.take().context("QEMU has an output")?;
        let err = qemu.stderr.take().context("QEMU has an error output")?;
        let heard = Heard { unread: AtomicBool::new(false), last: Mutex::new(Instant::now()) };
        std::thread::scope(|scope| {
            scope.spawn(|| copy(out, stdout, &heard));
            let said = scope.spawn(|| copy(err, stderr, &heard));
            let status = self.wait(&mut qemu, &heard)?;
            let said = said.join().unwrap_or_default();
            Ok(Ended { status, said, unread: heard.unread.load(Ordering::Relaxed) })
        })
    }

    /// Waits for QEMU to end; kills it at the time limit, when it is silent, or when nobody takes its output.
    fn wait(&self, qemu: &mut Child, heard: &Heard) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        let mut console = qemu.stdin.take();
        let mut next = BEAT;
        loop {
            if start.elapsed() >= next && !self.icount {
                next += BEAT;
                // A machine that has ended takes none.
                let _ = console.as_mut().map(|console| console.write_all(XON));
            }
            if let Some(status) = qemu.try_wait().context("waiting for QEMU")? {
                return Ok(Some(status));
            }
            let late = start.elapsed() >= self.timeout || heard.last().elapsed() >= self.silence;
            if late || heard.unread.load(Ordering::Relaxed) {
                qemu.kill().context("ending QEMU")?;
                qemu.wait().context("waiting for QEMU")?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn qemu(&self, folder: &Path) -> Command {
        let share = |path: &Path, tag: &str, more: &str| {
            let path = path.display().to_string().replace(',', ",,");
            format!("local,path={path},mount_tag={tag},security_model=none{more}")
        };
        // setpriv takes QEMU down with this process, whatever ends it.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", qemu::PROGRAM]).args(qemu::NOTHING_ELSE);
        qemu.args(["-M", "q35", "-cpu", "max"]);
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string()]);
        let thread = if self.cpus == 1 || self.icount { "single" } else { "multi" };
        qemu.args(["-accel", &format!("tcg,thread={thread},tb-size=512")]);
        if self.icount {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        qemu.arg("-serial").arg(format!("file:{}", folder.join("console").display()));
        qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        qemu.args(["-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out"]);
        qemu.args([
            "-chardev",
            "file,id=err,path=/dev/stderr,append=on",
            "-device",
            "virtconsole,chardev=err",
        ]);
        qemu.arg("-kernel").arg(self.kernel.elf()).arg("-initrd").arg(folder.join("initrd"));
        qemu.args(["-virtfs", &share(Path::new("/"), "host", ",readonly=on,multidevs=remap")]);
        qemu.args(["-virtfs", &share(folder, "lab", "")]);
        if let Some(out) = &self.out {
            qemu.args(["-virtfs", &share(out, "out", "")]);
        }
        qemu.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet mitigations=off {}", self.append));
        qemu
    }
}

/// What has become of a run's output.
struct Heard {
    /// Somebody did not take it.
    unread: AtomicBool,
    /// When the last of it came.
    last: Mutex<Instant>,
}

impl Heard {
    fn last(&self) -> MutexGuard<'_, Instant> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a run ended.
struct Ended {
    /// QEMU's exit status; `None` if it had to be killed.
    status: Option<ExitStatus>,
    /// The end of what came from its error output.
    said: String,
    /// Its output was no longer taken.
    unread: bool,
}

impl Ended {
    fn is_tcg_abort(&self) -> bool {
        self.status.is_some_and(|status| status.signal().is_some()) && self.said.contains(TCG_ABORT)
    }
}

/// Writes down what is to be run.
fn prepare(folder: &Path, argv: &[OsString]) -> Result<()> {
    let mut words = Vec::new();
    for word in argv {
        words.extend([word.as_bytes(), b"\0"].concat());
    }
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        environment.extend([name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
    }
    let cwd = std::env::current_dir().context("asking for the current folder")?;
    let files = [("argv", words), ("environ", environment), ("cwd", cwd.as_os_str().as_bytes().to_vec())];
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).with_context(|| format!("writing the run's {name}"))?;
    }
    Ok(())
}

/// Passes on what comes until the end, or says that nobody takes it. Answers the last of it.
fn copy(mut from: impl Read, to: Sink<'_>, heard: &Heard) -> String {
    let mut buffer = [0; 1 << 16];
    let mut last = Vec::new();
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        *heard.last() = Instant::now();
        if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
            heard.unread.store(true, Ordering::Relaxed);
        }
        last.extend_from_slice(bytes);
        last.drain(..last.len().saturating_sub(4096));
    }
    String::from_utf8_lossy(&last).into_owned()
}

fn show_tail(console: &Path) {
    let mut text = Vec::new();
    if File::open(console).and_then(|mut file| file.read_to_end(&mut text)).is_err() {
        return;
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        eprintln!("lab console: {line}");
    }
}
