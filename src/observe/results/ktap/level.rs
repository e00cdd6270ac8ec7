//! One document or subtest that has begun, and what its numbers say once it ends.

use super::line::Dialect;

/// How many ranges of numbers that were left out are remembered.
const GAPS: usize = 8;

/// What begins a level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// A version line, a plan or a first result.
    Document,
    /// A first result that may be ordinary output: it takes a plan to make a document of it.
    Perhaps,
    /// KUnit's first suite, which has neither a version nor a plan around it in the log of a 5.5 to 6.1 kernel.
    Suites,
    /// A test within another.
    Subtest,
}

/// A document or subtest that has begun.
pub(super) struct Level {
    /// The indentation of its lines.
    pub lead: String,
    pub dialect: Dialect,
    pub start: Start,
    /// The group of its cases.
    pub group: usize,
    /// Whether it has a name of its own.
    pub named: bool,
    plan: Option<u64>,
    /// How many results came before the plan.
    before_plan: u64,
    /// How many results there are.
    count: u64,
    /// The number that the next result should have if none was left out.
    next: u64,
    /// Numbers that were left out, each range with its ends.
    gaps: Vec<(u64, u64)>,
    /// The first number that is not the one expected, and that one.
    disorder: Option<(u64, u64)>,
    second_plan: bool,
    pub bailed: bool,
    /// Why all of its tests are skipped.
    pub skip: Option<String>,
    pub totals: Totals,
    /// The subtests that ended last, before their result.
    pub ended: Option<Ended>,
    /// The name of the subtest that comes next.
    pub announced: Option<String>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub cases: u64,
    pub bad: u64,
}

impl Totals {
    pub(super) fn add(&mut self, bad: bool) {
        self.cases += 1;
        self.bad += u64::from(bad);
    }
}

/// A subtest that has ended and waits for its result.
pub(super) struct Ended {
    pub group: usize,
    pub named: bool,
    /// Whether it had a plan.
    pub planned: bool,
    pub totals: Totals,
    /// The case that says what its plan lacks.
    pub breach: Option<usize>,
    pub skip: Option<String>,
}

impl Level {
    pub(super) fn new(lead: &str, dialect: Dialect, start: Start, group: usize) -> Self {
        Self {
            lead: lead.to_owned(),
            dialect,
            start,
            group,
            named: false,
            plan: None,
            before_plan: 0,
            count: 0,
            next: 1,
            gaps: Vec::new(),
            disorder: None,
            second_plan: false,
            bailed: false,
            skip: None,
            totals: Totals::default(),
            ended: None,
            announced: None,
        }
    }

    /// Counts a result.
    pub(super) fn count(&mut self, number: Option<u64>) {
        self.count += 1;
        let number = number.unwrap_or(self.count);
        if number != self.count {
            self.disorder.get_or_insert((number, self.count));
        }
        if number > self.next && self.gaps.len() < GAPS {
            self.gaps.push((self.next, number - 1));
        }
        self.next = self.next.max(number.saturating_add(1));
    }

    /// How many results there are.
    pub(super) fn results(&self) -> u64 {
        self.count
    }

    pub(super) fn has_plan(&self) -> bool {
        self.plan.is_some()
    }

    /// Whether it has more than a version line.
    pub(super) fn is_begun(&self) -> bool {
        self.named || self.plan.is_some() || self.count > 0
    }

    /// Takes a plan.
    pub(super) fn plan(&mut self, count: u64) {
        self.second_plan |= self.plan.is_some();
        if self.plan.is_none() {
            (self.plan, self.before_plan) = (Some(count), self.count);
        }
        self.confirm();
    }

    /// Makes a document of what may have been ordinary output.
    pub(super) fn confirm(&mut self) {
        if self.start == Start::Perhaps {
            self.start = Start::Document;
        }
    }

    /// Whether all results are there that were planned: what comes next is another document's.
    pub(super) fn is_complete(&self) -> bool {
        self.plan == Some(self.count)
    }

    /// Whether its plan came last, and all is there.
    pub(super) fn is_closed_by_plan(&self) -> bool {
        self.is_complete() && self.before_plan > 0
    }

    /// How the results differ from the plan and the numbers, as `prove` judges them, once there will be no more.
    pub(super) fn breach(&mut self) -> Option<String> {
        // A subtest that ended badly counts as the result that it did not reach.
        if self.ended.as_ref().is_some_and(|ended| ended.totals.bad > 0) {
            self.count(Some(self.next));
        }
        if self.bailed || self.start == Start::Perhaps {
            return None;
        }
        let mut breaches = Vec::new();
        match self.plan {
            Some(plan) if self.count < plan => breaches.push(self.missing(plan)),
            Some(plan) if self.count > plan => {
                breaches.push(format!("{} tests ran and {plan} were planned", self.count));
            }
            None if self.start == Start::Document => {
                breaches.push("there is no plan: results may be missing".to_owned());
            }
            _ => {}
        }
        if self.skip.is_some() && self.count > 0 && self.plan.is_some_and(|plan| plan > 0) {
            breaches.push("all tests were planned to be skipped, and some ran".to_owned());
        }
        if self.second_plan {
            breaches.push("there is more than one plan".to_owned());
        }
        if self.plan.is_some() && self.before_plan > 0 && self.before_plan < self.count {
            breaches.push("the plan is neither at the beginning nor at the end".to_owned());
        }
        let incomplete = self.plan.is_some_and(|plan| self.count < plan);
        let judged = self.start != Start::Suites || self.plan.is_some();
        if let Some((found, expected)) =
            self.disorder.filter(|_| judged && !(incomplete && self.is_ascending()))
        {
            breaches.push(format!("the tests are out of sequence: {found} where {expected} was expected"));
        }
        (!breaches.is_empty()).then(|| breaches.join("; "))
    }

    /// Whether the numbers that were left out are all that is wrong with them.
    fn is_ascending(&self) -> bool {
        let left_out: u64 =
            self.gaps.iter().map(|(first, last)| last - first + 1).fold(0, u64::saturating_add);
        self.gaps.len() < GAPS && self.next.saturating_sub(1).saturating_sub(left_out) == self.count
    }

    fn missing(&self, plan: u64) -> String {
        let open_end = (self.next <= plan).then_some((self.next, plan));
        let ranges = self.gaps.iter().copied().chain(open_end).map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        let missing: Vec<_> = ranges.collect();
        let which = if missing.is_empty() { String::new() } else { format!(": {}", missing.join(", ")) };
        format!("{} of {plan} planned tests did not run{which}", plan - self.count)
    }
}
