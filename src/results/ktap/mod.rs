//! The Kernel Test Anything Protocol (Linux Documentation/dev-tools/ktap.rst) and TAP 13 and 14
//! (<https://testanything.org>), as kselftest and KUnit print them, read from a stream into cases.
//!
//! A document begins with its version line; what is printed before, between and around its lines is kept for the next
//! case that fails. A test with subtests is a case of its own only if it failed and none of them did.

mod cases;
mod line;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::{Case, Verdict};
use cases::{Cases, Recent};
use line::{Dialect, Line, Outcome, Place};

/// What is looked at of a line, in bytes.
const LINE: usize = 4096;
/// How deep tests nest.
const DEPTH: usize = 16;
/// How many ranges of numbers that were left out are remembered.
const GAPS: usize = 8;

/// Reads a stream.
pub(super) struct Parser {
    line: Vec<u8>,
    /// The open documents, the outermost first.
    levels: Vec<Level>,
    cases: Cases,
    recent: Recent,
    /// When the last result came.
    last: Duration,
    yaml: Yaml,
}

/// Where we are with the block that TAP 14 has after a result.
#[derive(PartialEq, Eq)]
enum Yaml {
    No,
    /// The last line was a result: the next may begin a block.
    Next,
    /// In it, this far indented.
    Within(usize),
}

/// A document or subtest that has begun.
struct Level {
    indent: usize,
    dialect: Dialect,
    /// What its cases are told to be in.
    group: usize,
    plan: Option<u64>,
    /// Results so far.
    count: u64,
    /// The number that the next result should have.
    next: u64,
    /// Numbers that were left out, each range with its ends.
    gaps: Vec<(u64, u64)>,
    bailed: bool,
    totals: Totals,
    /// The subtest that ended last and whose result is still to come.
    ended: Option<Ended>,
    /// The name of the subtest that comes next.
    announced: Option<String>,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    cases: u64,
    bad: u64,
}

struct Ended {
    group: usize,
    totals: Totals,
}

impl Parser {
    pub(super) fn new() -> Self {
        Self {
            line: Vec::new(),
            levels: Vec::new(),
            cases: Cases::new(),
            recent: Recent::default(),
            last: Duration::ZERO,
            yaml: Yaml::No,
        }
    }

