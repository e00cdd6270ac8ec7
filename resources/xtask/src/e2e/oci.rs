//! `kite oci` on a stock kernel: the life of a container as an engine leads it, with its streams, statuses and files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Fixture, Started, kernel};
use crate::setup::Kernel;

/// What a container may take to come to something.
const LIMIT: Duration = Duration::from_secs(300);
/// What the container does: it says who it is, writes a file, and ends when it is asked to.
const SCRIPT: &str = "trap 'echo asked; exit 7' TERM; echo out; echo err >&2; hostname; id -u; echo $$; cat /etc/issue; \
                      echo written > /mnt/file; while :; do sleep 0.1; done";

/// A bundle whose root folder is this host's, and the runtime's root.
pub(super) struct Containers<'a> {
    pub program: &'a Path,
    pub folder: PathBuf,
}

impl Containers<'_> {
    /// Writes the bundle, whose process is a shell with this script.
    pub fn write(&self, kernel: &Kernel, script: &str) -> Result<()> {
        let capabilities = r#"["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"]"#;
        let bind = |at: &str, name: &str, how: &str| {
            let source = self.folder.join(name);
            format!(
                r#"{{"destination": "{at}", "type": "bind", "source": "{}", "options": ["bind", "{how}"]}}"#,
                source.display()
            )
        };
        let mounts = [
            r#"{"destination": "/proc", "type": "proc"}"#.to_owned(),
            r#"{"destination": "/dev", "type": "tmpfs", "options": ["mode=755"]}"#.to_owned(),
            r#"{"destination": "/dev/pts", "type": "devpts", "options": ["ptmxmode=0666"]}"#.to_owned(),
            bind("/mnt", "shared", "rw"),
            bind("/etc/issue", "issue", "ro"),
        ];
        let config = format!(
            r#"{{"ociVersion": "1.2.0", "root": {{"path": "/", "readonly": true}}, "hostname": "box", "mounts": [{}],
            "process": {{"args": ["/bin/sh", "-c", "{script}"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"],
            "capabilities": {{"bounding": {capabilities}, "effective": {capabilities}, "permitted": {capabilities}}}}},
            "linux": {{"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "namespaces": [{{"type": "pid"}}]}},
            "annotations": {{"kite.kernel": "{}"}}}}"#,
            mounts.join(", "),
            kernel.bz_image().display()
        );
        fs::create_dir_all(self.folder.join("shared"))?;
        fs::write(self.folder.join("issue"), "of the engine\n")?;
        fs::write(self.folder.join("config.json"), config).context("writing config.json")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(["oci", "--root"]).arg(self.folder.join("root")).args(arguments);
        command
    }

    fn oci(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).stdin(Stdio::null()).output().context("starting kite")
    }

    /// Does what has to succeed; answers what it printed.
    pub fn done(&self, arguments: &[&str]) -> Result<String> {
        let output = self.oci(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} ended with {}: {stderr}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn create(&self, id: &str) -> Result<()> {
        let file = |name: &str| File::create(self.folder.join(format!("{id}-{name}")));
        let mut create = self.command(&["create", "--bundle"]);
        create.arg(&self.folder).arg("--pid-file").arg(self.folder.join(format!("{id}-pid"))).arg(id);
        let status = create.stdin(Stdio::null()).stdout(file("stdout")?).stderr(file("stderr")?).status()?;
        ensure!(status.success(), "create ended with {status}: {}", self.read(&format!("{id}-stderr"))?);
        Ok(())
    }

    pub fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.folder.join(name)).with_context(|| format!("reading {name}"))
    }

    pub fn wait_for(&self, what: &str, mut happens: impl FnMut() -> Result<bool>) -> Result<()> {
        let since = Instant::now();
        while !happens()? {
            if since.elapsed() > LIMIT {
                bail!("waited in vain for {what}");
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub fn wait_until_stopped(&self, id: &str) -> Result<()> {
        self.wait_for("the container's end", || Ok(self.done(&["state", id])?.contains("\"stopped\"")))
    }

    /// Waits for the file that the container writes to a shared folder, once it takes signals.
    fn wait_for_file(&self) -> Result<()> {
        self.wait_for("what it writes", || Ok(self.read("shared/file").is_ok_and(|it| it == "written\n")))
    }

    /// What another process in the container prints, and its status.
    fn exec(&self, arguments: &[&str]) -> Result<(String, Option<i32>)> {
        let output = self.oci(&[&["exec"], arguments].concat())?;
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code()))
    }
}

