//! The guest's job: the word `kite.job=NAME` of the kernel's command line, of which the last counts.

use std::convert::Infallible;
use std::fs;

use anyhow::{Context, bail};
use nix::unistd::pause;

use super::{drain, power};

const WORD: &str = "kite.job=";

/// What to do once the guest is up and has said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// `poweroff`, and the default: power off.
    PowerOff,
    /// `reboot`: reset the machine.
    Reboot,
    /// `idle`: sleep for ever. An idle guest is there to be measured.
    Idle,
    /// `panic`: crash the kernel.
    Panic,
}

impl Job {
    /// The job in the words of a kernel command line; an unknown one is an error.
    pub fn parse(command_line: &str) -> anyhow::Result<Self> {
        let words = command_line.split_ascii_whitespace();
        match words.filter_map(|word| word.strip_prefix(WORD)).next_back() {
            None | Some("poweroff") => Ok(Self::PowerOff),
            Some("reboot") => Ok(Self::Reboot),
            Some("idle") => Ok(Self::Idle),
            Some("panic") => Ok(Self::Panic),
            Some(other) => bail!("unknown job {other:?}: known are poweroff, reboot, idle and panic"),
        }
    }

    /// Does the job. None of them returns if it succeeds.
    pub fn run(self) -> anyhow::Result<Infallible> {
        drain();
        match self {
            Self::PowerOff => power::off(),
            Self::Reboot => power::reset(),
            Self::Idle => loop {
                pause();
            },
            Self::Panic => {
                fs::write("/proc/sysrq-trigger", "c").context("cannot crash the kernel")?;
                bail!("the kernel was asked to crash and did not")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_job_powers_off() {
        assert_eq!(Job::parse("console=ttyS0 panic=-1\n").unwrap(), Job::PowerOff);
        assert_eq!(Job::parse("").unwrap(), Job::PowerOff);
    }

    #[test]
    fn every_job_has_its_word() {
        for (word, job) in
            [("poweroff", Job::PowerOff), ("reboot", Job::Reboot), ("idle", Job::Idle), ("panic", Job::Panic)]
        {
            assert_eq!(Job::parse(&format!("quiet kite.job={word} panic=-1\n")).unwrap(), job);
        }
    }

    #[test]
    fn the_last_job_counts() {
        assert_eq!(Job::parse("kite.job=idle kite.job=reboot").unwrap(), Job::Reboot);
    }

    #[test]
    fn another_word_is_no_job() {
        assert_eq!(Job::parse("xkite.job=idle kite.jobs=idle kite.job").unwrap(), Job::PowerOff);
    }

    #[test]
    fn an_unknown_job_is_named() {
        let unknown = Job::parse("kite.job=dance").unwrap_err();
        assert_eq!(unknown.to_string(), "unknown job \"dance\": known are poweroff, reboot, idle and panic");
        assert!(Job::parse("kite.job=").is_err());
    }
}
