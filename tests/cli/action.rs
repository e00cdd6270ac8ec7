//! The GitHub Action: its steps with a stand-in for everything that they call, and its description.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::{root, skipped};

const ACTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/action");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/action/run.sh");

/// A runner's folders, with stand-ins on PATH before what the system has.
struct Runner {
    folder: TempDir,
}

impl Runner {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(this.path("bin")).unwrap();
        fs::create_dir(this.path("temp")).unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program of this name that is this shell script.
    fn stand_in(&self, name: &str, script: &str) {
        // By another process: what this one has open for writing, a fork of it may have too, and then it cannot be run.
        let path = self.path("bin").join(name);
        let make = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
        assert!(Command::new("sh").args(["-c", make]).arg(path).arg(script).status().unwrap().success());
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn step(&self, step: &str, environment: &[(&str, &str)]) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(SCRIPT).arg(step).current_dir(self.folder.path()).env("PATH", path);
        command.env("GITHUB_ACTION_PATH", ACTION).env("RUNNER_TEMP", self.path("temp"));
        command.env("GITHUB_PATH", self.path("github-path")).env("GITHUB_OUTPUT", self.path("github-output"));
        command.envs(environment.iter().copied()).output().unwrap()
    }

    /// What kite was called with.
    fn arguments(&self) -> Vec<String> {
        self.read("arguments").split_terminator('\0').map(str::to_owned).collect()
    }
}