/// A container is created, started, joined, paused, asked to end and deleted; and others are killed.
pub fn life(fixture: &Fixture, version: &str) -> Result<String> {
    let folder = fixture.file("oci");
    fs::create_dir_all(&folder)?;
    let containers = Containers { program: fixture.program()?, folder };
    containers.write(&kernel(version)?, SCRIPT)?;
    let result = led(&containers).and_then(|()| killed(&containers));
    for id in ["a", "b", "c"] {
        containers.oci(&["delete", "--force", id])?;
    }
    result?;
    let rest = fs::read_dir(containers.folder.join("root"))?.count();
    ensure!(rest == 0, "{rest} containers are left");
    Ok("a container's streams, files and statuses".to_owned())
}

fn led(containers: &Containers<'_>) -> Result<()> {
    containers.create("a")?;
    containers.done(&["start", "a"])?;
    let expected = "out\nbox\n0\n1\nof the engine\n";
    containers
        .wait_for("the container's output", || Ok(containers.read("a-stdout")?.len() >= expected.len()))?;
    ensure!(containers.read("a-stdout")? == expected, "it wrote {:?}", containers.read("a-stdout")?);
    ensure!(containers.read("a-stderr")? == "err\n", "it wrote {:?}", containers.read("a-stderr")?);
    containers.wait_for_file()?;
    let script =
        "cat /proc/1/comm; id -u; id -g; wc -c < /proc/kcore; echo x > /proc/sys/kernel/panic; exit 5";
    let (said, code) = containers.exec(&["--user", "5:6", "a", "sh", "-c", script])?;
    ensure!(
        (said.as_str(), code) == ("sh\n5\n6\n0\n", Some(5)),
        "exec said {said:?} and ended with {code:?}"
    );
    for (words, expected) in [(&["no-such-program"][..], 127), (&["sh", "-c", "kill -9 $$"], 137)] {
        let (said, code) = containers.exec(&[&["a"], words].concat())?;
        ensure!(code == Some(expected), "{words:?} ended with {code:?}: {said}");
    }
    let (bytes, _) = containers.exec(&["a", "head", "-c", "1000000", "/dev/zero"])?;
    ensure!(bytes.len() == 1_000_000, "{} bytes came of a million", bytes.len());
    containers.done(&["pause", "a"])?;
    ensure!(containers.done(&["state", "a"])?.contains("\"paused\""), "it is not paused");
    containers.done(&["resume", "a"])?;
    containers.done(&["kill", "a", "TERM"])?;
    containers.wait_until_stopped("a")?;
    ensure!(containers.read("a-stdout")?.ends_with("asked\n"), "the signal did not come");
    ensure!(containers.oci(&["kill", "a", "TERM"])?.status.code() == Some(1), "what has ended took a signal");
    containers.done(&["delete", "a"]).map(drop)
}

fn killed(containers: &Containers<'_>) -> Result<()> {
    containers.create("b")?;
    containers.done(&["start", "b"])?;
    containers.exec(&["b", "true"])?;
    containers.done(&["kill", "b", "KILL"])?;
    containers.wait_until_stopped("b")?;
    containers.done(&["delete", "b"])?;
    fs::remove_file(containers.folder.join("shared/file"))?;
    let mut run = containers.command(&["run", "--bundle"]);
    run.arg(&containers.folder).arg("c").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = Started::new(&mut run)?;
    containers.wait_for_file()?;
    containers.done(&["kill", "c", "TERM"])?;
    let status = run.0.wait().context("waiting for kite oci run")?;
    ensure!(status.code() == Some(7), "run ended with {status}");
    Ok(())
}
