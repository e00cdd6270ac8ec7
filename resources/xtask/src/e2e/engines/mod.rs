//! Engines of containers with kite as their runtime, on a stock kernel: what they are asked they answer as with the runtime
//! that is theirs. Engines, their storage and their processes are in a root folder and namespaces of their own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::command::{Ended, ended};
use super::terminal::Person;
use super::{Fixture, NotHere, Started, kernel};
use crate::setup::{Kernel, engines_archive};

/// Where the engines' programs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What every script begins with.
const BEGIN: &str = "cd /; D=$(mktemp -d); trap 'rm -rf \"$D\"' EXIT
WAITS='trap \"echo asked; exit 7\" TERM; while :; do sleep 0.1; done'
";
/// What there is that a container could leave behind.
const LEFT: &str =
    "find /proc -maxdepth 1 -name '[0-9]*' | wc -l; wc -l </proc/self/mountinfo; wc -l </proc/net/unix
find /sys/fs/cgroup -type d | wc -l; find /run -path '*/kite-oci/*' | wc -l; find /tmp /dev/shm | wc -l";
/// And in which order.
const LEFT_NAMES: &str = "processes, mounts, sockets, cgroups, files of states, and others";

/// How long what ends may take to be gone.
const ON_THE_WAY_OUT: Duration = Duration::from_secs(20);
/// How often it is looked at meanwhile.
const TICK: Duration = Duration::from_millis(500);

/// An engine, and what it is asked.
#[derive(Clone, Copy)]
pub struct Engine {
    /// Its command.
    name: &'static str,
    /// The runtime that is its own, and kite as it knows it.
    runtimes: [&'static str; 2],
    /// What makes it ready.
    start: &'static str,
    /// What each script begins with, which runs a container with `$RUNTIME`.
    begin: &'static str,
    scripts: &'static str,
}

/// podman as root.
pub const PODMAN: Engine = Engine {
    name: "podman",
    runtimes: ["crun", "kite"],
    start: "",
    begin: "podman() { command podman --runtime \"$RUNTIME\" \"$@\"; }",
    scripts: include_str!("podman.sh"),
};

/// podman as an ordinary user, whose storage has whole copies: Debian's kernel has no user's attributes in memory.
pub const ROOTLESS: Engine = Engine {
    start: "chmod 644 /tiny.tar; RUNTIME=crun; podman load --quiet --input /tiny.tar",
    begin: "podman() { setpriv --reuid ann --regid ann --init-groups env HOME=/home/ann XDG_RUNTIME_DIR=/run/user/1000 \
            STORAGE_DRIVER=vfs podman --runtime \"$RUNTIME\" \"$@\"; }",
    ..PODMAN
};

/// Docker, whose containers have no network here.
pub const DOCKER: Engine = Engine {
    name: "docker",
    runtimes: ["runc", "kite"],
    start: "dockerd --bridge none --iptables=false --ip6tables=false --add-runtime kite=/usr/local/bin/kite-oci \
            </dev/null >/var/log/dockerd 2>&1 &
            for n in $(seq 300); do command docker version >/dev/null 2>&1 && break; sleep 0.5; done
            docker load --quiet --input /tiny.tar && docker tag localhost/tiny tiny || { cat /var/log/dockerd; exit 1; }",
    begin: "docker() { case $1 in run) shift; command docker run --runtime \"$RUNTIME\" \"$@\";; *) command docker \"$@\";; esac; }",
    scripts: include_str!("docker.sh"),
};

/// containerd by its own command.
pub const CONTAINERD: Engine = Engine {
    name: "ctr",
    runtimes: ["runc", "/usr/local/bin/kite-oci"],
    start: "containerd </dev/null >/var/log/containerd 2>&1 &
            for n in $(seq 300); do ctr version >/dev/null 2>&1 && break; sleep 0.5; done
            ctr images import /tiny.tar || { cat /var/log/containerd; exit 1; }",
    begin: "run() { ctr run --runc-binary \"$RUNTIME\" \"$@\"; }",
    scripts: include_str!("containerd.sh"),
};

/// A line that is another with kite.
struct Difference {
    /// What the scripts' names end with that have it.
    script: &'static str,
    /// A part of the line that is the other runtime's.
    theirs: &'static str,
    /// kite's.
    ours: &'static str,
}

/// All that differs. A guest's kernel is asked for a program when the container has begun, and what it answers is the
/// container's own output: before that, nothing of the container's root folder is looked at.
const DIFFERENCES: [Difference; 5] = [
    Difference {
        script: "status 126",
        theirs: "ermission denied",
        ours: "kite: /data: cannot be executed in the guest: Permission denied (os error 13)",
    },
    Difference {
        script: "status 127",
        theirs: "not found in $PATH",
        ours: "kite: no-such-program: not found in the guest",
    },
    // containerd's own command has no status of a container that was not created.
    Difference { script: "status 127", theirs: "status 1", ours: "status 127" },
    Difference {
        script: "exec",
        theirs: "ermission denied",
        ours: "kite: /data: cannot be executed in the guest: Permission denied (os error 13)",
    },
    Difference {
        script: "exec",
        theirs: "not found in $PATH",
        ours: "kite: no-such-program: not found in the guest",
    },
];

/// The scripts of a text, with their names: those of a group.
fn scripts<'a>(text: &'a str, group: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let all = text.split("\n#: ").skip(1).filter_map(|script| script.split_once('\n'));
    all.filter(move |(name, _)| name.starts_with(group))
}

