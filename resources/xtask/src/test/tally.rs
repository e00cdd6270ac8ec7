//! What was found so far, and how long it took.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab_batch::Outcome;
use crate::setup::Unavailable;
use crate::tier::{Choice, Tier};

/// When this process's run began: a process is a run.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What was found by a lane.
#[derive(Debug)]
pub struct Tally {
    pub passed: usize,
    /// What failed, and how.
    pub failed: Vec<String>,
    /// What was skipped, and why.
    pub skipped: Vec<String>,
    /// Which names of the command line something is called.
    pub found: BTreeSet<String>,
    /// How many tests are of a later tier.
    pub later: usize,
    times: Vec<Time>,
}

/// When a part ran.
#[derive(Debug)]
struct Time {
    what: String,
    began: Duration,
    took: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        LazyLock::force(&BEGUN);
        let (failed, skipped, times) = (Vec::new(), Vec::new(), Vec::new());
        Self { passed: 0, failed, skipped, found: BTreeSet::new(), later: 0, times }
    }
}

impl Tally {
    /// Does a part, and notes how long it takes.
    pub fn part<T>(&mut self, what: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let began = BEGUN.elapsed();
        eprintln!("xtask: {what} …");
        let done = work(self);
        let took = BEGUN.elapsed().saturating_sub(began);
        eprintln!("xtask: {what}: {:.1} s", took.as_secs_f64());
        self.times.push(Time { what: what.to_owned(), began, took });
        done
    }

    /// Does a part that counts what passes; if it cannot, that is a failure, or something to be skipped.
    pub fn check(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<()>) {
        match self.part(what, work) {
            Ok(()) => {}
            Err(error) if error.is::<Unavailable>() => self.skipped.push(format!("{what}: {error}")),
            Err(error) => self.failed.push(format!("{what}: {error:#}")),
        }
    }

    /// Whether a test is chosen; what is for later, and which names mean something, is counted.
    pub fn wants(&mut self, choice: &Choice, name: &str, tier: Tier) -> bool {
        let means = |wanted: &&String| Choice { tier, names: vec![(*wanted).clone()] }.takes(name, tier);
        self.found.extend(choice.names.iter().filter(means).cloned());
        let wanted = choice.takes(name, tier);
        self.later += usize::from(!wanted && choice.names.is_empty());
        wanted
    }

    /// Counts what became of a Linux guest.
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(why) => self.failed.push(why),
            Outcome::Skipped(why) => self.skipped.push(why),
        }
    }

    /// Adds what another lane has found.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.later += other.later;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.found.extend(other.found);
        self.times.extend(other.times);
    }

    /// Says all of it.
    pub fn close(&mut self) {
        println!();
        for skipped in &self.skipped {
            println!("skipped: {skipped}");
        }
        for failed in &self.failed {
            println!("failed: {failed}");
        }
        if self.later > 0 {
            println!("of later tiers (--nightly, --all; see --list): {} tests", self.later);
        }
        self.times.sort_by_key(|time| time.began);
        println!("{:>8} {:>8}  part (two lanes run side by side)", "begun at", "minutes");
        let minutes = |time: Duration| time.as_secs_f64() / 60.0;
        for time in &self.times {
            println!("{:>8.1} {:>8.1}  {}", minutes(time.began), minutes(time.took), time.what);
        }
        println!("{:>8} {:>8.1}  in all", "", minutes(BEGUN.elapsed()));
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_later_is_counted_and_a_name_that_means_nothing_is_not_found() {
        let mut tally = Tally::default();
        let quick = Choice { tier: Tier::Quick, names: Vec::new() };
        assert!(tally.wants(&quick, "a", Tier::Quick) && !tally.wants(&quick, "b", Tier::Nightly));
        assert_eq!(tally.later, 1);
        let named = Choice { tier: Tier::Quick, names: vec!["net/".to_owned(), "nosuch".to_owned()] };
        assert!(tally.wants(&named, "net/tap", Tier::All) && !tally.wants(&named, "x", Tier::Quick));
        assert_eq!(tally.found, ["net/".to_owned()].into());
    }

    #[test]
    fn a_part_that_cannot_be_had_is_skipped_and_one_that_fails_has_failed() {
        let mut tally = Tally::default();
        tally.check("a", |_| Err(Unavailable("no package".to_owned()).into()));
        tally.check("b", |_| anyhow::bail!("broken"));
        assert_eq!(tally.skipped, ["a: no package"]);
        assert_eq!(tally.failed, ["b: broken"]);
    }
}
