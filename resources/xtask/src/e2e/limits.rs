//! Limits that bite: a machine gets no more of the host than it may, and what the host ends is that machine alone.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use boot::testing::{Entry, kernel as tiny_kernel};

use super::command::{ended, kite};
use super::{Fixture, NotHere, kernel};
use crate::machine::{kite_run, sandbox};
use crate::running::Running;
use crate::setup::LAB;
use crate::step::output;

/// Says `!`, and computes for ever: `mov dx, 0x3f8; mov al, '!'; out dx, al; jmp $`.
const SPIN: &[u8] = b"\x66\xba\xf8\x03\xb0!\xee\xeb\xfe";
/// Powers off: `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`.
const POWER_OFF: &[u8] = b"\x66\xba\x00\x06\xb0\x34\xee\xf4";
/// The length of a disk that is read.
const DISK: usize = 6 << 20;
/// How long CPU time is counted.
const COUNTED: Duration = Duration::from_secs(5);
/// What a tiny guest may take to start and end.
const LIMIT: Duration = Duration::from_secs(120);
/// Clock ticks a second, in which the kernel counts for programs (proc(5)).
const TICKS: f64 = 100.0;
/// Who may do nothing.
const NOBODY: u32 = 65534;
const CGROUPS: &str = "/sys/fs/cgroup";

/// `kite run` with a tiny guest.
fn tiny(fixture: &Fixture, code: &[u8], options: &[&str]) -> Result<Command> {
    let program = fixture.program()?;
    let path = fixture.file(if code == SPIN { "spin" } else { "power-off" });
    fs::write(&path, tiny_kernel(code, Entry::Pvh)).context("writing a guest")?;
    let mut command = kite_run(program, &path);
    command.args(["--force", "--memory", "64M"]).args(options);
    Ok(command)
}

/// Whether this user may make groups here.
pub(super) fn check_groups(fixture: &Fixture) -> Result<()> {
    if fixture.groups.get().is_none() {
        let ended = ended(tiny(fixture, POWER_OFF, &["--limit", "cpu=1,memory=1G,pids=64"])?, b"")?;
        let said = ended.stderr.trim().to_owned();
        ensure!(ended.code == Some(0) || said.contains("group"), "{ended:?}");
        let _ = fixture.groups.set(if ended.code == Some(0) { Ok(()) } else { Err(said) });
    }
    match fixture.groups.get() {
        Some(Err(said)) => Err(NotHere(said.clone()).into()),
        _ => Ok(()),
    }
}

/// The share of a CPU that a machine takes which computes for ever.
fn share(fixture: &Fixture, options: &[&str]) -> Result<f64> {
    let mut running = Running::start(tiny(fixture, SPIN, options)?, fixture.shown)?;
    running.wait_for("!", LIMIT)?;
    let family = family(running.id());
    let used = || -> f64 { family.iter().filter_map(|pid| ticks(*pid)).sum::<u64>() as f64 / TICKS };
    let (start, before) = (Instant::now(), used());
    std::thread::sleep(COUNTED);
    let share = (used() - before) / start.elapsed().as_secs_f64();
    running.kill()?;
    Ok(share)
}

/// A process and those that it has started.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let descendants: Vec<u32> = children.flat_map(family).collect();
    [vec![pid], descendants].concat()
}

/// The CPU time of a process (proc(5)).
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// A machine gets as much of a CPU as it may; and all of it without a limit.
pub fn cpu(fixture: &Fixture) -> Result<String> {
    check_groups(fixture)?;
    let limited = share(fixture, &["--limit", "cpu=0.3"])?;
    let free = share(fixture, &[])?;
    // On a machine that is busy with other things both get less.
    ensure!(limited <= 0.45, "{limited:.2} of a CPU with a limit of 0.3");
    ensure!(free >= limited * 1.5, "{free:.2} of a CPU without a limit, and {limited:.2} with one of 0.3");
    Ok(format!("{limited:.2} of a CPU with a limit of 0.3, {free:.2} without"))
}