/// Engines in a root folder of their own, with all that they have started.
pub struct Engines {
    /// Ends everything.
    _first: Started,
    /// The first process of the namespaces.
    pid: String,
    engine: Engine,
}

impl Engines {
    /// Those of a test.
    ///
    /// # Errors
    /// There is no archive of them; or they do not start.
    pub(super) fn of_test(fixture: &Fixture, version: &str, engine: Engine) -> Result<Self> {
        if !engines_archive()?.exists() {
            return Err(NotHere("there is no root folder with engines".to_owned()).into());
        }
        let root = fixture.file("engines");
        fs::create_dir_all(&root).context("making a folder")?;
        Self::start(&root, fixture.program()?, &kernel(version)?, engine)
    }

    /// Makes the folder at `root`, which is there, and starts the engine.
    ///
    /// # Errors
    /// There is no archive of it, or the engine does not start.
    pub fn start(root: &Path, kite: &Path, kernel: &Kernel, engine: Engine) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        command.args(["--", "bash", "-c", include_str!("root.sh"), "root.sh"]).arg(root);
        command.arg(engines_archive()?).arg(kite).arg(kernel.bz_image()).arg(kernel.modules());
        let mut first =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting unshare")?;
        let stdout = first.stdout.take().context("it has an output")?;
        let mut pid = String::new();
        let read = BufReader::new(stdout).read_line(&mut pid).context("waiting for the root folder");
        let engines = Self { _first: first.into(), pid: pid.trim().to_owned(), engine };
        ensure!(read? > 1, "the root folder is not made");
        let started = engines.run(engine.runtimes[0], engine.start)?;
        ensure!(started.code == Some(0), "the engine does not start: {started:#?}");
        Ok(engines)
    }

    /// A script of the engine's with this runtime.
    pub fn command(&self, runtime: &str, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--mount", "--pid", "--", "bash", "-c"]);
        command.arg(format!("{BEGIN}{}\n{script}", self.engine.begin));
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("TERM", "xterm").env("LC_ALL", "C");
        command.env("RUNTIME", runtime);
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// There is no end.
    pub(super) fn run(&self, runtime: &str, script: &str) -> Result<Ended> {
        ended(self.command(runtime, script), b"").with_context(|| format!("with {runtime}: {script}"))
    }

    /// What there is now that a container could leave behind.
    fn left(&self) -> Result<String> {
        let counts = self.run("", LEFT)?.stdout;
        Ok(String::from_utf8_lossy(&counts).split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Waits until what is there is what was there before.
    fn wait_until_left(&self, before: &str) -> Result<()> {
        let since = Instant::now();
        loop {
            let after = self.left()?;
            if after == before {
                return Ok(());
            }
            ensure!(since.elapsed() < ON_THE_WAY_OUT, "{LEFT_NAMES}: {before} before, {after} after");
            sleep(TICK);
        }
    }
}

/// Has an engine run the scripts of a group with its own runtime, and then with kite: what they print and their statuses
/// are the same, and so is what there is afterwards.
pub fn compare(fixture: &Fixture, version: &str, engine: Engine, group: &str) -> Result<String> {
    let engines = Engines::of_test(fixture, version, engine)?;
    let [theirs, ours] = engine.runtimes;
    let all = |runtime: &str| {
        scripts(engine.scripts, group)
            .map(|(_, script)| engines.run(runtime, script))
            .collect::<Result<Vec<_>>>()
    };
    let expected = all(theirs)?;
    let left = engines.left()?;
    let ends = all(ours)?;
    let mut wrong = String::new();
    for ((name, _), (expected, ours)) in scripts(engine.scripts, group).zip(expected.into_iter().zip(&ends)) {
        let expected = as_ours(name, expected);
        if (expected.code, &expected.stdout, &expected.stderr) != (ours.code, &ours.stdout, &ours.stderr) {
            wrong += &format!("{name}: with {theirs}: {}with kite: {}", shown(&expected), shown(ours));
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    engines.wait_until_left(&left)?;
    Ok(format!("{} scripts", ends.len()))
}

/// What is expected of kite where another runtime ended so.
fn as_ours(name: &str, theirs: Ended) -> Ended {
    let mut stderr = theirs.stderr;
    for difference in DIFFERENCES.iter().filter(|difference| name.ends_with(difference.script)) {
        let line = |line: &str| {
            if line.contains(difference.theirs) { difference.ours.to_owned() } else { line.to_owned() }
        };
        stderr = stderr.lines().map(|it| line(it) + "\n").collect();
    }
    Ended { stderr, ..theirs }
}

fn shown(ended: &Ended) -> String {
    format!("{:?}\n{}{}\n", ended.code, String::from_utf8_lossy(&ended.stdout), ended.stderr)
}

/// What a container does at a terminal.
const AT_TERMINAL: &str = r#"until test "$(stty size)" = "33 111"; do sleep 0.1; done
tty; test -t 0 && test -t 1 && test -t 2 && echo streams; trap 'echo interrupted' INT; echo ready
while :; do line=; read -r line && echo "heard $line"; test "$line" = end && exit 9; test "$line" = size && stty size; done"#;

/// A person at a terminal has the same talk with a container, and with a process that joins one, whatever the runtime is.
pub fn terminal(fixture: &Fixture, version: &str, engine: Engine) -> Result<String> {
    let name = engine.name;
    let engines = Engines::of_test(fixture, version, engine)?;
    for runtime in engine.runtimes {
        let begun = format!("{name} run --detach --name host tiny sh -c \"$WAITS\"");
        ensure!(engines.run(runtime, &begun)?.code == Some(0), "no container begins");
        for words in ["run --rm -it tiny", "exec -it host"] {
            let script = format!("{name} {words} sh -c '{}'", AT_TERMINAL.replace('\'', "'\\''"));
            let mut person = Person::new(engines.command(runtime, &script), 33, 111)?;
            talk(&mut person).with_context(|| format!("{words} with {runtime}"))?;
        }
        engines.run(runtime, &format!("{name} rm --force host"))?;
    }
    Ok("of a container, and of a process that joins it".to_owned())
}

fn talk(person: &mut Person) -> Result<()> {
    for shown in ["/dev/pts/", "streams", "ready"] {
        person.sees(shown)?;
    }
    person.types("hello\n")?;
    person.sees("heard hello")?;
    person.types("\x03")?;
    person.sees("interrupted")?;
    person.resizes(44, 122)?;
    person.types_until("size\n", "44 122")?;
    person.types("end\n")?;
    person.sees("heard end")?;
    let code = person.ends()?;
    ensure!(code == Some(9), "it ended with {code:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINES: [Engine; 3] = [PODMAN, DOCKER, CONTAINERD];

    #[test]
    fn every_difference_is_of_a_script_that_there_is() {
        let names: Vec<_> =
            ENGINES.iter().flat_map(|engine| scripts(engine.scripts, "")).map(|it| it.0).collect();
        for difference in DIFFERENCES {
            assert!(names.iter().any(|name| name.ends_with(difference.script)), "{}", difference.script);
        }
    }

    #[test]
    fn every_group_of_podman_s_scripts_is_run() {
        let tests = super::super::tests(false);
        let mut count = 0;
        for (name, script) in scripts(PODMAN.scripts, "") {
            count += 1;
            let group = name.split('/').next().unwrap();
            assert!(tests.iter().any(|(test, _)| test.name == format!("oci/podman/{group}")), "{name}");
            assert!(script.contains("podman "), "{name}");
        }
        assert!(count >= 30, "{count} scripts");
    }
}
