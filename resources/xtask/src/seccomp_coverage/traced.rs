//! A kite that is traced, and its traces.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use boot::modules::Modules;
use tempfile::TempDir;

use super::rules::Rules;
use super::trace::{Reader, STRACE};
use crate::host;
use crate::lab::Lab;
use crate::setup::Setup;

/// What all guests may take, emulated and traced.
const LIMIT: Duration = Duration::from_secs(1500);
/// What is set for strace to do more.
const MORE: &str = "KITE_STRACE";
/// Of the disks of a machine, the first has io_uring and the second has none, as where that is forbidden; each is set up
/// in two attempts.
const NO_URING: &str = "-e inject=io_uring_setup:error=EPERM:when=2..5";
/// How null_blk is slow: it does one request at a time, and takes 1 ms for it.
const SLOW: &str = "hw_queue_depth=1 irqmode=2 completion_nsec=1000000";

/// A folder with a copy of a kite, a script of which `traced` is the name, and what is traced.
pub struct Folder(TempDir);

impl Folder {
    /// For this kite, which is run here or in the lab.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(kite: &Path, in_lab: bool) -> Result<Self> {
        let folder = TempDir::new_in(host::target("lab")?).context("making a folder")?;
        let this = Self(folder);
        fs::copy(kite, this.file("kite")).context("copying kite")?;
        let seen_as = if in_lab { "/out".into() } else { this.0.path().display().to_string() };
        let script =
            format!("#!/bin/sh\nexec {STRACE} ${MORE} -o '{seen_as}'/$$.trace '{seen_as}'/kite \"$@\"\n");
        fs::write(this.file("traced"), script).context("writing a script")?;
        fs::set_permissions(this.file("traced"), Permissions::from_mode(0o755)).context("making a script")?;
        // Some run kite as somebody else.
        fs::set_permissions(this.0.path(), Permissions::from_mode(0o1777)).context("opening a folder")?;
        Ok(this)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What runs a test in whose eyes `kite` is `traced`, and in nobody else's.
    fn command(traced: &Path, kite: &Path, test: &Path, arguments: &[&str]) -> Vec<OsString> {
        let namespaces = if nix::unistd::geteuid().is_root() { "-m" } else { "-Urm" };
        // A shell that starts this in the background ignores what some tests send.
        let script = "mount --bind \"$1\" \"$2\" && shift 2 && \
            exec timeout 300 env --default-signal=HUP,INT,QUIT \"$@\"";
        let mut command: Vec<_> =
            ["unshare", namespaces, "sh", "-c", script, "sh"].map(OsString::from).into();
        command.extend([traced, kite, test].map(OsString::from));
        command.extend(arguments.iter().map(OsString::from));
        command
    }

    /// Runs those of a program's tests with such a part in their names, or all if there are none, here, where they may use what there is.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn test(&self, kite: &Path, test: &Path, filters: &[&str]) -> Result<()> {
        let command = Self::command(&self.file("traced"), kite, test, &[&["--quiet"], filters].concat());
        let mut test_run = Command::new(&command[0]);
        test_run.args(&command[1..]).current_dir(host::root()).stdin(Stdio::null());
        let ended = test_run.output().context("running a test")?;
        // One or two fail for being traced; what they have run is seen all the same.
        let text = String::from_utf8_lossy(&ended.stdout);
        if !text.contains("test result: ") {
            eprintln!("xtask: {} did not come to its end", test.display());
        }
        Ok(())
    }

    /// Runs one of a test's tests in the lab, where `SLOW_DISK` names a disk that does one thing at a time.
    ///
    /// # Errors
    /// The lab fails, or the test.
    pub fn test_in_lab(&self, setup: &mut Setup, kite: &Path, test: &Path, name: &str) -> Result<()> {
        let modules = Modules::open(&setup.lab_kernel()?.modules())?.resolve(&["null_blk"], &[])?;
        let mut script = String::from("set -e; ");
        for module in &modules {
            let slow = if module.name == "null_blk" { SLOW } else { "" };
            script += &format!("insmod '{}' {slow}; ", module.path.display());
        }
        script += "exec env SLOW_DISK=/dev/nullb0 \"$@\"";
        let mut argv: Vec<_> = ["sh", "-c", &script, "sh"].map(OsString::from).into();
        argv.extend(Self::command(Path::new("/out/traced"), kite, test, &["--exact", name]));
        let said = self.lab(setup, &argv)?;
        ensure!(said.contains("test result: ok. 1 passed"), "{name} has not passed: {said}");
        Ok(())
    }

    /// Runs Linux guests in the lab.
    ///
    /// # Errors
    /// The lab fails, or a guest.
    pub fn guests(&self, setup: &mut Setup, kernel: &str) -> Result<()> {
        let own = std::env::current_exe().context("finding this program")?;
        let mut argv: Vec<OsString> = vec!["env".into(), format!("{MORE}={NO_URING}").into(), own.into()];
        let words = ["e2e", "--kite", "/out/traced", "--kernel", kernel, "jail/devices", "jail/share"];
        argv.extend(words.map(OsString::from));
        let said = self.lab(setup, &argv)?;
        println!("{}", said.trim_end());
        ensure!(!said.lines().any(|line| line.starts_with("FAIL ")), "a guest has failed");
        Ok(())
    }

    /// Runs a command in the lab, where this folder is `/out`; answers what it says.
    fn lab(&self, setup: &mut Setup, argv: &[OsString]) -> Result<String> {
        let mut lab = Lab::new(setup)?;
        lab.out = Some(self.0.path().to_owned());
        lab.timeout = LIMIT;
        let mut said = Vec::new();
        let status = lab.run(argv, &mut said, &mut io::stderr())?;
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(status == 0, "the lab's command has failed ({status}): {said}");
        Ok(said)
    }

    /// Has all that was traced seen.
    ///
    /// # Errors
    /// It cannot be read, or nothing was traced.
    pub fn read(&self, rules: &mut Rules) -> Result<()> {
        let mut reader = Reader::new(rules);
        let mut traces = 0;
        for entry in fs::read_dir(self.0.path()).context("looking for traces")? {
            let path = entry.context("looking for traces")?.path();
            if path.extension().is_some_and(|it| it == "trace") {
                reader.read(BufReader::new(File::open(&path).context("opening a trace")?))?;
                traces += 1;
            }
        }
        ensure!(traces > 0, "nothing was traced");
        Ok(())
    }
}
