//! The commands of the documentation, run as they are written, in folders that have what they name.

mod folders;

use std::fmt::Write;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use self::folders::Folders;
use super::command::ended;
use super::{Fixture, NotHere};
use crate::host;

#[path = "../../../../tests/docs/page.rs"]
mod page;

/// Programs that commands use, with their packages.
pub const PROGRAMS: [(&str, &str); 5] =
    [("make", "make"), ("git", "git"), ("curl", "curl"), ("jq", "jq"), ("man", "man-db")];

/// What is special about commands that have these words.
struct Special {
    words: &'static str,
    /// Words that are others here, where a command names what only its reader has.
    changes: &'static [(&'static str, &'static str)],
    /// The exit codes that are right.
    codes: &'static [i32],
    /// What standard output or error has.
    said: &'static str,
}

const USUAL: Special = Special { words: "", changes: &[], codes: &[0], said: "" };

/// Benchmarks of few runs, with the report that the next is compared with.
const BEFORE_EXITS: &str = "kite bench exits --only pio.in.1 --time 100ms --json before.json && \
                            kite bench exits --only pio.in.1 --time 100ms";
const BEFORE_BOOT: &str = "kite bench boot --runs 3 --json before.json && kite bench boot --runs 3";

/// The first that fits counts.
const SPECIALS: &[Special] = &[
    // A manual of a benchmark is none.
    Special { words: "kite man", ..USUAL },
    Special { words: "-- uname", said: "deb", ..USUAL },
    Special { words: "git bisect run", said: "is the first bad commit", ..USUAL },
    Special { words: "cat /etc/os-release", said: "Debian", ..USUAL },
    Special { words: "curl http://example.org/", said: "served", ..USUAL },
    // Debian's kernels read no MP table.
    Special { words: "--no-acpi", changes: &[("--no-acpi", "--no-acpi --append nolapic")], ..USUAL },
    Special { words: "initrd.img", said: "guest: status 0", ..USUAL },
    Special { words: "rootfs.cpio.gz", said: "kite: kernel", ..USUAL },
    Special { words: "./ktap-test", said: "ok 1", ..USUAL },
    Special { words: "kite matrix", said: "kernel", ..USUAL },
    Special { words: "out/lib/modules/6.12.0", changes: &[("6.12.0", "$RELEASE")], ..USUAL },
    Special { words: "x86/vmexit.flat", said: "1\n", ..USUAL },
    Special { words: "kvm-unit-tests", said: "PASS", ..USUAL },
    Special { words: "--screenshot-on-failure", codes: &[1], ..USUAL },
    Special {
        words: "kite screenshot",
        changes: &[("kite screenshot", "machine installer --screen && kite screenshot")],
        ..USUAL
    },
    Special { words: "kite pause", changes: &[("kite pause", "machine build && kite pause")], ..USUAL },
    Special {
        words: "kite resume",
        changes: &[("kite resume", "machine build && kite pause build && kite resume")],
        ..USUAL
    },
    Special { words: "kite stop", changes: &[("kite stop", "machine build && kite stop")], ..USUAL },
    Special { words: "--stats=", ..USUAL },
    Special { words: "--stats", said: "KVM's own counters", ..USUAL },
    // There may be another kite, or none.
    Special { words: "sudo kite inspect 4242", changes: &[("sudo ", ""), ("4242", "$$")], ..USUAL },
    Special { words: "kite inspect --calls", said: "seccomp", ..USUAL },
    Special { words: "kite inspect", codes: &[0, 1], ..USUAL },
    Special { words: "kite doctor", codes: &[0, 1], ..USUAL },
    Special { words: "io=/dev/sda:", changes: &[("/dev/sda", "$DISK")], ..USUAL },
    // A user's service manager is where a user is logged in: `limits/delegated` makes such a group itself.
    Special {
        words: "systemd-run",
        changes: &[("systemd-run --user --scope -p Delegate=yes ", "")],
        ..USUAL
    },
    // All payloads take minutes on an emulated machine, and it has one processor.
    Special {
        words: "--cpus 2,3 --rt",
        changes: &[("'pio.*,mmio.*' --time 5s --cpus 2,3", "'pio.in.1' --time 100ms --cpus 0,0")],
        ..USUAL
    },
    Special { words: "--payload pio.elf", ..USUAL },
    Special {
        words: "bench exits --compare",
        changes: &[("kite bench exits", BEFORE_EXITS)],
        codes: &[0, 1],
        ..USUAL
    },
    Special {
        words: "bench exits",
        changes: &[("bench exits ", "bench exits --only pio.in.1,cpuid --time 100ms ")],
        said: "pio.in.1",
        ..USUAL
    },
    Special {
        words: "bench boot --compare before.json",
        changes: &[("kite bench boot", BEFORE_BOOT)],
        codes: &[0, 1],
        ..USUAL
    },
    Special { words: "--runs 30", changes: &[("--runs 30", "--runs 3")], said: "power off", ..USUAL },
    Special {
        words: "bench boot",
        changes: &[("bench boot", "bench boot --runs 3")],
        said: "power off",
        ..USUAL
    },
];