    /// Reads on; `now` is the time since the start.
    pub(super) fn feed(&mut self, bytes: &[u8], now: Duration) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end_line(now);
            }
        }
    }

    /// The cases, once the stream has ended.
    pub(super) fn finish(mut self) -> Vec<Case> {
        if !self.line.is_empty() {
            self.end_line(self.last);
        }
        self.close_deeper_than(None);
        self.cases.finish()
    }

    fn end_line(&mut self, now: Duration) {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let text = line::without_timestamp(text.trim_end_matches('\r'));
        if !self.in_yaml(text) && !self.accept(text, now) {
            self.comment(text);
        }
        self.line = bytes;
        self.line.clear();
    }

    /// Whether the line belongs to the YAML block after a result; takes it if so.
    fn in_yaml(&mut self, text: &str) -> bool {
        let indent = text.len() - text.trim_start().len();
        match (std::mem::replace(&mut self.yaml, Yaml::No), text.trim()) {
            (Yaml::Next, "---") if self.levels.last().is_some_and(|level| indent > level.indent) => {
                self.yaml = Yaml::Within(indent);
            }
            (Yaml::Within(at), word) if indent >= at => {
                if word != "..." {
                    self.yaml = Yaml::Within(at);
                    self.cases.explain(text);
                }
            }
            _ => return false,
        }
        true
    }

    /// Keeps a line that is none of the protocol's for the cases around it.
    fn comment(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.levels.last().is_some_and(|level| level.dialect == Dialect::Tap) {
            self.cases.comment(text);
        }
        self.recent.push(text);
    }

    /// Takes a line of the protocol; `false` if it is none, or not in this place.
    fn accept(&mut self, text: &str, now: Duration) -> bool {
        let (place, line) = line::read(text);
        match line {
            Line::Other => false,
            Line::Version(dialect) => self.version(place, dialect),
            Line::Plan { count, skip } => self.plan(place, count, skip),
            Line::Subtest(name) => self.subtest(place, name),
            Line::BailOut(why) => self.bail_out(place, why),
            Line::Result(outcome) => self.result(place, &outcome, now),
        }
    }

    fn version(&mut self, place: Place, dialect: Dialect) -> bool {
        // What is as deep as an open document, or less deep than all, is the next one.
        let outermost = self.levels.first().is_none_or(|level| place.indent <= level.indent);
        let deeper_than = if outermost { None } else { place.indent.checked_sub(1) };
        self.close_deeper_than(deeper_than);
        self.open(place.indent, dialect)
    }

    fn plan(&mut self, place: Place, count: u64, skip: Option<&str>) -> bool {
        if !self.at_or_open(place.indent) {
            return false;
        }
        let Some(level) = self.levels.last_mut() else { return false };
        if level.plan.is_some() {
            return false;
        }
        level.plan = Some(count);
        if let (Some(why), 1) = (skip, self.levels.len()) {
            self.case("all tests", Duration::ZERO, Verdict::Skipped(why.to_owned()));
        }
        true
    }

    fn subtest(&mut self, place: Place, name: &str) -> bool {
        let here = self.levels.iter().any(|level| level.indent == place.indent);
        if !self.at_or_open(place.indent) {
            return false;
        }
        let Some(level) = self.levels.last_mut() else { return false };
        // TAP 14 tells the next subtest's name before it, KTAP in it.
        match here && level.dialect == Dialect::Tap {
            true => level.announced = Some(cases::short(name)),
            false => self.cases.name_group(level.group, name),
        }
        true
    }

    fn bail_out(&mut self, place: Place, why: &str) -> bool {
        let begun = self.levels.iter().any(|level| level.indent == place.indent);
        if !begun && (place.commented || self.levels.is_empty()) {
            return false;
        }
        for level in self.levels.iter_mut().filter(|level| level.indent >= place.indent || !place.commented) {
            level.bailed = true;
        }
        let details = self.recent.take();
        let message = if why.is_empty() { "the test bailed out".to_owned() } else { cases::short(why) };
        self.case("Bail out!", Duration::ZERO, Verdict::Error(message, details));
        true
    }

    fn result(&mut self, place: Place, outcome: &Outcome<'_>, now: Duration) -> bool {
        let here = self.levels.iter().any(|level| level.indent == place.indent);
        let announced = self.levels.last().is_some_and(|level| level.announced.is_some());
        let begun = here || (announced && self.at_or_open(place.indent));
        if !begun {
            return false;
        }
        self.close_deeper_than(Some(place.indent));
        let Some(level) = self.levels.last_mut() else { return false };
        level.number(outcome.number);
        let ended = level.ended.take();
        let time = now.saturating_sub(self.last);
        self.last = now;
        // kselftest's directive may stand before the name, which is then all there is of one.
        let (word, rest) = outcome.directive;
        let name = match (outcome.name, rest) {
            ("", "") => format!("test {}", level.count),
            ("", rest) => rest.to_owned(),
            (name, _) => name.to_owned(),
        };
        let verdict = verdict(outcome.ok, word, rest, || self.recent.take());
        let bad = matches!(verdict, Verdict::Failed(..));
        if let Some(ended) = &ended {
            self.cases.name_group(ended.group, &name);
        }
        let subtests = ended.map(|ended| ended.totals).unwrap_or_default();
        if subtests.cases == 0 || (bad && subtests.bad == 0) {
            self.case(&name, time, verdict);
        }
        self.recent.clear();
        self.yaml = Yaml::Next;
        true
    }

    /// Whether a level of this indentation is the innermost now: it was open, or is a subtest that begins.
    fn at_or_open(&mut self, indent: usize) -> bool {
        let Some(innermost) = self.levels.last() else { return false };
        if self.levels.iter().any(|level| level.indent == indent) {
            self.close_deeper_than(Some(indent));
            return true;
        }
        let dialect = innermost.dialect;
        indent > innermost.indent && self.open(indent, dialect)
    }

    fn open(&mut self, indent: usize, dialect: Dialect) -> bool {
        let outer = self.levels.last_mut();
        let announced = outer.and_then(|outer| {
            // A subtest whose result never came is still one.
            if outer.ended.take().is_some() {
                outer.number(None);
            }
            outer.announced.take()
        });
        let outer = self.levels.last().map(|level| level.group);
        if self.levels.len() >= DEPTH {
            return false;
        }
        let Some(group) = self.cases.open_group(outer) else { return false };
        if let Some(name) = announced {
            self.cases.name_group(group, &name);
        }
        self.levels.push(Level::new(indent, dialect, group));
        self.cases.forget_last();
        true
    }

    /// Ends the levels that are deeper than this; all of them for `None`.
    fn close_deeper_than(&mut self, indent: Option<usize>) {
        while self.levels.last().is_some_and(|level| indent.is_none_or(|indent| level.indent > indent)) {
            if let Some(message) = self.levels.last_mut().and_then(Level::breach) {
                let details = self.recent.take();
                self.case("the plan", Duration::ZERO, Verdict::Failed(message, details));
            }
            let Some(level) = self.levels.pop() else { return };
            if let Some(outer) = self.levels.last_mut() {
                outer.ended = Some(Ended { group: level.group, totals: level.totals });
            }
        }
    }

    /// Notes a case of the innermost level, which counts in all around it.
    fn case(&mut self, name: &str, time: Duration, verdict: Verdict) {
        let bad = matches!(verdict, Verdict::Failed(..) | Verdict::Error(..));
        for level in &mut self.levels {
            level.totals.cases += 1;
            level.totals.bad += u64::from(bad);
        }
        let group = self.levels.last().map_or(0, |level| level.group);
        self.cases.push(group, name, time, verdict);
    }
}

