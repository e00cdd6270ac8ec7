//! What a command can reach, tried by a command: this program, run as each subject runs one.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::filter;
use super::subject::Subject;

/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the probe says before what it has found.
const FOUND: &str = "found: ";

/// What is tried.
#[derive(Args, Clone, Debug)]
pub struct Targets {
    /// A file of the user's alone, which has its own path in it
    #[arg(long)]
    secret: PathBuf,
    /// A file to be made
    #[arg(long)]
    mark: PathBuf,
    /// An argument of a process
    #[arg(long)]
    argument: String,
    /// A TCP port of the host's loopback
    #[arg(long)]
    port: u16,
}

/// What was within reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    pub reads: bool,
    pub writes: bool,
    pub processes: bool,
    pub network: bool,
    /// System calls of the host's kernel that are open to the command itself.
    pub calls: usize,
}

/// Tries everything; the command.
pub fn run(targets: &Targets) {
    let secret = fs::read_to_string(&targets.secret).unwrap_or_default();
    // Whether that has changed anything is for the host to see.
    let _ = fs::write(&targets.mark, "made");
    let network = TcpStream::connect_timeout(&([127, 0, 0, 1], targets.port).into(), PATIENCE).is_ok();
    let found = [secret == targets.secret.display().to_string(), sees(&targets.argument), network];
    println!("{FOUND}{found:?}");
}

/// Whether a process other than this one has this argument.
fn sees(argument: &str) -> bool {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|it| it.file_name() != own.as_str());
    // The probe's own surroundings have it among others.
    others.into_iter().any(|it| {
        let line = fs::read(it.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).eq([&b"sleep"[..], argument.as_bytes(), b""])
    })
}

/// Has a subject run the probe.
///
/// # Errors
/// It fails.
pub fn ask(subject: &Subject, probe: &Path) -> Result<Reach> {
    // Where guests have a /tmp of their own.
    let folder = tempfile::tempdir_in("/var/tmp").context("making a folder")?;
    let targets = Targets {
        secret: folder.path().join("secret"),
        mark: folder.path().join("mark"),
        argument: format!("1000.{}", std::process::id()),
        port: 0,
    };
    fs::write(&targets.secret, targets.secret.display().to_string()).context("writing a file")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening")?;
    let port = listener.local_addr().context("listening")?.port();
    let sleep = Command::new("sleep").arg(&targets.argument).spawn().context("starting sleep")?;
    let _sleep = crate::e2e::Started::from(sleep);
    let path = |path: &Path| path.display().to_string();
    let own = path(probe);
    let (secret, mark, port) = (path(&targets.secret), path(&targets.mark), port.to_string());
    let words =
        [&own, "bench", "probe", "--secret", &secret, "--mark", &mark, "--argument", &targets.argument];
    let mut command = subject.command(&[&words[..], &["--port", &port]].concat());
    let ended = command.stdin(Stdio::null()).output().context("starting the probe")?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let found = said.lines().find_map(|line| line.trim().strip_prefix(FOUND));
    let found = found
        .with_context(|| format!("{}: {said}{}", ended.status, String::from_utf8_lossy(&ended.stderr)))?;
    let found: Vec<bool> = found.trim_matches(['[', ']']).split(", ").map(|word| word == "true").collect();
    ensure!(found.len() == 3, "the probe says {said}");
    let calls = if subject.is_machine() { 0 } else { filter::all_calls()? };
    Ok(Reach {
        reads: found[0],
        writes: targets.mark.exists(),
        processes: found[1],
        network: found[2],
        calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_by_its_argument() {
        let argument = format!("1001.{}", std::process::id());
        assert!(!sees(&argument));
        let sleep = Command::new("sleep").arg(&argument).spawn().unwrap();
        let _sleep = crate::e2e::Started::from(sleep);
        // It has the argument from its exec on, a moment after it was started.
        let seen = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            sees(&argument)
        });
        assert!(seen);
    }
}
