//! `kite run -- COMMAND` on stock kernels: streams, statuses, files, crashes, and what is left behind.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::{Fixture, kernel};
use crate::machine::kite_run;
use crate::setup::Kernel;

/// What a command may take.
const LIMIT: Duration = Duration::from_secs(300);

/// In the guest that is for anybody to be.
pub(super) const AS_ROOT: [&str; 2] = ["--user", "root"];

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub(super) struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// `kite run` with this kernel; the rest of the command line is the caller's.
pub(super) fn kite(fixture: &Fixture, kernel: &Kernel) -> Result<Command> {
    let mut kite = kite_run(fixture.program()?, &kernel.bz_image());
    kite.arg("--modules").arg(kernel.modules());
    Ok(kite)
}

/// Runs a command to its end, with this input.
pub(super) fn ended(mut command: Command, input: &[u8]) -> Result<Ended> {
    // In a group of its own, so that a shell that is ended takes what it has started along.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting kite")?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Whether it is read is the command's affair.
            let _ = stdin.map(|mut stdin| stdin.write_all(input));
        });
        let stdout = scope.spawn(|| all(stdout));
        let stderr = scope.spawn(|| all(stderr));
        let code = wait(&mut child).inspect_err(|_| {
            // Whoever holds its streams would be waited for.
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        })?;
        let stdout = stdout.join().unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned();
        Ok(Ended { code, stdout, stderr })
    })
}

fn all(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What came before a failure is compared.
    let _ = from.map(|mut from| from.read_to_end(&mut bytes));
    bytes
}

/// The exit code; none for a signal.
pub(super) fn wait(child: &mut Child) -> Result<Option<i32>> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().context("waiting for kite")? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().context("ending kite")?;
    let status = child.wait().context("waiting for kite")?;
    bail!("no end after {} s (then signal {:?})", LIMIT.as_secs(), status.signal())
}

/// One command and what is to come of it.
struct Case {
    options: &'static [&'static str],
    command: &'static [&'static str],
    input: &'static str,
    code: i32,
    stdout: &'static str,
    /// What standard error is to have; it has nothing else if this is nothing.
    stderr: &'static str,
}

const NOTHING: Case = Case { options: &[], command: &[], input: "", code: 0, stdout: "", stderr: "" };

fn check(fixture: &Fixture, kernel: &Kernel, case: &Case) -> Result<()> {
    let mut command = kite(fixture, kernel)?;
    command.args(case.options).arg("--").args(case.command);
    let ended = ended(command, case.input.as_bytes())?;
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let quiet = case.stderr.is_empty() && !ended.stderr.is_empty();
    ensure!(
        ended.code == Some(case.code)
            && stdout == case.stdout
            && ended.stderr.contains(case.stderr)
            && !quiet,
        "{:?} {:?}: {ended:#?}",
        case.options,
        case.command
    );
    Ok(())
}

/// What a command finds on a PCI bus: the entropy device and the balloon, the folders and the console, each by messages
/// alone.
const LOOK: &str = "
cd /sys/bus/pci/devices
echo $(cat */vendor | sort | uniq -c)
echo $(for it in */virtio*; do readlink $it/driver; done | sed 's,.*/,,; s/^virtio_//' | sort)
ls -d */msi_irqs | wc -l
grep -c PCI-MSI /proc/interrupts >/dev/null && head -c 16 /dev/hwrng | wc -c
";

/// A command on a PCI bus.
pub fn on_pci(fixture: &Fixture, name: &str) -> Result<String> {
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--transport", "pci", "--cpus", "2", "--user", "root", "--", "sh", "-c", LOOK]);
    let ended = ended(command, b"")?;
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let expected = "5 0x1af4 1 0x1b36\nballoon console rng virtiofs virtiofs\n5\n16\n";
    ensure!(ended.code == Some(0) && stdout == expected && ended.stderr.is_empty(), "{ended:#?}\n{stdout}");
    Ok(String::new())
}

