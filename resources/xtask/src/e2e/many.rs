//! Many containers of `kite oci`, and such whose processes are killed: what they leave on this machine is nothing, or what
//! `delete --force` removes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::{LEFT, left};
use super::oci::Containers;
use super::{Fixture, Started, kernel};

/// How many run at once.
const TOGETHER: usize = 8;
/// When something is killed after the machine was started, in milliseconds: while processes begin, the guest boots, and its
/// command runs.
const MOMENTS: [u64; 4] = [0, 300, 3000, 15_000];
/// Which of a container's processes, by how many are above it: the monitor, the machine's supervisor, and the process that
/// runs the guest.
const DEPTHS: [usize; 3] = [0, 1, 2];

/// What there is on this machine that a container could leave behind.
#[derive(Debug, PartialEq, Eq)]
struct There {
    left: [usize; 4],
    sockets: usize,
    cgroups: usize,
    states: usize,
}

impl There {
    fn now(containers: &Containers<'_>, temporary: &Path) -> Result<Self> {
        let sockets = fs::read_to_string("/proc/net/unix").context("reading the sockets")?.lines().count();
        let cgroups = folders(Path::new("/sys/fs/cgroup"));
        let states = fs::read_dir(containers.folder.join("root")).into_iter().flatten().count();
        Ok(Self { left: left(temporary)?, sockets, cgroups, states })
    }
}

/// How many folders there are below one.
fn folders(at: &Path) -> usize {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| 1 + folders(&entry.path())).sum()
}

/// A bundle whose container does this, and a folder for what kite makes meanwhile.
fn bundle<'a>(
    fixture: &'a Fixture,
    version: &str,
    script: &str,
) -> Result<(Containers<'a>, std::path::PathBuf)> {
    let folder = fixture.file("many-containers");
    let temporary = folder.join("temporary");
    fs::create_dir_all(&temporary).context("making a folder")?;
    let containers = Containers { program: fixture.program()?, folder };
    containers.write(&kernel(version)?, script)?;
    Ok((containers, temporary))
}

/// Waits until there is what there was before.
fn wait_until(before: &There, containers: &Containers<'_>, temporary: &Path) -> Result<()> {
    let gone = || Ok(There::now(containers, temporary)? == *before);
    containers.wait_for("all to be gone", gone).or_else(|_| {
        let after = There::now(containers, temporary)?;
        ensure!(after == *before, "{LEFT}, sockets, cgroups and states: {before:?} before, {after:?} after");
        Ok(())
    })
}

/// So many containers, several at a time, of which nothing is left.
pub fn many(fixture: &Fixture, version: &str, count: usize) -> Result<String> {
    let (containers, temporary) = bundle(fixture, version, "echo out; exit 7")?;
    let before = There::now(&containers, &temporary)?;
    for first in (0..count).step_by(TOGETHER) {
        let mut running = Vec::new();
        for number in first..count.min(first + TOGETHER) {
            let mut run = containers.command(&["run", "--bundle"]);
            run.arg(&containers.folder).arg(format!("many-{number}")).env("TMPDIR", &temporary);
            let output = containers.folder.join(format!("output-{number}"));
            run.stdin(Stdio::null()).stdout(File::create(&output)?).stderr(Stdio::inherit());
            running.push((number, Started::new(&mut run)?));
        }
        for (number, mut run) in running {
            let status = run.0.wait().context("waiting for kite oci run")?;
            let said = containers.read(&format!("output-{number}"))?;
            ensure!(
                status.code() == Some(7) && said == "out\n",
                "container {number} ended with {status}: {said:?}"
            );
        }
    }
    wait_until(&before, &containers, &temporary)?;
    Ok(format!("{count} containers, {TOGETHER} at a time"))
}

/// Each of a container's processes is killed at several moments: the container has stopped then, and is removed.
pub fn killed(fixture: &Fixture, version: &str) -> Result<String> {
    let (containers, temporary) = bundle(fixture, version, "while :; do sleep 1; done")?;
    let before = There::now(&containers, &temporary)?;
    for depth in DEPTHS {
        for moment in MOMENTS {
            let id = format!("killed-{depth}-{moment}");
            kill_one(&containers, &id, depth, moment).with_context(|| id.clone())?;
            wait_until(&before, &containers, &temporary).with_context(|| id.clone())?;
        }
    }
    // One that was never started.
    containers.create("waits")?;
    kill(monitor(&containers, "waits")?, Signal::SIGKILL).context("killing a monitor")?;
    containers.done(&["delete", "--force", "waits"])?;
    wait_until(&before, &containers, &temporary)?;
    Ok(format!("{} times", DEPTHS.len() * MOMENTS.len() + 1))
}

fn kill_one(containers: &Containers<'_>, id: &str, depth: usize, moment: u64) -> Result<()> {
    containers.create(id)?;
    containers.done(&["start", id])?;
    sleep(Duration::from_millis(moment));
    let monitor = monitor(containers, id)?;
    // What is not there yet is waited for: the moment is then its first.
    let mut victim = monitor;
    for _ in 0..depth {
        containers.wait_for("a process of the machine", || Ok(child(victim).is_some()))?;
        victim = child(victim).context("a process has ended")?;
    }
    kill(victim, Signal::SIGKILL).context("killing a process")?;
    // A container with such an end is stopped, or is not yet: force removes it.
    containers.done(&["delete", "--force", id]).map(drop)
}

fn monitor(containers: &Containers<'_>, id: &str) -> Result<Pid> {
    let pid = containers.read(&format!("{id}-pid"))?;
    Ok(Pid::from_raw(pid.trim().parse().context("a pid file has a number")?))
}

/// A process's first child.
fn child(pid: Pid) -> Option<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<String> =
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    pids.first()?.parse().ok().map(Pid::from_raw)
}
