//! What the runtime does with a container that is there.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::Config;
use super::protocol::{self, NotRunning, Request};
use super::state::{FAILURE, Folder, NoContainer, RUN, Record, Status, VERSION};
use super::{group, hooks, network};
use crate::host::messages;
use crate::lifecycle::{self, Ahead};
use crate::spec::RunSpec;

/// How long a container that is killed may take to end.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked at meanwhile.
const TICK: Duration = Duration::from_millis(5);
/// The longest description of a run, in bytes.
const LONGEST: u64 = 16 << 20;

/// What a container can be asked that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To take this signal.
    Signal(i32),
    /// To stop where it is.
    Pause,
    /// To go on.
    Resume,
}

/// Asks a container.
///
/// # Errors
/// There is none of that name, or it does not run.
pub fn ask(root: &Path, id: &str, what: Ask) -> anyhow::Result<()> {
    let folder = Folder::open(root, id)?;
    let status = folder.record()?.status;
    let expected: &[Status] = match what {
        Ask::Signal(_) => &[Status::Creating, Status::Created, Status::Running, Status::Paused],
        Ask::Pause => &[Status::Running],
        Ask::Resume => &[Status::Paused],
    };
    ensure!(status != Status::Stopped, NotRunning);
    ensure!(
        expected.contains(&status),
        "container is {}, and that is for one that is {}",
        status.name(),
        expected[0].name()
    );
    let request = match what {
        Ask::Signal(signal) => Request::Signal(signal),
        Ask::Pause => Request::Pause,
        Ask::Resume => Request::Resume,
    };
    match protocol::ask(&folder, &request) {
        // Its end is the answer.
        Err(error) if error.is::<NotRunning>() && what == Ask::Signal(Signal::SIGKILL as i32) => Ok(()),
        asked => asked.map(drop),
    }
}

/// Starts a container's machine, and then runs its `poststart` hooks.
///
/// # Errors
/// There is none of that name, it runs already or has ended, or its process cannot be started.
pub fn start(root: &Path, id: &str) -> anyhow::Result<()> {
    let folder = Folder::open(root, id)?;
    let record = folder.record()?;
    ensure!(record.status == Status::Created, "cannot start a container that is {}", record.status.name());
    protocol::ask(&folder, &Request::Start)?;
    if let Ok(config) = Config::of_bundle(&record.bundle) {
        // A failure is no reason to end the container (runtime.md, "Lifecycle").
        let state = Record { status: Status::Running, ..record }.to_json();
        hooks::run(&config.hooks.poststart, &state)
            .unwrap_or_else(|error| messages::complain(&format!("{error:#}")));
    }
    Ok(())
}

/// Removes a container that has stopped; with `force` one that runs, too, and none at all is removed already.
///
/// # Errors
/// There is none of that name, it runs, or it cannot be ended or removed.
pub fn delete(root: &Path, id: &str, force: bool) -> anyhow::Result<()> {
    let folder = match Folder::open(root, id) {
        Err(error) if force && error.is::<NoContainer>() => return Ok(()),
        folder => folder?,
    };
    // What is no record is of a container that was being made.
    let record = match folder.record() {
        Ok(record) => record,
        Err(_) if force => {
            // Its monitor may listen all the same.
            let _ = protocol::ask(&folder, &Request::Signal(Signal::SIGKILL as i32));
            return folder.remove();
        }
        Err(error) => return Err(error),
    };
    if record.status != Status::Stopped {
        ensure!(
            force,
            "container is {}, and only one that is stopped is deleted without --force",
            record.status.name()
        );
        end(&folder, &record)?;
    }
    group::remove(&record)?;
    folder.remove()?;
    if let Ok(config) = Config::of_bundle(&record.bundle) {
        let state = Record { status: Status::Stopped, ..record }.to_json();
        hooks::run(&config.hooks.poststop, &state)
            .unwrap_or_else(|error| messages::complain(&format!("{error:#}")));
    }
    Ok(())
}

/// Ends a container: its monitor does, which then ends itself; or else the kernel ends that.
fn end(folder: &Folder, record: &Record) -> anyhow::Result<()> {
    let asked = protocol::ask(folder, &Request::Signal(Signal::SIGKILL as i32)).is_ok();
    let since = Instant::now();
    let mut killed = asked;
    while record.is_alive() {
        if !killed || since.elapsed() > PATIENCE / 2 {
            // The number may be another process's only if the monitor has ended since it was looked at.
            let _ = kill(Pid::from_raw(record.pid), Signal::SIGKILL);
            killed = true;
        }
        ensure!(since.elapsed() < PATIENCE, "the container's monitor, process {}, does not end", record.pid);
        sleep(TICK);
    }
    Ok(())
}