/// Streams and statuses.
pub fn streams(fixture: &Fixture, name: &str) -> Result<String> {
    let cases = [
        Case { command: &["true"], ..NOTHING },
        Case {
            command: &["sh", "-c", "echo out; echo err >&2; exit 7"],
            code: 7,
            stdout: "out\n",
            stderr: "err\n",
            ..NOTHING
        },
        Case { command: &["cat"], input: "in\0put", stdout: "in\0put", ..NOTHING },
        Case { command: &["sh", "-c", "kill -TERM $$"], code: 143, ..NOTHING },
        Case {
            command: &["no-such-command"],
            code: 127,
            stderr: "kite: no-such-command: not found in the guest\n",
            ..NOTHING
        },
        Case {
            command: &["/etc/passwd"],
            code: 126,
            stderr: "/etc/passwd: cannot be executed in the guest",
            ..NOTHING
        },
        Case { command: &["sh", "-c", "sleep 1000 & echo left"], stdout: "left\n", ..NOTHING },
        Case {
            command: &["sh", "-c", "head -c 1 >/dev/null; exec <&-; sleep 1; echo on"],
            input: "much",
            stdout: "on\n",
            ..NOTHING
        },
        Case { command: &["sh", "-c", "test -t 0 || test -t 1 || echo none"], stdout: "none\n", ..NOTHING },
        Case {
            options: &["--timeout", "6s"],
            command: &["sleep", "1000"],
            code: 124,
            stderr: "the command did not end within 6s",
            ..NOTHING
        },
        Case {
            options: &AS_ROOT,
            command: &["poweroff", "-ff"],
            code: 255,
            stderr: "before the command had ended",
            ..NOTHING
        },
    ];
    let kernel = kernel(name)?;
    cases.iter().try_for_each(|case| check(fixture, &kernel, case))?;
    gone_reader(fixture, &kernel)?;
    closed_streams(fixture, &kernel)?;
    Ok(String::new())
}

/// Whoever reads the output goes: the command is told, as it would be here.
fn gone_reader(fixture: &Fixture, kernel: &Kernel) -> Result<()> {
    let mut command = kite(fixture, kernel)?;
    command.args(["--", "yes"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting kite")?;
    let mut first = [0; 2];
    child.stdout.take().context("an output")?.read_exact(&mut first).context("reading from yes")?;
    ensure!(first == *b"y\n" && wait(&mut child)? == Some(128 + 13), "yes was not ended by SIGPIPE");
    Ok(())
}

/// kite without any stream at all.
fn closed_streams(fixture: &Fixture, kernel: &Kernel) -> Result<()> {
    let kite = kite(fixture, kernel)?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" <&- >&- 2>&-", "sh"]).arg(kite.get_program()).args(kite.get_args());
    shell.args(["--", "sh", "-c", "cat; echo lost; exit 9"]);
    let ended = ended(shell, b"")?;
    ensure!(ended.code == Some(9), "with closed streams: {ended:?}");
    Ok(())
}

/// Bytes that no pattern repeats soon.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            part.copy_from_slice(&self.0.to_le_bytes()[..part.len()]);
        }
    }
}