/// A machine whose guest takes too much memory is killed, and another goes on.
pub fn memory(fixture: &Fixture, name: &str) -> Result<String> {
    check_groups(fixture)?;
    let mut other = Running::start(tiny(fixture, SPIN, &[])?, fixture.shown)?;
    other.wait_for("!", LIMIT)?;
    let junit = fixture.file("limits.xml");
    let mut command = kite(fixture, &kernel(name)?)?;
    command
        .args(["--memory", "700M", "--cgroup", "kite-e2e", "--limit", "memory=300M", "--junit"])
        .arg(&junit);
    command.args(["--", "sh", "-c", "echo began; head -c 500M /dev/zero >/tmp/much; echo lived"]);
    let killed = ended(command, b"")?;
    let line =
        "kite: the host killed the machine: it took more than the 300 MiB that --limit memory allows\n";
    ensure!(killed.code == Some(123) && killed.stderr == line && killed.stdout == b"began\n", "{killed:?}");
    let results = fs::read_to_string(&junit).context("reading the results")?;
    ensure!(results.contains("<error") && results.contains("the host killed the machine"), "{results}");
    ensure!(left("kite-e2e").is_empty(), "the group is left: {:?}", left("kite-e2e"));
    ensure!(family(other.id()).iter().all(|pid| ticks(*pid).is_some()), "the other machine has ended, too");
    other.kill()?;
    Ok(String::new())
}

/// Reads each disk, and says how long that took; closes its outputs, and ends when something is typed.
const READ: &str = "for disk in vda vdb; do
    start=$(date +%s%N); dd if=/dev/$disk of=/dev/null bs=256k iflag=direct 2>/dev/null || exit 1
    echo $(($(date +%s%N) - start))
done
exec 1>&- 2>&-; read -r line; exit 7";

/// A guest reads no more of a disk a second than it may, and of another all it can. Whoever reads what a command prints
/// sees the end of it when the command closes it, though another process of kite's stays.
pub fn io_and_streams(fixture: &Fixture, name: &str) -> Result<String> {
    check_groups(fixture)?;
    let disks = [LoopDevice::new(&fixture.file("limited.img"))?, LoopDevice::new(&fixture.file("free.img"))?];
    // What was written may not be read from memory.
    fs::write("/proc/sys/vm/drop_caches", "3").context("forgetting what was written")?;
    let mut command = kite(fixture, &kernel(name)?)?;
    for disk in &disks {
        command.arg("--disk").arg(format!("path={},readonly", disk.0));
    }
    command.args(["--limit", "pids=100", "--limit", &format!("io={}:rbps=1M", disks[0].0)]);
    command.args(["--", "sh", "-c", READ]);
    let said = until_closed(command)?;
    let mut rates = said.lines().map(|line| {
        let nanoseconds: f64 = line.trim().parse().with_context(|| format!("the guest says {said:?}"))?;
        Ok(DISK as f64 / f64::from(1 << 20) / (nanoseconds / 1e9))
    });
    let (Some(limited), Some(free), None) = (rates.next(), rates.next(), rates.next()) else {
        bail!("the guest says {said:?}")
    };
    let (limited, free): (Result<f64>, Result<f64>) = (limited, free);
    let (limited, free) = (limited?, free?);
    ensure!(limited <= 1.5, "{limited:.1} MiB a second with a limit of 1");
    ensure!(free >= limited * 2.0, "{free:.1} MiB a second without a limit, and {limited:.1} with one of 1");
    Ok(format!("{limited:.1} MiB a second with a limit of 1, {free:.0} without"))
}

/// A file as a block device.
pub(super) struct LoopDevice(pub String);

impl LoopDevice {
    pub fn new(image: &Path) -> Result<Self> {
        if !Path::new("/dev/loop-control").exists() {
            // In the lab nobody else loads it.
            let module = kernel(LAB)?.modules().join("kernel/drivers/block/loop.ko");
            let _ = Command::new("insmod").arg(module).output();
        }
        fs::write(image, vec![1; DISK]).context("making a disk")?;
        let made = output(Command::new("losetup").args(["--find", "--show"]).arg(image));
        made.map(|name| Self(name.trim().to_owned())).map_err(|why| NotHere(format!("{why:#}")).into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It stays as long as somebody uses it, and goes with the last.
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

/// What a command has printed when it closes its outputs; then it is typed to, and is to end with 7.
fn until_closed(mut command: Command) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting kite")?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        stdout.map(|mut out| out.read_to_end(&mut said)).transpose()?;
        Ok::<_, std::io::Error>(said)
    });
    let start = Instant::now();
    while !reader.is_finished() && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(10));
    }
    let closed = reader.is_finished() && child.try_wait().context("waiting for kite")?.is_none();
    child.stdin.take().map(|mut stdin| stdin.write_all(b"end\n")).transpose().context("typing")?;
    let status = child.wait().context("waiting for kite")?;
    ensure!(closed, "kite ended before its standard output did, or that did not end: {status}");
    let said = reader.join().map_err(|_| anyhow!("the reader has panicked"))?.context("reading")?;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(status.code() == Some(7), "{status}: {said}");
    Ok(said)
}

