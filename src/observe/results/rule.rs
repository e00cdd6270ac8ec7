//! The rule by which failed cases make a command fail; one for `kite run` and `kite matrix`.

use super::{Case, Suite, Verdict};
use crate::spec::command::FailOnKtap;

/// The status of a kselftest that skipped everything (KSFT_SKIP).
const SKIPPED: u8 = 4;
/// The status where only cases failed.
const CASES_FAILED: u8 = 1;

/// What is said of an output without results.
pub(super) const NO_DOCUMENT: &str = "the command printed no KTAP or TAP document";

impl Suite {
    /// The status that a command ends with whose own is `status`.
    pub fn status(&self, status: u8) -> u8 {
        match (self.rule, status) {
            (FailOnKtap::Never, status) => status,
            (_, 0) if self.bad() > 0 => CASES_FAILED,
            (_, SKIPPED) if are_skipped(&self.cases) => 0,
            (_, status) => status,
        }
    }

    /// Whether there are cases and all of them were skipped.
    pub fn is_skipped(&self) -> bool {
        are_skipped(&self.cases)
    }

    /// What its reader may not expect of the output, in a line.
    pub fn remark(&self) -> Option<&'static str> {
        (!self.documents).then_some(NO_DOCUMENT)
    }
}

/// Whether a command's exit status is that of cases that were all skipped.
pub(super) fn explains_skip(cases: &[Case], status: u8) -> bool {
    status == SKIPPED && are_skipped(cases)
}

fn are_skipped(cases: &[Case]) -> bool {
    !cases.is_empty() && cases.iter().all(|case| matches!(case.verdict, Verdict::Skipped(_)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Ending, Recorder};
    use super::*;
    use crate::spec::command::FailOnKtap::{Always, Auto, Never};

    fn suite(rule: FailOnKtap, output: &str, status: u8) -> Suite {
        let mut recorder = Recorder::new("c", rule);
        recorder.feed(output.as_bytes());
        recorder.finish(&Ending::Exited(status), Duration::ZERO, "")
    }

    #[test]
    fn cases_decide_where_the_rule_says_so() {
        let (passing, failing) = ("1..1\nok 1 a\n", "1..1\nnot ok 1 a\n");
        for (rule, output, status, expected) in [
            (Auto, passing, 0, 0),
            (Auto, failing, 0, 1),
            (Auto, failing, 7, 7),
            (Auto, passing, 7, 7),
            (Auto, "", 0, 0),
            (Always, passing, 0, 0),
            (Always, failing, 0, 1),
            (Always, failing, 7, 7),
            (Always, "other output\n", 0, 1),
            (Always, "", 7, 7),
            (Never, failing, 0, 0),
            (Never, failing, 7, 7),
            (Never, "", 0, 0),
        ] {
            assert_eq!(suite(rule, output, status).status(status), expected, "{rule:?} {output:?} {status}");
        }
    }

    #[test]
    fn a_selftest_that_skipped_everything_is_a_skip() {
        let all = "TAP version 13\n1..0 # SKIP needs a device\n";
        let each = "TAP version 13\n1..2\nok 1 # SKIP a\nok 2 # SKIP b\n";
        for output in [all, each] {
            for (rule, expected) in [(Auto, 0), (Always, 0), (Never, 4)] {
                let suite = suite(rule, output, 4);
                assert_eq!((suite.bad(), suite.is_skipped(), suite.status(4)), (0, true, expected));
            }
            assert_eq!(suite(Auto, output, 1).status(1), 1);
            assert_eq!(suite(Auto, output, 1).bad(), 1);
        }
        let some = "TAP version 13\n1..2\nok 1 # SKIP a\nok 2 b\n";
        assert_eq!((suite(Auto, some, 4).bad(), suite(Auto, some, 4).status(4)), (1, 4));
        assert_eq!((suite(Auto, "", 4).bad(), suite(Auto, "", 4).status(4)), (1, 4));
    }

    #[test]
    fn an_output_without_a_document_is_remarked_on() {
        assert!(suite(Auto, "hello\n", 0).remark().is_some());
        assert!(suite(Auto, "KTAP version 1\n", 0).remark().is_none());
        let always = suite(Always, "hello\n", 0);
        let [case] = always.cases() else { panic!("{:?}", always.cases()) };
        let Verdict::Failed(message, _) = &case.verdict else { panic!("{case:?}") };
        assert_eq!(message, NO_DOCUMENT);
    }
}