/// So many MiB through the guest and back.
pub fn bytes(fixture: &Fixture, name: &str, mib: u64) -> Result<String> {
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    const CHUNK: usize = 1 << 16;
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting kite")?;
    let (mut stdin, mut stdout) =
        (child.stdin.take().context("an input")?, child.stdout.take().context("an output")?);
    let start = Instant::now();
    let count = mib << 20 >> CHUNK.trailing_zeros();
    let (progress, watched) = mpsc::channel::<()>();
    let pid = Pid::from_raw(child.id() as i32);
    std::thread::scope(|scope| -> Result<()> {
        // It is a standstill that ends the test: how long the whole takes is the machine's affair.
        scope.spawn(move || {
            let mut heard = Ok(());
            while heard.is_ok() {
                heard = watched.recv_timeout(LIMIT);
            }
            if heard == Err(RecvTimeoutError::Timeout) {
                // It is waited for below, so that the number is nobody else's.
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        scope.spawn(move || {
            let (mut noise, mut chunk) = (Noise(SEED), vec![0; CHUNK]);
            for _ in 0..count {
                noise.fill(&mut chunk);
                if stdin.write_all(&chunk).is_err() {
                    return; // The reader finds out.
                }
            }
        });
        let (mut noise, mut chunk, mut got) = (Noise(SEED), vec![0; CHUNK], vec![0; CHUNK]);
        for index in 0..count {
            noise.fill(&mut chunk);
            stdout.read_exact(&mut got).with_context(|| format!("reading chunk {index} of {count}"))?;
            ensure!(got == chunk, "chunk {index} of {count} is another");
            // The watch outlives this loop.
            let _ = progress.send(());
        }
        ensure!(stdout.read(&mut got).context("reading the end")? == 0, "more came than was sent");
        drop(progress);
        Ok(())
    })?;
    ensure!(wait(&mut child)? == Some(0), "cat failed");
    Ok(format!("{mib} MiB, {:.0} MiB/s", mib as f64 / start.elapsed().as_secs_f64()))
}

/// Whose files the guest sees, and which of them it changes.
pub fn files(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let folder = fixture.file("files");
    for sub in ["here", "beside", "root/bin"] {
        fs::create_dir_all(folder.join(sub)).context("making folders")?;
    }
    fs::write(folder.join("here/file"), "host\n").context("writing a file")?;
    let run = |options: &[&str], script: &str, expected: &str| -> Result<()> {
        let mut command = kite(fixture, &kernel)?;
        command.current_dir(folder.join("here")).args(options).args(["--", "sh", "-c", script]);
        let ended = ended(command, b"")?;
        let stdout = String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.code == Some(0) && stdout == expected, "{options:?} {script}: {ended:#?}");
        Ok(())
    };
    let here = folder.join("here");
    run(&[], "pwd; cat file; echo guest >file; cat file", &format!("{}\nhost\nguest\n", here.display()))?;
    run(&AS_ROOT, "rm file; mkdir -p new/folder; touch /new; ls /new", "/new\n")?;
    let listing = fs::read_dir(&here).context("looking at the folder")?.count();
    let content = fs::read_to_string(here.join("file")).context("reading the file again")?;
    ensure!(listing == 1 && content == "host\n" && !Path::new("/new").exists(), "the host has changed");
    run(&["--share", "../beside"], "cd ../beside; touch x 2>/dev/null || echo refused", "refused\n")?;
    run(&["--share", "../beside:/mnt:rw"], "echo kept >/mnt/x; mkdir /mnt/d; mv /mnt/x /mnt/d/y", "")?;
    let kept = folder.join("beside/d/y");
    let text = fs::read_to_string(&kept).context("reading what the guest wrote")?;
    ensure!(text == "kept\n", "the share has {text:?}");
    let (user, owner) =
        (fixture.user(), fs::metadata(&kept).context("looking at what the guest wrote")?.uid());
    ensure!(owner == user, "what user {user} wrote is user {owner}'s");
    run(&[], "id -u; test -r /etc/hostname && echo root", &format!("{user}\nroot\n"))?;
    run(&["--env", "A=b c", "--env", "HOME"], "echo $A; test \"$HOME\" = ~ && echo home", "b c\nhome\n")?;
    run(
        &["--clear-env", "--env", "A=b"],
        "env | grep -v ^TERM= | cut -d= -f1 | sort | tr '\\n' ' '",
        "A PATH PWD ",
    )?;
    run(&["--cwd", "/usr"], "pwd", "/usr\n")?;
    run(
        &["--user", "nobody"],
        "id -u; id -un; touch file || echo no; test -w /tmp && echo tmp",
        "65534\nnobody\nno\ntmp\n",
    )
    .or_else(|_| {
        run(
            &["--user", "nobody"],
            "id -u; id -un; touch file 2>/dev/null || echo no; test -w /tmp && echo tmp",
            "65534\nnobody\nno\ntmp\n",
        )
    })?;
    run(&["--user", "1234:42"], "id -u; id -g; id -G", "1234\n42\n42\n")?;
    run(&AS_ROOT, WHAT_IS_THERE, "")?;
    let disk = fixture.debian.disk().display().to_string();
    let disk = format!("path={},ephemeral", disk.replace(',', ",,"));
    let from_disk = [&AS_ROOT[..], &["--root", "disk", "--disk", &disk]].concat();
    run(&from_disk, "pwd; cat /etc/hostname; echo x >/etc/hostname", "/\nkite\n")
        .or_else(|_| run(&from_disk, "pwd; test -s /etc/hostname && echo x >/etc/hostname", "/\n"))?;
    Ok(String::new())
}

/// What programs expect to find.
pub(super) const WHAT_IS_THERE: &str = "set -e
for kind in proc:/proc sysfs:/sys devtmpfs:/dev devpts:/dev/pts tmpfs:/run tmpfs:/dev/shm cgroup2:/sys/fs/cgroup; do
    grep -q \" ${kind#*:} ${kind%%:*} \" /proc/mounts || { echo \"no $kind\"; exit 1; }
done
test \"$(cat /sys/class/net/lo/flags)\" = 0x9
test \"$(stat -c '%a %m' /tmp)\" = '1777 /'
echo x >/tmp/x; echo x >/run/x; echo x >/dev/shm/x; echo x >/dev/null
echo to >/dev/stderr 2>/dev/null; echo -n >/dev/stdout
test \"$(ls /proc/self/fd | wc -l)\" = 4
";

/// A kernel that crashes tells why, also where the command has closed its standard error before, a pipe.
pub fn crash(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let panic = Case {
        options: &AS_ROOT,
        command: &["sh", "-c", "exec 2>&1; sleep 1; echo c >/proc/sysrq-trigger"],
        code: 255,
        stderr: "Kernel panic - not syncing: sysrq triggered crash",
        ..NOTHING
    };
    check(fixture, &kernel, &panic)?;
    let alone = fixture.file("vmlinuz");
    fs::copy(kernel.bz_image(), &alone).context("copying the kernel")?;
    // A host that has this very kernel installed has its modules, too.
    if !Path::new("/lib/modules").join(&kernel.release).exists() {
        let mut command = kite_run(fixture.program()?, &alone);
        command.args(["--", "true"]);
        let ended = ended(command, b"")?;
        let cure = format!("there is no folder of modules for kernel {}", kernel.release);
        let last = ended.stderr.trim_end().rsplit('\n').next().unwrap_or_default();
        ensure!(ended.code == Some(255) && last.contains(&cure), "without modules: {ended:#?}");
    }
    let log = fixture.file("kernel-log");
    let mut command = kite(fixture, &kernel)?;
    command.arg("--kernel-log").arg(&log).args(AS_ROOT);
    command.args(["--", "sh", "-c", "echo marked >/dev/kmsg"]);
    let ended = ended(command, b"")?;
    let text = fs::read_to_string(&log).context("reading the kernel's messages")?;
    ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "with a log: {ended:#?}");
    ensure!(text.contains("Linux version") && text.contains("marked"), "the log lacks messages: {text}");
    Ok(String::new())
}

/// What [`left`] counts.
pub(super) const LEFT: &str = "processes, mounts, and files in $TMPDIR and /dev/shm";

/// What there is on this machine that a run could leave behind.
pub(super) fn left(temporary: &Path) -> Result<[usize; 4]> {
    let count = |path: &Path| {
        Ok::<_, anyhow::Error>(fs::read_dir(path).with_context(|| path.display().to_string())?.count())
    };
    let mounts = fs::read_to_string("/proc/mounts").context("reading the mounts")?.lines().count();
    let processes = fs::read_dir("/proc").context("reading the processes")?;
    let number = |it: &fs::DirEntry| it.file_name().to_string_lossy().parse::<u32>().is_ok();
    // Threads of the kernel's own come and go; they have no memory.
    let alive = |it: &fs::DirEntry| fs::read(it.path().join("cmdline")).is_ok_and(|line| !line.is_empty());
    let processes = processes.filter_map(Result::ok).filter(number).filter(alive).count();
    Ok([processes, mounts, count(temporary)?, count(Path::new("/dev/shm")).unwrap_or(0)])
}

/// So many runs, one after the other, and nothing of them is left.
pub fn many(fixture: &Fixture, name: &str, times: u32) -> Result<String> {
    let kernel = kernel(name)?;
    // Where nobody else leaves anything.
    let temporary = fixture.file("many");
    fs::create_dir_all(&temporary).context("making a folder")?;
    let before = left(&temporary)?;
    let start = Instant::now();
    for time in 0..times {
        let mut command = kite(fixture, &kernel)?;
        command.env("TMPDIR", &temporary).args(["--", "true"]);
        let ended = ended(command, b"").with_context(|| format!("run {time}"))?;
        let silent = ended.stdout.is_empty() && ended.stderr.is_empty();
        ensure!(ended.code == Some(0) && silent, "run {time}: {ended:#?}");
    }
    let each = start.elapsed().as_secs_f64() / f64::from(times);
    let after = left(&temporary)?;
    ensure!(before == after, "{LEFT}: {before:?} before, {after:?} after");
    Ok(format!("{times} times, {each:.2} s each"))
}
