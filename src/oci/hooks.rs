//! Hooks: programs that an engine has run at points of a container's life (runtime-spec, `config.md`, "POSIX-platform
//! Hooks"). They run on the host, with the container's state on standard input.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::config::Hook;

/// How often a hook with a limit is looked at.
const TICK: Duration = Duration::from_millis(5);

/// Runs each to its end.
///
/// # Errors
/// One cannot be started, fails, or takes longer than it may; those behind it do not run then.
pub fn run(hooks: &[Hook], state: &str) -> anyhow::Result<()> {
    hooks
        .iter()
        .try_for_each(|hook| run_one(hook, state).with_context(|| format!("hook {}", hook.path.display())))
}

fn run_one(hook: &Hook, state: &str) -> anyhow::Result<()> {
    ensure!(hook.path.is_absolute(), "its path does not begin with /");
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.env.iter().filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(variables.filter(|(name, _)| !name.is_empty()));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot be started")?;
    if let Some(mut stdin) = child.stdin.take() {
        let state = state.to_owned();
        // One that does not read it does not want it; the thread ends with it.
        let write = move || _ = stdin.write_all(state.as_bytes());
        thread::Builder::new().spawn(write).context("cannot start a thread for the state")?;
    }
    let since = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot be waited for")? {
            break status;
        }
        if hook.timeout.is_some_and(|seconds| since.elapsed() > Duration::from_secs(seconds)) {
            let _ = child.kill();
            let _ = child.wait();
            bail!("it took longer than it may");
        }
        sleep(TICK);
    };
    ensure!(status.success(), "it failed: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).into();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=b".to_owned()], timeout }
    }

    #[test]
    fn a_hook_reads_the_state_and_its_failure_ends_the_rest() {
        run(&[hook("test \"$(cat)\" = state && test $A = b", None)], "state").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let never = folder.path().join("never");
        let rest = hook(&format!("touch {}", never.display()), None);
        let error = run(&[hook("exit 3", None), rest], "state").unwrap_err();
        assert!(format!("{error:#}").contains("failed") && !never.exists());
        let late = run(&[hook("exec sleep 100", Some(0))], "state").unwrap_err();
        assert!(format!("{late:#}").contains("longer than it may"));
        // More than a pipe takes.
        let long = run(&[hook("exec sleep 100", Some(0))], &"x".repeat(1 << 20)).unwrap_err();
        assert!(format!("{long:#}").contains("longer than it may"));
        let relative = Hook { path: "sh".into(), ..hook("true", None) };
        assert!(run(&[relative], "").is_err());
    }
}