/// Runs a container's machine in this process, which ends with the monitor that has started it; `connected` to the network
/// namespace that it is in, or to none.
///
/// # Errors
/// Those of [`lifecycle::run`].
pub fn machine(root: &Path, id: &str, connected: bool) -> anyhow::Result<u8> {
    set_pdeathsig(Signal::SIGKILL).context("cannot follow the monitor")?;
    let folder = Folder::open(root, id)?;
    let record: Record = folder.record()?;
    ensure!(nix::unistd::getppid().as_raw() == record.pid, "the monitor has gone");
    let mut json = Vec::new();
    File::open(folder.path.join(RUN))?.take(LONGEST + 1).read_to_end(&mut json)?;
    ensure!(json.len() as u64 <= LONGEST, "the run's description is too long");
    let mut spec = RunSpec::from_json(&json).map_err(|why| anyhow!("{RUN}: {why}"))?;
    if connected {
        network::connect(&mut spec)?;
    }
    spec.validate().map_err(|why| anyhow!("{RUN}: {why}"))?;
    // What is open when a machine begins is its caller's, and closed.
    drop(folder);
    lifecycle::run(&spec, Instant::now(), Ahead::default())
}

/// Says in the container's folder why its monitor or machine cannot begin, for `create` or `start` to say it; answers whether
/// `create` will, in whose place this process is as long as the container is being made.
pub fn leave_failure(root: &Path, id: &str, why: &str) -> bool {
    let Ok(folder) = Folder::open(root, id) else { return false };
    // Without it the other says less.
    let is_left = fs::write(folder.path.join(FAILURE), why).is_ok();
    is_left && folder.record().map_or(true, |record| record.status == Status::Creating)
}

/// The number of a signal's name or number, with or without SIG.
///
/// # Errors
/// There is no such signal.
pub fn signal_number(text: &str) -> anyhow::Result<i32> {
    const MOST: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        ensure!((1..=MOST).contains(&number), "there is no signal {number}");
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    match format!("SIG{name}").parse::<Signal>() {
        Ok(signal) => Ok(signal as i32),
        Err(_) => bail!("there is no signal '{}'", text.escape_debug()),
    }
}

/// What `features` prints (runtime-spec, `features.md`).
pub fn features() -> String {
    let features = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "poststart", "poststop"],
        "mountOptions": ["ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "bind", "rbind"],
        "linux": {
            "namespaces": ["ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {"enabled": false}, "apparmor": {"enabled": false}, "selinux": {"enabled": false},
        },
        "annotations": {"kite.version": env!("CARGO_PKG_VERSION")},
    });
    format!("{features:#}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::state::begun;
    use super::*;

    #[test]
    fn a_container_that_ends_while_it_is_asked_is_killed_and_else_not_running() {
        let pid = std::process::id() as i32;
        for (what, succeeds) in [
            (Ask::Signal(Signal::SIGKILL as i32), true),
            (Ask::Signal(Signal::SIGTERM as i32), false),
            (Ask::Pause, false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let folder = Folder::make(root.path(), "a").unwrap();
            let mut record = Record {
                oci_version: VERSION.to_owned(),
                id: "a".to_owned(),
                status: Status::Running,
                pid,
                begun: begun(pid).unwrap(),
                bundle: "/b".into(),
                created: String::new(),
                annotations: BTreeMap::new(),
                group: None,
            };
            folder.write_record(&record).unwrap();
            let listener = protocol::listen(&folder).unwrap();
            let monitor = std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                protocol::receive::<Request>(&stream).unwrap();
                record.status = Status::Stopped;
                folder.write_record(&record).unwrap();
            });
            let asked = ask(root.path(), "a", what);
            monitor.join().unwrap();
            assert_eq!(asked.is_ok(), succeeds, "{what:?}: {asked:?}");
            if let Err(error) = asked {
                assert_eq!(error.to_string(), "container not running");
            }
        }
    }

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("64", 64)] {
            assert_eq!(signal_number(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "-1", "65", "SIG", "SIGSIGKILL", "99999999999", "KILL\n"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_deleted_by_force_alone() {
        let root = tempfile::tempdir().unwrap();
        assert!(delete(root.path(), "a", false).unwrap_err().is::<NoContainer>());
        delete(root.path(), "a", true).unwrap();
        assert!(delete(root.path(), "../a", true).is_err());
        let folder = Folder::make(root.path(), "a").unwrap();
        assert!(delete(root.path(), "a", false).is_err(), "it is being made");
        delete(root.path(), "a", true).unwrap();
        assert!(!folder.path.exists());
    }
}