/// Notes its arguments and ends with this status.
fn kite(status: u8) -> String {
    format!("printf '%s\\0' \"$@\" >arguments; env >environment; exit {status}")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn inputs_reach_kite_as_they_are_whatever_they_hold() {
    let runner = Runner::new();
    runner.stand_in("kite", &kite(0));
    let hostile = "a b'\"$(touch pwned)`touch pwned`; touch pwned #\n* ${IFS}\\";
    let options = "\n  --memory=1G  \r\n# --not-this\n--append\nquiet $(touch pwned) *\n--net user\n--cpus=2";
    let environment = [
        ("INPUT_COMMAND", hostile),
        ("INPUT_KERNEL", "-o dd/$(touch pwned) *"),
        ("INPUT_JUNIT", "a b.xml"),
        ("INPUT_SCREENSHOT", "a $(touch pwned).png"),
        ("INPUT_OPTIONS", options),
    ];
    let output = runner.step("run", &environment);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let expected = [
        "run",
        "--kernel=-o dd/$(touch pwned) *",
        "--junit=a b.xml",
        "--screenshot-on-failure=a $(touch pwned).png",
        "--memory=1G",
        "--append",
        "quiet $(touch pwned) *",
        "--net user",
        "--cpus=2",
        "--",
        "sh",
        "-c",
        hostile,
    ];
    assert_eq!(runner.arguments(), expected);
    assert!(!runner.path("pwned").exists());
    assert!(!runner.read("environment").contains("INPUT_"));
}

#[test]
fn only_the_command_is_needed() {
    let runner = Runner::new();
    runner.stand_in("kite", &kite(0));
    let nothing =
        [("INPUT_COMMAND", "true"), ("INPUT_KERNEL", ""), ("INPUT_JUNIT", ""), ("INPUT_OPTIONS", "")];
    for environment in [&nothing[..], &nothing[..1]] {
        assert_eq!(runner.step("run", environment).status.code(), Some(0));
        assert_eq!(runner.arguments(), ["run", "--", "sh", "-c", "true"]);
    }
}

#[test]
fn the_step_ends_with_kite_s_status_and_tells_it() {
    for status in [0, 1, 124, 125, 255] {
        let runner = Runner::new();
        runner.stand_in("kite", &kite(status));
        assert_eq!(runner.step("run", &[("INPUT_COMMAND", "true")]).status.code(), Some(status.into()));
        assert_eq!(runner.read("github-output"), format!("status={status}\n"));
    }
}

#[test]
fn a_step_that_cannot_be_done_says_why() {
    let runner = Runner::new();
    runner.stand_in("kite", &kite(0));
    for (step, environment, expected) in [
        ("run", &[][..], "command is empty"),
        ("run", &[("INPUT_COMMAND", "")][..], "command is empty"),
        ("install", &[("KITE_URL", "file:///etc/passwd")][..], "only https is fetched"),
        ("install", &[("KITE_URL", "--config=x")][..], "only https is fetched"),
        ("bogus", &[][..], "usage"),
    ] {
        let output = runner.step(step, environment);
        assert_eq!(output.status.code(), Some(125), "{step}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert_eq!(runner.arguments(), Vec::<String>::new());
}

/// Writes a kite to where `--output` says.
const CURL: &str = "while [ \"$1\" != --output ]; do shift; done; printf '%s' \"$4\" >url; \
    printf '#!/bin/sh\\necho kite 1' >\"$2\"";

#[test]
fn a_fetched_kite_is_checked_and_put_on_the_path() {
    let runner = Runner::new();
    runner.stand_in("curl", CURL);
    let url = "https://example.org/kite x";
    let output = runner.step("install", &[("KITE_URL", url)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kite 1\n");
    assert_eq!(runner.read("url"), url);
    let folder = runner.path("temp/kite-action/bin");
    assert_eq!(runner.read("github-path"), format!("{}\n", folder.display()));

    let sum = Command::new("sha256sum").arg(folder.join("kite")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_uppercase();
    assert!(runner.step("install", &[("KITE_URL", url), ("KITE_SHA256", &sum)]).status.success());
    fs::remove_file(folder.join("kite")).unwrap();
    let output = runner.step("install", &[("KITE_URL", url), ("KITE_SHA256", &"0".repeat(64))]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("sha256: what was fetched has "), "{}", stderr(&output));
    assert!(!folder.join("kite").exists());
}

#[test]
fn a_fetch_that_fails_installs_nothing() {
    let runner = Runner::new();
    runner.stand_in("curl", "exit 22");
    let output = runner.step("install", &[("KITE_URL", "https://example.org/kite")]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(runner.read("github-path"), "");
}

#[test]
fn without_a_url_kite_is_built_from_the_checkout() {
    let runner = Runner::new();
    let cargo = "pwd >&2; mkdir -p \"$CARGO_TARGET_DIR/x/release\"; \
        printf '#!/bin/sh\\necho built' >\"$CARGO_TARGET_DIR/x/release/kite\"";
    runner.stand_in("cargo", cargo);
    let output = runner.step("install", &[("KITE_URL", "")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "built\n");
    let checkout = fs::canonicalize(env!("CARGO_MANIFEST_DIR")).unwrap();
    assert_eq!(Path::new(stderr(&output).trim()), checkout);
}

#[test]
fn a_udev_rule_makes_kvm_accessible_to_a_user_who_has_no_access() {
    needs!(root());
    let runner = Runner::new();
    runner.stand_in(
        "sudo",
        "echo \"$*\" >>\"$NOTES/sudo\"; [ \"$1\" != tee ] || cat >\"$NOTES/rule\"; \
        [ \"$2\" != trigger ] || touch \"$NOTES/ran\"",
    );
    for name in [".", "bin"] {
        fs::set_permissions(runner.path(name), Permissions::from_mode(0o777)).unwrap();
    }
    // A /dev with a kvm that is root's only, and a user who is not root.
    let script = "mount -t tmpfs none /dev && touch /dev/kvm /dev/null && chmod 600 /dev/kvm && chmod 666 /dev/null && \
        exec setpriv --reuid 65534 --regid 65534 --clear-groups bash \"$0\" kvm";
    let path = format!("{}:{}", runner.path("bin").display(), std::env::var("PATH").unwrap());
    let copy = runner.path("run.sh");
    fs::copy(SCRIPT, &copy).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(copy).env("PATH", path).env("NOTES", runner.path("."));
    let output = command.output().unwrap();
    if stderr(&output).contains("unshare failed") || stderr(&output).contains("mount:") {
        return skipped(test_name!(), stderr(&output).trim());
    }
    // The stand-in mends nothing, which is noticed.
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(stderr(&output).contains("/dev/kvm is still not accessible"), "{}", stderr(&output));
    let rule = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"\n";
    assert_eq!(runner.read("rule"), rule);
    let calls = "tee /etc/udev/rules.d/99-kite-kvm.rules\nudevadm control --reload-rules\n\
        udevadm trigger --name-match=kvm\nudevadm settle\n";
    assert_eq!(runner.read("sudo"), calls);
}

/// The description's text.
fn description() -> String {
    fs::read_to_string(format!("{ACTION}/action.yml")).unwrap()
}

#[test]
fn the_description_is_yaml_and_has_its_parts() {
    let documents = yaml_rust2::YamlLoader::load_from_str(&description()).unwrap();
    let action = &documents[0];
    assert_eq!(action["runs"]["using"].as_str(), Some("composite"));
    let inputs = action["inputs"].as_hash().unwrap();
    for (name, input) in inputs {
        assert!(input["description"].as_str().is_some_and(|text| !text.is_empty()), "{name:?}");
        assert!(
            input["required"].as_bool() == Some(true) || input["default"].as_str() == Some(""),
            "{name:?}"
        );
    }
    let steps = action["runs"]["steps"].as_vec().unwrap();
    let mut used = String::new();
    for step in steps {
        // What is in `run` becomes a script: no input may be there, only in the environment.
        let run = step["run"].as_str().unwrap();
        assert!(!run.contains("${{") && run.starts_with("\"$GITHUB_ACTION_PATH/run.sh\" "), "{run}");
        assert_eq!(step["shell"].as_str(), Some("bash"));
        let environment = step["env"].as_hash();
        for (name, value) in environment.into_iter().flatten() {
            let script = fs::read_to_string(SCRIPT).unwrap();
            assert!(script.contains(&format!("{{{}:-}}", name.as_str().unwrap())), "{name:?}");
            used += value.as_str().unwrap();
        }
    }
    for (name, _) in inputs {
        let name = name.as_str().unwrap();
        assert!(used.contains(&format!("${{{{ inputs.{name} }}}}")), "{name} goes nowhere");
    }
}

#[test]
fn the_readme_names_every_input_and_its_example_is_yaml() {
    let readme = fs::read_to_string(format!("{ACTION}/README.md")).unwrap();
    let documents = yaml_rust2::YamlLoader::load_from_str(&description()).unwrap();
    let inputs = documents[0]["inputs"].as_hash().unwrap();
    for (name, _) in inputs {
        assert!(readme.contains(&format!("`{}`", name.as_str().unwrap())), "{name:?}");
    }
    let example = readme.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let workflow = &yaml_rust2::YamlLoader::load_from_str(example).unwrap()[0];
    let steps = workflow["jobs"]["selftests"]["steps"].as_vec().unwrap();
    let step = steps.iter().find(|step| step["with"]["command"].as_str().is_some()).unwrap();
    for (name, _) in step["with"].as_hash().unwrap() {
        assert!(inputs.contains_key(name), "{name:?}");
    }
}

#[test]
fn the_script_is_executable_and_shellcheck_likes_it() {
    let mode = fs::metadata(SCRIPT).unwrap().permissions();
    assert_eq!(mode.mode() & 0o111, Permissions::from_mode(0o111).mode());
    match Command::new("shellcheck").arg(SCRIPT).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => println!("skipped: shellcheck: {error}"),
    }
}