/// What is run elsewhere, or cannot be: commands with these words, and why.
const ELSEWHERE: [(&str, &str); 16] = [
    ("kite run --image", "images come from registries, and `image/command` makes its own"),
    ("kite image", "images come from registries, and a test has one of its own"),
    ("skopeo copy", "it is other software"),
    ("docker save", "it is other software"),
    ("podman save", "it is other software"),
    ("buildah push", "it is other software"),
    ("kite-oci", "tests of engines have a link of their own"),
    ("--runtime=kite", "tests of engines have a runtime by that name"),
    ("cargo xtask", "they are parts of the nightly run, and a test of this program's reads each"),
    ("cargo install", "`package` installs from a clone"),
    ("cargo build", "it has built what is tested"),
    ("cargo test --test docs", "it is a test"),
    ("sha256sum --check", "a test of `package` does"),
    ("tar xf", "a test of `package` lists what is in it"),
    ("apt install", "a test of `package` unpacks it"),
    ("findings/NAME.sh", "they are about other software"),
];

/// Runs each command of a page.
pub fn page(fixture: &Fixture, path: &str) -> Result<String> {
    for (program, _) in PROGRAMS {
        if host::program(program).is_none() {
            return Err(NotHere(format!("there is no {program}")).into());
        }
    }
    let text = std::fs::read_to_string(host::root().join(path)).with_context(|| format!("reading {path}"))?;
    let folders = Folders::new(fixture)?;
    let (mut failed, mut count) = (String::new(), 0);
    for line in page::Page::read(&text).commands {
        if ELSEWHERE.iter().any(|(words, _)| line.contains(words)) {
            continue;
        }
        count += 1;
        let start = Instant::now();
        if let Err(why) = run(&folders, &line) {
            writeln!(failed, "{line}\n  {why:#}").context("noting a failure")?;
        }
        if fixture.shown {
            eprintln!("{:6.1} s  {line}", start.elapsed().as_secs_f64());
        }
    }
    ensure!(failed.is_empty(), "{failed}");
    Ok(format!("{count} commands"))
}

fn run(folders: &Folders, line: &str) -> Result<()> {
    let special = SPECIALS.iter().find(|special| line.contains(special.words)).unwrap_or(&USUAL);
    let line = special.changes.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", folders::ENTER, "bash"]).arg(&line);
    folders.describe(&mut command);
    let ended = ended(command, b"")?;
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let is_right = ended.code.is_some_and(|code| special.codes.contains(&code));
    let said = stdout.contains(special.said) || ended.stderr.contains(special.said);
    ensure!(
        is_right && said,
        "{:?} instead of {:?} with {:?}: {ended:#?}",
        ended.code,
        special.codes,
        special.said
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages, with their commands.
    fn commands() -> Vec<(String, Vec<String>)> {
        let doc = std::fs::read_dir(host::root().join("resources/doc")).unwrap();
        let doc = doc.map(|entry| format!("resources/doc/{}", entry.unwrap().file_name().display()));
        let others =
            ["README.md", ".github/CONTRIBUTING.md", "findings/README.md", "resources/action/README.md"];
        let paths = doc.chain(others.map(str::to_owned)).filter(|path| path.ends_with(".md"));
        let read = |path: String| {
            let text = std::fs::read_to_string(host::root().join(&path)).unwrap();
            (path, page::Page::read(&text).commands)
        };
        paths.map(read).collect()
    }

    #[test]
    fn every_exception_is_of_a_command_that_there_is() {
        let commands: Vec<_> = commands().into_iter().flat_map(|(_, commands)| commands).collect();
        let all = SPECIALS.iter().map(|special| special.words).chain(ELSEWHERE.map(|(words, _)| words));
        for words in all {
            assert!(commands.iter().any(|line| line.contains(words)), "{words}");
        }
        for special in SPECIALS {
            for line in commands.iter().filter(|line| line.contains(special.words)) {
                let first = SPECIALS.iter().find(|it| line.contains(it.words)).map(|it| it.words);
                let changes = special.changes.iter().all(|(from, _)| line.contains(from));
                assert!(first != Some(special.words) || changes, "{line}: {}", special.words);
            }
        }
    }

    #[test]
    fn every_page_with_commands_is_run_or_all_of_it_elsewhere() {
        let run: Vec<_> = super::super::tests(false).iter().map(|(test, _)| test.to_string()).collect();
        for (path, commands) in commands() {
            let is_elsewhere = |line: &String| ELSEWHERE.iter().any(|(words, _)| line.contains(words));
            let stem = path.rsplit('/').next().unwrap().trim_end_matches(".md").to_lowercase();
            let is_run = run.contains(&format!("docs/{stem}"));
            assert!(is_run || commands.iter().all(is_elsewhere), "{path}: add a test docs/{stem}");
        }
    }
}
