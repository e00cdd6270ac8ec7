//! `kite matrix` from outside, with a stand-in for `kite run` that runs the command on this host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kite::spec::RunSpec;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::support::attempt::Attempt;
use crate::support::child::{End, Running};
use crate::support::{KITE, until};

/// Runs a spec's command, as `kite run` would in a guest; `$spec` is the spec, and `$kernel` the kernel's name. A string of
/// JSON is one of bash between `$'` and `'`.
const STAND_IN: &str = r#"#!/usr/bin/env bash
[ "$*" = "run --spec -" ] || exit 125
spec=$(cat)
one() { sed -n "s/^ *\"$1\": \"\\(.*\\)\",\\?$/\\1/p" <<<"$spec"; }
kernel=$(one kernel); kernel=${kernel##*/}; export kernel spec
words=$(sed -n "/^ *\"argv\": \\[$/,/^ *\\],\\?$/ { s/'/\\\\'/g; s/^ *\"\\(.*\\)\",\\?$/\$'\\1'/p }" <<<"$spec")
eval "set -- ${words//$'\n'/ }"
exec "$@"
"#;

/// A folder with two kernels, a stand-in, and a matrix file.
struct Matrix {
    attempt: Attempt,
}

impl Matrix {
    fn new(commands: &str) -> Self {
        let this = Self { attempt: Attempt::new() };
        this.attempt.file("a", b"");
        this.attempt.file("b", b"");
        this.attempt.file("stand-in", STAND_IN.as_bytes());
        this.file(commands);
        this
    }

    fn file(&self, commands: &str) {
        let kernels = "[[kernel]]\nname = 'A'\npath = 'a'\n[[kernel]]\nname = 'B'\npath = 'b'\n";
        self.attempt.file("matrix.toml", format!("{kernels}{commands}").as_bytes());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.attempt.path(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // The script is an argument of sh: a file that a fork of this process may have open for writing cannot be run.
        let shell = self.path("sh-stand-in");
        if !shell.exists() {
            let made = Command::new("sh")
                .args(["-c", "cat \"$0\" >\"$1\" && chmod +x \"$1\""])
                .arg(self.path("stand-in"))
                .arg(&shell)
                .status();
            assert!(made.unwrap().success());
        }
        let mut command = Command::new(KITE);
        command.env_remove("GITHUB_ACTIONS").arg("matrix").arg("--program").arg(shell);
        command.arg(self.path("matrix.toml")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> End {
        self.attempt.end_of(&mut self.command(arguments))
    }
}

fn command(name: &str, run: &str) -> String {
    format!("[[command]]\nname = '{name}'\nrun = {run}\n")
}

/// Rows and cells of the table, without the times.
fn table(stdout: &str) -> Vec<Vec<String>> {
    let time = |cell: &str| cell.ends_with('s') && cell.starts_with(|char: char| char.is_ascii_digit());
    let cell = |cell: &str| {
        let words: Vec<_> = cell.split(' ').filter(|word| !time(word)).collect();
        words.join(" ")
    };
    let row =
        |line: &str| line.split("  ").filter(|c| !c.trim().is_empty()).map(|c| cell(c.trim())).collect();
    stdout.lines().map(row).collect()
}

fn is_there(process: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // One that has ended and waits for whoever reaps here is not.
    !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X'])
}

#[test]
fn every_command_runs_on_every_kernel_and_a_table_tells() {
    let commands = [command("boot", "['true']"), command("which", "'echo \"$kernel\"'")].concat();
    let matrix = Matrix::new(&commands);
    let end = matrix.run(&[]);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert_eq!(table(end.text()), [["kernel", "boot", "which"], ["A", "ok", "ok"], ["B", "ok", "ok"]]);
    let mut lines: Vec<_> =
        end.stderr.lines().map(|line| line.split([']', ',']).nth(1).unwrap().trim()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A/boot: ok", "A/which: ok", "B/boot: ok", "B/which: ok"]);
}

#[test]
fn the_cases_that_failed_are_named_below_the_table() {
    let ktap = "'echo TAP version 13; echo 1..3; echo ok 1 one; echo not ok 2 two; echo not ok 3 three'";
    let many = "'echo TAP version 13; echo 1..30; for n in $(seq 30); do echo not ok $n t$n; done'";
    let matrix = Matrix::new(&[command("c", ktap), command("many", many), command("x", "'exit 3'")].concat());
    let end = matrix.run(&[]);
    let lines: Vec<_> = end.text().lines().skip(3).collect();
    assert_eq!(lines[..2], ["", "A/c failed: two, three"], "{}", end.text());
    assert!(lines[2].starts_with("A/many failed: t1, t2, ") && lines[2].ends_with(", t20 and 10 more"));
    assert_eq!((lines.len(), lines[3]), (5, "B/c failed: two, three"), "{}", end.text());
}

#[test]
fn a_run_s_spec_says_what_a_command_line_would_and_is_all_of_its_input() {
    let options = "options = ['--memory=2G', '--cpus', '3', '--env=A=b', '--idle-timeout=5s', '-v']\n";
    // No pipe holds so much.
    let script = format!("printf \"%s\" \"$spec\"; cat; cat >&2 # {}", "x".repeat(70_000));
    let run = command("c", &format!("'{script}'"));
    let matrix = Matrix::new(&[&run, options, "timeout = '1m'\n"].concat());
    let folder = matrix.path("logs");
    // These defaults are for other runs.
    matrix.attempt.file("kite.toml", b"no-rng = true\n");
    let of_environment = |kite: &mut Command| {
        kite.current_dir(matrix.path(".")).env("KITE_SANDBOX", "auto,no-seccomp").env("KITE_KERNEL", "other");
        let output = kite.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    of_environment(&mut matrix.command(&["--output", folder.to_str().unwrap()]));
    for (kernel, path) in [("A", "a"), ("B", "b")] {
        let mut kite = Command::new(KITE);
        kite.args(["run", "--no-config", "--print-spec", "--kernel"]).arg(matrix.path(path));
        kite.args(["--timeout=1m", "--memory=2G", "--cpus=3", "--env=A=b", "--idle-timeout=5s", "-v"]);
        kite.args(["--", "sh", "-c", &script]);
        let [given, rest] =
            ["c.stdout", "c.stderr"].map(|it| fs::read(folder.join(kernel).join(it)).unwrap());
        let [given, printed] = [given, of_environment(&mut kite)].map(|it| RunSpec::from_json(&it).unwrap());
        assert_eq!((given, rest), (printed, Vec::new()), "{kernel}");
    }
}

#[test]
fn a_matrix_whose_output_cannot_be_written_fails_though_its_runs_pass() {
    let matrix = Matrix::new(&command("c", "'head -c 100000 /dev/zero | tr \"\\0\" x'"));
    let folder = matrix.path("logs");
    let kite = matrix.command(&["--output", folder.to_str().unwrap()]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 16; exec \"$@\"", "sh"]).arg(kite.get_program()).args(kite.get_args());
    let output = limited.env_remove("GITHUB_ACTIONS").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(
        stderr.contains("kite: cannot write ") && stderr.contains("c.stdout: File too large"),
        "{stderr}"
    );
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = matrix.command(&[]).stdout(Stdio::null()).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(125));
}

#[test]
fn the_exit_status_is_the_worst() {
    for (scripts, expected, told) in [
        (&["exit 0", "exit 3"][..], 3, "exit 3"),
        (&["kill -9 $$", "exit 3"], 125, "kite failed"),
        (&["exit 137", "exit 3"], 137, "SIGKILL"),
        (&["exit 3", "echo kite: the guest was ended: late >&2; exit 124"], 124, "timeout"),
        (&["exit 3", "exit 124"], 124, "exit 124"),
        (&["exit 124", "exit 255", "exit 3"], 255, "crash"),
        (&["exit 255", "exit 125"], 125, "kite failed"),
        (&["exit 127", "exit 0"], 127, "not found"),
        (&["exit 126", "exit 1"], 126, "not executable"),
        (&["echo TAP version 13; echo 1..2; echo ok 1; echo not ok 2", "exit 0"], 1, "1 of 2 failed"),
    ] {
        let commands: String = scripts
            .iter()
            .enumerate()
            .map(|(n, script)| command(&format!("c{n}"), &format!("'{script}'")))
            .collect();
        let end = Matrix::new(&commands).run(&[]);
        assert_eq!(end.status.code(), Some(expected), "{scripts:?}: {}", end.stderr);
        assert!(table(end.text())[2].iter().any(|cell| cell == told), "{scripts:?}: {}", end.text());
    }
}

#[test]
fn failed_cases_fail_a_run_as_the_rule_says() {
    let failing = "echo 1..1; echo not ok 1 a";
    let rule = |rule: &str, script: &str| {
        format!("{}fail-on-ktap = \"{rule}\"\n", command("c", &format!("'{script}'")))
    };
    for (script, own, options, expected, told) in [
        (failing, "auto", &[][..], 1, "1 of 1 failed"),
        (failing, "never", &[], 0, "ok, 1 of 1 cases failed"),
        (failing, "never", &["--fail-on-ktap=auto"], 1, "1 of 1 failed"),
        (failing, "always", &["--fail-on-ktap", "never"], 0, "ok, 1 of 1 cases failed"),
        ("true", "auto", &[], 0, "ok"),
        ("true", "always", &[], 1, "no KTAP"),
        ("echo \"1..0 # SKIP no device\"; exit 4", "auto", &[], 0, "skipped"),
        ("echo \"1..0 # SKIP no device\"; exit 4", "never", &[], 4, "exit 4"),
        ("exit 4", "auto", &[], 4, "exit 4"),
    ] {
        let end = Matrix::new(&rule(own, script)).run(options);
        assert_eq!(end.status.code(), Some(expected), "{script} {own}: {}", end.stderr);
        assert_eq!(table(end.text())[1], ["A", told], "{script} {own}");
    }
    let end = Matrix::new(&command("c", "'true'")).run(&[]);
    assert!(end.stderr.contains("; the command printed no KTAP or TAP document\n"), "{}", end.stderr);
    let end = Matrix::new(&format!("fail-on-ktap = 'never'\n{}", rule("sometimes", "true"))).run(&[]);
    assert_eq!(end.status.code(), Some(125));
}

#[test]
fn a_failed_run_shows_the_last_lines_of_what_it_printed() {
    let script =
        "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo line $i; done; printf \"\\\\033[31mred\" >&2; exit 1";
    let commands = [command("bad", &format!("'{script}'")), command("good", "'echo silence'")].concat();
    let end = Matrix::new(&commands).run(&["--jobs", "1"]);
    assert!(
        end.stderr.contains("A/bad| line 31\n") && end.stderr.contains("A/bad| line 50\n"),
        "{}",
        end.stderr
    );
    assert!(!end.stderr.contains("A/bad| line 30\n") && !end.stderr.contains("silence"), "{}", end.stderr);
    assert!(end.stderr.contains("A/bad| \\u{1b}[31mred\n"), "{}", end.stderr);
}

#[test]
fn verbose_shows_all_line_by_line() {
    let commands = command("c", "'echo one; echo two >&2; printf three'");
    let end = Matrix::new(&commands).run(&["--verbose"]);
    for line in ["A/c| one\n", "A/c| two\n", "A/c| three\n", "B/c| one\n"] {
        assert!(end.stderr.contains(line), "{}", end.stderr);
    }
}

#[test]
fn all_output_is_kept_as_it_was() {
    let matrix = Matrix::new(&command("c", "'printf \"a\\000b\\r\\n$kernel\"; printf x >&2'"));
    let folder = matrix.path("logs");
    let status =
        matrix.command(&["--output", folder.to_str().unwrap()]).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read(folder.join("A/c.stdout")).unwrap(), b"a\0b\r\na");
    assert_eq!(fs::read(folder.join("B/c.stdout")).unwrap(), b"a\0b\r\nb");
    assert_eq!(fs::read(folder.join("A/c.stderr")).unwrap(), b"x");
    // Again, and into a trap.
    let precious = matrix.attempt.file("precious", b"precious");
    fs::remove_file(folder.join("A/c.stdout")).unwrap();
    symlink(&precious, folder.join("A/c.stdout")).unwrap();
    let output = matrix.command(&["--output", folder.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("logs/A/c.stdout: it is a symbolic link"), "{stderr}");
    assert_eq!(fs::read(precious).unwrap(), b"precious");
    assert_eq!(fs::read(folder.join("B/c.stdout")).unwrap(), b"a\0b\r\nb");
}

#[test]
fn one_junit_file_has_a_suite_for_every_run() {
    let commands = [
        command("ktap", "'echo KTAP version 1; echo 1..2; echo ok 1 x; echo \"not ok 2 y ]]>\"'"),
        command("late", "'echo kite: the guest was ended: it took 5s >&2; exit 124'"),
    ];
    let matrix = Matrix::new(&commands.concat());
    let path = matrix.path("junit.xml");
    let output = matrix.command(&["--junit", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(124));
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.matches("<testsuite ").count(), 4, "{text}");
    for expected in [
        "<testsuites name=\"kite\" tests=\"6\" failures=\"2\" errors=\"2\" skipped=\"0\"",
        "<testsuite name=\"A/ktap\" tests=\"2\" failures=\"1\"",
        "<testcase name=\"y ]]&gt;\" classname=\"B/ktap\"",
        "<testcase name=\"B/late\" classname=\"B/late\"",
        "<error message=\"it took 5s\"",
        "<system-err>kite: the guest was ended: it took 5s\n</system-err>",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn a_run_that_fails_leaves_a_picture_that_its_suite_names() {
    let place = r#"picture=${spec##*screenshot_on_failure\": \"}; picture=${picture%%\"*}"#;
    let run = format!("'{place}; case $kernel in a) echo png >\"$picture\"; exit 1;; esac'");
    let matrix = Matrix::new(&format!("{}options = ['--screen']\n", command("c", &run)));
    let (logs, path) = (matrix.path("logs"), matrix.path("junit.xml"));
    let [logs, junit] = [&logs, &path].map(|path| path.to_str().unwrap());
    fs::create_dir_all(format!("{logs}/B")).unwrap();
    fs::write(format!("{logs}/B/c.png"), "of before").unwrap();
    let arguments = ["--output", logs, "--screenshot-on-failure", "--junit", junit];
    let output = matrix.command(&arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&path).unwrap();
    let line = format!("<system-out>[[ATTACHMENT|{logs}/A/c.png]]</system-out>");
    assert!(text.contains(&line) && text.matches("ATTACHMENT").count() == 1, "{text}");
    assert!(!Path::new(logs).join("B/c.png").exists());
}

#[test]
fn pictures_need_a_screen_and_a_folder() {
    let matrix = Matrix::new(&command("c", "['true']"));
    matrix.run(&["--screenshot-on-failure"]).assert_refusal("--output");
    let logs = matrix.path("logs");
    let arguments = ["--screenshot-on-failure", "--output", logs.to_str().unwrap()];
    let output = matrix.command(&arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(125) && stderr.contains("add --screen to options"), "{stderr}");
}

#[test]
fn a_junit_path_that_cannot_be_written_is_told_before_anything_runs() {
    let matrix = Matrix::new(&command("c", "'touch ran'"));
    symlink("elsewhere", matrix.path("link")).unwrap();
    for (path, expected) in [
        ("link", "is a symbolic link"),
        ("none/x.xml", "--junit: cannot write none/x.xml: there is no folder none"),
        (".", "not a reg"),
    ] {
        matrix.run(&["--junit", path]).assert_refusal(expected);
    }
}

#[test]
fn github_gets_an_annotation_and_no_command_of_the_guest_s() {
    let matrix = Matrix::new(&command("c", "'echo \"::warning::x\"; printf \"::add-mask::y\"; exit 7'"));
    let mut command = matrix.command(&[]);
    let stderr = String::from_utf8(command.env("GITHUB_ACTIONS", "true").output().unwrap().stderr).unwrap();
    let commands: Vec<_> = stderr.lines().filter(|line| line.trim_start().starts_with("::")).collect();
    assert_eq!(commands.len(), 2, "{stderr}");
    assert!(commands.contains(&"::error title=A/c::exit status 7"), "{stderr}");
    assert!(!matrix.run(&[]).stderr.contains("::error"));
}

#[test]
fn no_more_run_at_a_time_than_jobs_and_no_fewer() {
    let one = command("one", "'mkdir lock && sleep 0.05 && rmdir lock'");
    let alone = Matrix::new(&[one, command("two", "'mkdir lock && sleep 0.05 && rmdir lock'")].concat());
    let end = alone.run(&["--jobs", "1"]);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    // As many as the host has CPUs for, of guests that have more than it has.
    for options in ["'--cpus=100000'", "'-c', '100000'"] {
        let text = fs::read_to_string(alone.path("matrix.toml")).unwrap();
        let text = text.lines().filter(|line| !line.starts_with("options")).collect::<Vec<_>>().join("\n");
        alone.attempt.file("matrix.toml", format!("options = [{options}]\n{text}").as_bytes());
        let end = alone.run(&[]);
        assert_eq!(end.status.code(), Some(0), "{options}: {}", end.stderr);
    }
    // Each waits for the other.
    let script = "'touch $kernel.here; i=0; while [ ! -e a.here ] || [ ! -e b.here ]; do i=$((i+1)); \
        [ $i -lt 1000 ] || exit 1; sleep 0.02; done'";
    let together = Matrix::new(&command("meet", script));
    let output = together.command(&["--jobs", "2"]).current_dir(together.path(".")).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_environment_and_arguments_arrive_as_they_are() {
    let matrix = Matrix::new(&command(
        "c",
        "['sh', '-c', 'printf \"<%s>\" \"$@\"', 'x', 'a b', '', '$HOME;\"', '--']",
    ));
    let end = matrix.run(&["--verbose"]);
    assert!(end.stderr.contains("A/c| <a b><><$HOME;\"><-->\n"), "{}", end.stderr);
}

#[test]
fn endless_output_fits_into_bounded_memory() {
    let commands = [
        command("zeros", "'head -c 300000000 /dev/zero'"),
        command("ktap", "'echo KTAP version 1; yes \"not ok 1 x\" | head -c 30000000'"),
    ];
    let matrix = Matrix::new(&commands.concat());
    let inner = matrix.command(&["--jobs", "1"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -d 150000 && exec \"$@\"", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    let end = matrix.attempt.end_of(&mut limited);
    assert_eq!(end.status.code(), Some(1), "{}", end.stderr);
    assert_eq!(table(end.text())[1], ["A", "ok", "50001 of 50001 failed"]);
}

/// A matrix whose runs note their processes in `pids` and then wait for ever, once they all do.
fn sleeping(script: &str) -> (Matrix, Running, Vec<i32>) {
    let matrix = Matrix::new(&command("sleep", script));
    let mut command = matrix.command(&["--jobs", "2", "--junit", "junit.xml"]);
    command.current_dir(matrix.path(".")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = Running::spawn(&mut command);
    let pids = || {
        let text = fs::read_to_string(matrix.path("pids")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect::<Vec<i32>>()
    };
    until("the last run", || pids().len() == 4);
    let pids = pids();
    (matrix, child, pids)
}

/// Two processes each, of which the shell waits for one.
const SLEEP: &str = "'sleep 1000 & printf \"%s\\n%s\\n\" $! $$ >>pids; wait'";

#[test]
fn ctrl_c_stops_all_runs_and_tells_what_was_done() {
    let (matrix, child, pids) = sleeping(SLEEP);
    killpg(Pid::from_raw(child.child_id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let end = child.end();
    assert_eq!(end.status.signal(), Some(Signal::SIGINT as i32));
    assert_eq!(table(end.text())[1..], [["A", "stopped"], ["B", "stopped"]]);
    until("the end of the runs", || !pids.iter().any(|pid| is_there(*pid)));
    let junit = fs::read_to_string(matrix.path("junit.xml")).unwrap();
    assert_eq!(junit.matches("<error message=\"kite failed: the run was stopped\"").count(), 2, "{junit}");
}

#[test]
fn runs_that_ignore_it_are_made_to_stop() {
    let (_matrix, child, pids) =
        sleeping("'trap \"\" TERM INT; sleep 1000 & printf \"%s\\n%s\\n\" $! $$ >>pids; wait; sleep 1000'");
    child.signal(Signal::SIGTERM);
    assert_eq!(child.end().status.signal(), Some(Signal::SIGTERM as i32));
    until("the end of the runs", || !pids.iter().any(|pid| is_there(*pid)));
}

#[test]
fn runs_end_with_a_matrix_that_is_killed() {
    // A process notes itself: a signal to one that is about to become another program may be lost.
    let script = "'trap \"kill \\$!; exit\" TERM; sh -c \"echo \\$\\$ >>pids; exec sleep 1000\" & \
        echo $$ >>pids; wait'";
    let (_matrix, mut child, pids) = sleeping(script);
    child.kill();
    child.wait();
    until("the end of the runs", || !pids.iter().any(|pid| is_there(*pid)));
}

#[test]
fn a_run_that_leaves_a_process_behind_is_not_waited_for() {
    let matrix = Matrix::new(&command("c", "'sleep 1000 & echo $! >>pids'"));
    let status = matrix.command(&["--jobs", "2"]).current_dir(matrix.path(".")).output().unwrap().status;
    assert!(status.success());
    let pids = BufReader::new(fs::File::open(matrix.path("pids")).unwrap());
    let pids: Vec<i32> = pids.lines().map(|line| line.unwrap().parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    until("their end", || !pids.iter().any(|pid| is_there(*pid)));
}

#[test]
fn files_that_are_wrong_are_refused_in_one_line() {
    let kernel = "[[kernel]]\nname = 'A'\npath = 'a'\n";
    let boot = command("boot", "['true']");
    let with = |line: &str| format!("{line}\n{kernel}{boot}");
    let kernel_with = |line: &str| format!("{kernel}{line}\n{boot}");
    let boot_with = |line: &str| format!("{kernel}{boot}{line}\n");
    let name = |name: &str| format!("{kernel}{}", command(name, "['true']"));
    let run = |run: &str| format!("{kernel}{}", command("boot", run));
    for (text, expected) in [
        (String::new(), "m.toml: there is no [[kernel]]"),
        (boot.clone(), "there is no [[kernel]]"),
        (kernel.to_owned(), "there is no [[command]]"),
        ("kernel = []\n".to_owned(), "there is no [[kernel]]"),
        (with("= 1"), "m.toml:1: "),
        (with("x = 1"), "m.toml:1: unknown field `x`, expected one of"),
        (kernel_with("image = 'a'"), "m.toml:4: unknown field `image`"),
        (boot_with("wait = 1"), "unknown field `wait`"),
        (format!("{kernel}[[command]]\nname = 'x'\n"), "command x: run is empty"),
        (with("jobs = 0"), "jobs is 0"),
        (with("jobs = -1"), "m.toml:1: invalid value"),
        (with("jobs = 'two'"), "invalid type"),
        (with("timeout = 90"), "invalid type"),
        (with("timeout = '5 minutes'"), "timeout \"5 minutes\": a duration is a number"),
        (boot_with("timeout = ''"), "command boot: timeout \"\": a duration is"),
        (with("timeout = '0s'"), "over at once"),
        (with("options = '--cpus 2'"), "invalid type"),
        (with("options = ['--kernel=x']"), "options: --kernel does not belong here"),
        (kernel_with("options = ['--']"), "kernel A: options: -- does not belong here"),
        (boot_with("options = ['--junit', 'x']"), "command boot: options: --junit does not belong here"),
        (with("options = ['-k', 'a']"), "options: -k does not belong here; the kernel has a key of its own"),
        (with("options = ['-vka']"), "kernel A, command boot: options: -k does not belong here"),
        (with("options = ['--print-spec']"), "options: --print-spec does not belong here"),
        (with("options = ['--spec=a']"), "options: the argument '--spec <FILE>' cannot be used with"),
        (with("options = ['--initrd=a']"), "options: a command needs kite's own initrd"),
        (
            with("image = 'a'\noptions = ['--root=/']"),
            "'--root <DIR|disk>' cannot be used with '--image <IMAGE>'",
        ),
        (with("options = ['a']"), "kernel A, command boot: options: unexpected argument 'a'"),
        (
            with("options = ['--memory', '1']"),
            "kernel A, command boot: options: invalid value '1' for '--memory",
        ),
        (boot_with("options = ['--memroy=1G']"), "options: there is no option '--memroy'"),
        (with("options = ['--help']"), "options: they only ask for help"),
        (kernel_with("modules = 'none'"), "kernel A: modules: cannot look at"),
        (kernel_with("modules = 'a'"), "modules: "),
        ("[[kernel]]\nname = 'A'\npath = 'none'\n".to_owned() + &boot, "kernel A: path: cannot look at"),
        ("[[kernel]]\nname = 'A'\npath = '.'\n".to_owned() + &boot, "is a folder"),
        ("[[kernel]]\nname = 'A'\npath = ''\n".to_owned() + &boot, "kernel A: path is empty"),
        (format!("{kernel}{kernel}{boot}"), "kernel A: there are two of this name"),
        (format!("{kernel}{boot}{boot}"), "command boot: there are two of this name"),
        (name("../x"), "command \"../x\": a name is letters"),
        (name(".x"), "a name is"),
        (name(""), "command \"\": a name is"),
        (name("a b"), "a name is"),
        (name(&"x".repeat(65)), "at most 64 bytes"),
        (run("[]"), "command boot: run is empty"),
        (run("''"), "command boot: run is empty"),
        (run("' '"), "run is empty"),
        (run("['']"), "run is empty"),
        (run("1"), "expected a list of strings, or a string for sh -c"),
        (run("[1]"), "expected a string"),
        (run("[\"a\\u0000\"]"), "no argument can hold a NUL"),
    ] {
        let attempt = Attempt::new();
        attempt.file("a", b"");
        attempt.file("m.toml", text.as_bytes());
        let end = attempt.run(["matrix", "m.toml"]);
        assert!(end.stderr.contains(expected), "{text}: {expected:?} is not in {:?}", end.stderr);
        end.assert_refusal(expected);
    }
}

#[test]
fn files_that_are_none_and_options_that_are_wrong_are_refused() {
    let attempt = Attempt::new();
    attempt.file("binary", b"\xff\xfe");
    attempt.sparse("long", b"", 2 << 20);
    attempt.refused(["matrix"], "FILE");
    attempt.refused(["matrix", "none.toml"], "cannot read none.toml: No such file");
    attempt.refused(["matrix", "."], "cannot read .");
    attempt.refused(["matrix", "binary"], "binary: is not UTF-8");
    attempt.refused(["matrix", "long"], "is longer than a matrix may be");
    attempt.refused(["matrix", "x", "--jobs", "0"], "--jobs");
    attempt.refused(["matrix", "x", "--jobs", "many"], "--jobs");
    let matrix = Matrix::new(&command("c", "['true']"));
    matrix.attempt.file("file", b"");
    matrix.run(&["--output", "file"]).assert_refusal("cannot make file/A");
}

#[test]
fn a_program_that_is_not_there_fails_every_run() {
    let matrix = Matrix::new(&command("c", "['true']"));
    let file = matrix.path("matrix.toml");
    let end = matrix.attempt.run([Path::new("matrix"), "--program".as_ref(), "./none".as_ref(), &file]);
    assert_eq!(end.status.code(), Some(125));
    assert_eq!(table(end.text())[1..], [["A", "kite failed"], ["B", "kite failed"]]);
}

#[test]
fn a_run_is_a_kite_that_says_itself_what_is_wrong() {
    let matrix = Matrix::new(&command("c", "['true']"));
    let end = matrix.attempt.run(["matrix", "matrix.toml"]);
    assert_eq!(table(end.text())[1..], [["A", "kite failed"], ["B", "kite failed"]]);
    assert!(end.stderr.contains("A/c| kite: cannot boot a: it looks like an empty file"), "{}", end.stderr);
}

#[test]
fn the_reference_s_example_is_a_matrix() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/doc/reference.md");
    let reference = fs::read_to_string(reference).unwrap();
    let example = reference.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let matrix = Matrix::new("");
    for name in ["6.1/bzImage", "6.12/bzImage", "6.1/modules/x"] {
        matrix.attempt.file(name, b"");
    }
    matrix.attempt.file("matrix.toml", example.as_bytes());
    matrix.attempt.file("stand-in", b"#!/bin/sh\nexit 0\n");
    let end = matrix.run(&[]);
    assert_eq!(table(end.text())[0], ["kernel", "boot", "timers"], "{}", end.stderr);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
}

#[test]
fn help_tells_the_file_s_keys_and_the_order_of_statuses() {
    let end = Attempt::new().run(["matrix", "--help"]);
    assert_eq!(end.status.code(), Some(0));
    for word in
        ["[[kernel]]", "[[command]]", "modules", "timeout", "jobs", "from good to bad", "--output <DIR>"]
    {
        assert!(end.text().contains(word), "{word}: {}", end.text());
    }
    assert!(!end.text().contains("--program"), "{}", end.text());
}
