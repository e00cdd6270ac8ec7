//! The results of a command that machines read: recorded while it prints, and written at its end.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;

use super::Tee;
use crate::host::lock::lock;
use crate::host::{atomic_file, messages};
use crate::observe::results::{Ending, Recorder, annotations};
use crate::session::Outcome;
use crate::spec::CommandSpec;
use crate::spec::command::FailOnKtap;

/// The recorder of a command's results, if any are wanted.
pub struct Results<'a> {
    command: Option<&'a CommandSpec>,
    begun: Instant,
    recorder: Option<Arc<Mutex<Recorder>>>,
}

impl<'a> Results<'a> {
    /// Begins to record, if there is a file to be written or annotations are wanted.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(command: Option<&'a CommandSpec>) -> anyhow::Result<Self> {
        let junit = command.and_then(|command| command.junit.as_deref());
        junit.map_or(Ok(()), atomic_file::expect).context("--junit")?;
        Ok(Self::recording(command))
    }

    fn recording(command: Option<&'a CommandSpec>) -> Self {
        let wanted = |command: &CommandSpec| {
            command.junit.is_some() || annotations::wanted() || command.fail_on_ktap == FailOnKtap::Always
        };
        let recorder = command.filter(|command| wanted(command)).map(|command| {
            let words: Vec<_> = command.argv.iter().map(|word| word.to_string_lossy()).collect();
            Arc::new(Mutex::new(Recorder::new(&words.join(" "), command.fail_on_ktap)))
        });
        Self { command, begun: Instant::now(), recorder }
    }

    /// Writes the results of a run that could not write them itself.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record_failure(command: Option<&'a CommandSpec>, why: &str) -> anyhow::Result<()> {
        Self::recording(command).finish(&mut Err(anyhow::anyhow!("{why}")), |_| Ok(None))
    }

    /// Takes what the command prints.
    pub fn tee(&self) -> Option<Tee> {
        let recorder = self.recorder.clone()?;
        Some(Box::new(move |bytes| lock(&recorder).feed(bytes)))
    }

    /// Writes what was recorded, and gives the outcome the exit code that its cases ask for; `picture` writes what was on
    /// the screen of a run with this outcome, and answers where.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(
        self,
        outcome: &mut anyhow::Result<Outcome>,
        picture: impl FnOnce(&anyhow::Result<Outcome>) -> anyhow::Result<Option<PathBuf>>,
    ) -> anyhow::Result<()> {
        let Some((recorder, command)) = self.recorder.as_ref().zip(self.command) else {
            return picture(outcome).map(drop);
        };
        let (ending, log) = match outcome {
            Ok(outcome) => (outcome.ending.clone(), outcome.log.as_str()),
            Err(error) => (Ending::Failed(format!("{error:#}")), ""),
        };
        let mut recorder = lock(recorder);
        let recorder = std::mem::replace(&mut *recorder, Recorder::new("", command.fail_on_ktap));
        let mut suite = recorder.finish(&ending, self.begun.elapsed(), log);
        // Standard output is the command's.
        let mut annotations = Vec::new();
        suite.annotate(&mut annotations).context("cannot write annotations")?;
        messages::say(annotations);
        if let Ok(Outcome { code, ending: Ending::Exited(status), signal: None, .. }) = outcome {
            *code = suite.status(*status);
            let asked = command.junit.is_some() || command.fail_on_ktap == FailOnKtap::Always;
            suite.remark().filter(|_| asked).into_iter().for_each(messages::complain);
        }
        let taken = picture(outcome);
        if let Ok(Some(path)) = &taken {
            suite.attach(path);
        }
        if let Some(path) = &command.junit {
            suite.write_junit(path)?;
        }
        taken.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::command::ended;
    use crate::spec::wire::End;

    /// The exit code of a command that has printed this, and its JUnit file if there is one.
    fn end(has_junit: bool, fail_on_ktap: FailOnKtap, printed: &str, end: &End) -> (u8, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("junit.xml");
        let junit = has_junit.then(|| path.clone());
        let command = CommandSpec { argv: vec!["c".into()], junit, fail_on_ktap, ..CommandSpec::default() };
        let results = Results::new(Some(&command)).unwrap();
        if let Some(mut tee) = results.tee() {
            tee(printed.as_bytes());
        }
        let mut outcome = Ok(ended(end.clone()));
        results.finish(&mut outcome, |_| Ok(None)).unwrap();
        (outcome.unwrap().code, std::fs::read_to_string(path).unwrap_or_default())
    }

    const FAILING: &str = "[ 1.2] [  T1] KTAP version 1\n[ 1.2] [  T1] 1..1\n[ 1.2] [  T1] not ok 1 a\n";

    #[test]
    fn a_failed_case_makes_the_command_fail_where_results_are_written() {
        for (junit, rule, expected) in [
            (true, FailOnKtap::Auto, 1),
            (false, FailOnKtap::Always, 1),
            (true, FailOnKtap::Never, 0),
            (false, FailOnKtap::Never, 0),
        ] {
            assert_eq!(end(junit, rule, FAILING, &End::Exited(0)).0, expected, "{junit} {rule:?}");
            assert_eq!(end(junit, rule, FAILING, &End::Exited(3)).0, 3, "{junit} {rule:?}");
            assert_eq!(end(junit, rule, FAILING, &End::Signalled(9)).0, 137, "{junit} {rule:?}");
        }
    }

    #[test]
    fn a_picture_is_taken_of_a_run_whose_cases_failed_and_named_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("junit.xml");
        let command =
            CommandSpec { argv: vec!["c".into()], junit: Some(path.clone()), ..CommandSpec::default() };
        let results = Results::new(Some(&command)).unwrap();
        results.tee().unwrap()(FAILING.as_bytes());
        let mut outcome = Ok(ended(End::Exited(0)));
        let picture = |outcome: &anyhow::Result<Outcome>| {
            assert_eq!(outcome.as_ref().unwrap().code, 1);
            Ok(Some("a.png".into()))
        };
        results.finish(&mut outcome, picture).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("<system-out>[[ATTACHMENT|a.png]]</system-out>"), "{text}");
    }

    #[test]
    fn a_selftest_that_skipped_everything_ends_with_0_and_is_a_skip() {
        let (code, junit) =
            end(true, FailOnKtap::Auto, "TAP version 13\n1..0 # SKIP needs a device\n", &End::Exited(4));
        assert_eq!(code, 0);
        assert!(junit.contains("tests=\"1\" failures=\"0\" errors=\"0\" skipped=\"1\""), "{junit}");
        assert!(junit.contains("<skipped message=\"needs a device\"/>"), "{junit}");
    }

    #[test]
    fn an_output_without_a_document_fails_only_if_there_must_be_one() {
        let (code, junit) = end(true, FailOnKtap::Auto, "hello\n", &End::Exited(0));
        assert_eq!(code, 0);
        assert!(junit.contains("<property name=\"ktap\" value=\"no document\"/>"), "{junit}");
        let (code, junit) = end(true, FailOnKtap::Always, "hello\n", &End::Exited(0));
        assert_eq!(code, 1);
        assert!(
            junit.contains("<failure message=\"the command printed no KTAP or TAP document\">"),
            "{junit}"
        );
    }
}