/// What a result line says of its test.
fn verdict(ok: bool, word: &str, rest: &str, details: impl FnOnce() -> String) -> Verdict {
    let why = || cases::short(format!("{word} {rest}").trim());
    let is = |directive: &str| word.eq_ignore_ascii_case(directive);
    match ok {
        _ if line::is_skip(word) => Verdict::Skipped(cases::short(rest)),
        _ if is("XFAIL") => Verdict::Skipped(why()),
        // It was expected to fail.
        false if is("TODO") => Verdict::Skipped(why()),
        true => Verdict::Passed,
        false if word.is_empty() => Verdict::Failed("not ok".to_owned(), details()),
        false => Verdict::Failed(format!("not ok: {}", why()), details()),
    }
}

impl Level {
    fn new(indent: usize, dialect: Dialect, group: usize) -> Self {
        Self {
            indent,
            dialect,
            group,
            plan: None,
            count: 0,
            next: 1,
            gaps: Vec::new(),
            bailed: false,
            totals: Totals::default(),
            ended: None,
            announced: None,
        }
    }

    /// Counts a result.
    fn number(&mut self, number: Option<u64>) {
        let number = number.unwrap_or(self.next);
        if number > self.next && self.gaps.len() < GAPS {
            self.gaps.push((self.next, number - 1));
        }
        self.next = self.next.max(number.saturating_add(1));
        self.count += 1;
    }

    /// How the results differ from the plan, if they do, once there will be no more.
    fn breach(&mut self) -> Option<String> {
        // A subtest that ended badly stands for the result that it did not get to.
        if self.ended.take().is_some_and(|ended| ended.totals.bad > 0) {
            self.number(None);
        }
        let plan = self.plan.filter(|plan| !self.bailed && *plan != self.count)?;
        if self.count > plan {
            return Some(format!("{} tests ran and {plan} were planned", self.count));
        }
        let open_end = (self.next <= plan).then_some((self.next, plan));
        let ranges = self.gaps.iter().copied().chain(open_end).map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        let missing: Vec<_> = ranges.collect();
        let which = if missing.is_empty() { String::new() } else { format!(": {}", missing.join(", ")) };
        Some(format!("{} of {plan} planned tests did not run{which}", plan - self.count))
    }
}