/// The folders of groups with this name, wherever they are.
fn left(name: &str) -> Vec<PathBuf> {
    fn look(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for path in entries.filter(|it| it.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()) {
            look(&path, name, found);
            found.extend(path.ends_with(name).then_some(path));
        }
    }
    let mut found = Vec::new();
    look(Path::new(CGROUPS), name, &mut found);
    found
}

/// A user without any rights, in a group of version 2 that was given to them, as a service manager gives it.
pub fn delegated(fixture: &Fixture) -> Result<String> {
    check_groups(fixture)?;
    let top = Path::new(CGROUPS);
    let here = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
    if !nix::unistd::geteuid().is_root() || !here.split_whitespace().any(|name| name == "pids") {
        return Err(NotHere("it takes root, and groups of version 2".to_owned()).into());
    }
    let kvm = fs::metadata("/dev/kvm").context("looking at /dev/kvm")?;
    let group = match (kvm.mode() & 0o060 == 0o060, std::env::var_os("LAB").is_some()) {
        (true, _) => kvm.gid(),
        // What udev does elsewhere.
        (false, true) => {
            fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)).context("opening up /dev/kvm")?;
            NOBODY
        }
        (false, false) => return Err(NotHere("/dev/kvm is for no group".to_owned()).into()),
    };
    let scope = Scope::new(top.join("kite-e2e.scope"))?;
    let program = fixture.file("kite");
    let kite = fixture.program()?;
    fs::copy(kite, &program).context("copying kite")?;
    fs::write(fixture.file("power-off"), tiny_kernel(POWER_OFF, Entry::Pvh)).context("writing a guest")?;
    let folder = program.parent().context("a file is in a folder")?;
    fs::set_permissions(folder, Permissions::from_mode(0o755)).context("opening up a folder")?;
    let run = format!(
        "echo 0 >{scope}/cgroup.procs && exec setpriv --reuid {NOBODY} --regid {group} --clear-groups {kite} run \
         --sandbox {sandbox} --force --memory 64M --kernel {guest} --cgroup own --limit pids=64,cpu=0.9",
        scope = scope.0.display(),
        sandbox = sandbox(),
        kite = program.display(),
        guest = fixture.file("power-off").display(),
    );
    let mut command = Command::new("sh");
    command.args(["-c", &run]).current_dir("/");
    let ended = ended(command, b"")?;
    ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:?}");
    let given = fs::read_to_string(scope.0.join("cgroup.subtree_control")).context("reading the group")?;
    let folders = left("own").len() + left("own.supervisor").len();
    ensure!(given.trim().is_empty() && folders == 0, "of {folders} folders and {given:?} is left");
    Ok(String::new())
}

/// A group that is nobody's.
struct Scope(PathBuf);

impl Scope {
    fn new(path: PathBuf) -> Result<Self> {
        let parent = path.parent().context("a group is below another")?;
        fs::write(parent.join("cgroup.subtree_control"), "+cpu +pids").context("giving controllers")?;
        fs::create_dir_all(&path).context("making a group")?;
        let this = Self(path);
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            chown(this.0.join(file), Some(NOBODY), None).context("giving a group away")?;
        }
        Ok(this)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let start = Instant::now();
        // Who was in it may be on the way out.
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_in_our_own_family_and_have_used_time() {
        let own = std::process::id();
        assert_eq!(family(own)[0], own);
        assert!(ticks(own).is_some() && ticks(u32::MAX).is_none());
    }
}
