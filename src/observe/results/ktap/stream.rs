//! The documents that share one prefix, each within or after the other.

use std::time::Duration;

use super::cases::{self, Cases, Recent};
use super::level::{Ended, Level, Start};
use super::line::{self, Dialect, Directive, Line, Outcome};
use super::prefix::Prefix;
use crate::observe::results::Verdict;

/// How deep tests nest.
const DEPTH: usize = 16;
/// A subtest's indentation in TAP 14 and KUnit; the first KUnit had a tabulator.
const INDENTS: [&str; 2] = ["    ", "\t"];
/// The least exit status that failed cases do not explain: timeout(1)'s, and those of signals.
const ABNORMAL: u64 = 124;

/// How many results without a number are ordinary output if there is no plan by then.
const PERHAPS: u64 = 10_000;

/// Where cases go.
pub(super) struct Sink {
    pub cases: Cases,
    /// Lines that no case has had yet.
    pub recent: Recent,
    /// When the last result came.
    pub last: Duration,
    /// Whether a document was found.
    pub documents: bool,
}

/// The documents that share one prefix.
pub(super) struct Stream {
    pub prefix: Prefix,
    /// The open levels, the outermost first.
    levels: Vec<Level>,
    yaml: Yaml,
    /// Whether kselftest's runner writes it, which puts `# ` before what a test prints.
    is_selftests: bool,
    /// Whether all that is known of its prefix is that the name of a subtest came behind it.
    pub is_unsure: bool,
    /// Whether results without numbers were ordinary output.
    is_talkative: bool,
    /// When a line of it came last.
    pub used: u64,
}

/// The position in the block that TAP 13 and 14 have after a result.
#[derive(PartialEq, Eq)]
enum Yaml {
    No,
    /// The last line was a result: the next may begin a block.
    Next,
    /// In it, this far indented.
    Within(usize),
}

impl Stream {
    pub(super) fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            levels: Vec::new(),
            yaml: Yaml::No,
            is_selftests: false,
            is_unsure: false,
            is_talkative: false,
            used: 0,
        }
    }

    /// How the innermost level puts its comments, and the outermost one's indentation.
    pub(super) fn surroundings(&self) -> (Option<Dialect>, &str) {
        let lead = self.levels.first().map_or("", |level| level.lead.as_str());
        (self.levels.last().map(|level| level.dialect), lead)
    }

    /// Whether the line belongs to the YAML block after a result; takes it if so.
    pub(super) fn in_yaml(&mut self, text: &str, sink: &mut Sink) -> bool {
        let lead = self.levels.last().map_or("", |level| level.lead.as_str());
        let indent = text.strip_prefix(lead).map(|rest| (rest.len() - rest.trim_start().len(), rest.trim()));
        match (std::mem::replace(&mut self.yaml, Yaml::No), indent) {
            (Yaml::Next, Some((indent @ 1.., "---"))) => self.yaml = Yaml::Within(indent),
            (Yaml::Within(at), Some((indent, word))) if indent >= at => {
                if !(word == "..." && indent == at) {
                    self.yaml = Yaml::Within(at);
                    sink.cases.explain(text);
                }
            }
            _ => return false,
        }
        true
    }

    /// Begins a document or subtest with a version line.
    pub(super) fn version(&mut self, lead: &str, dialect: Dialect, sink: &mut Sink) -> bool {
        // What is as deep as an open document, or less deep than all, is the next one.
        let outermost = self.levels.first().is_none_or(|level| lead.len() <= level.lead.len());
        let start = if outermost { Start::Document } else { Start::Subtest };
        self.close(sink, |level| outermost || level.lead.len() >= lead.len());
        self.yaml = Yaml::No;
        self.open(lead, dialect, start, sink)
    }

    /// Takes a line of the protocol; `false` if it is none, or not in this place. With `begin`, a plan, a result or a
    /// subtest's name begins a document.
    pub(super) fn accept(&mut self, text: &str, begin: bool, now: Duration, sink: &mut Sink) -> bool {
        let (lead, line) = line::read(text);
        let is_name = matches!(line, Line::Subtest(_));
        let accepted = match line {
            Line::Other => {
                self.is_selftests |=
                    !self.levels.is_empty() && text.trim_start().starts_with("# selftests: ");
                false
            }
            Line::Plan { count, skip } => self.plan(lead, count, skip, begin, sink),
            Line::Subtest(name) => self.subtest(lead, name, begin, sink),
            Line::BailOut(why) => self.bail_out(lead, why, begin, sink),
            Line::Result(outcome) => self.result(lead, outcome, begin, now, sink),
        };
        self.is_unsure &= !accepted || is_name;
        sink.documents |= accepted
            && !self.is_unsure
            && self.levels.first().is_some_and(|level| level.start != Start::Perhaps);
        accepted
    }

    /// Ends all levels.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        self.close(sink, |_| true);
    }

    fn plan(&mut self, lead: &str, count: u64, skip: Option<&str>, begin: bool, sink: &mut Sink) -> bool {
        let here = self.at(lead, sink);
        let complete = here && self.levels.last().is_some_and(Level::is_complete);
        let opened = match self.levels.last() {
            // Another document follows one that is complete.
            Some(level) if complete => {
                let (dialect, start) = (level.dialect, level.start);
                self.close(sink, |level| level.lead.len() >= lead.len());
                self.open(lead, dialect, start, sink)
            }
            _ if here => true,
            Some(level) if self.may_nest(level, lead, true) => {
                let dialect = level.dialect;
                self.open(lead, dialect, Start::Subtest, sink)
            }
            // A plan is definite enough for a document that is indented as a whole.
            None if begin && lead.trim().is_empty() => self.open(lead, Dialect::Plain, Start::Document, sink),
            _ => begin && self.begin(lead, Start::Document, sink),
        };
        let Some(level) = self.levels.last_mut().filter(|_| opened) else { return false };
        level.plan(count);
        if let Some(why) = skip {
            level.skip = Some(cases::short(why));
            if self.levels.len() == 1 {
                let why = if why.is_empty() { "no test was planned" } else { why };
                self.case("all tests", Duration::ZERO, Verdict::Skipped(cases::short(why)), sink);
            }
        }
        true
    }

    fn subtest(&mut self, lead: &str, name: &str, begin: bool, sink: &mut Sink) -> bool {
        let inner = INDENTS.iter().find_map(|indent| lead.strip_suffix(indent));
        // The suites of modules follow those that are built in, without a version line.
        if let (Some(outer), [level]) = (inner, self.levels.as_slice())
            && level.lead == outer
            && level.is_complete()
            && begin
        {
            self.finish(sink);
        }
        self.allow_no_plan(lead);
        let here = self.at(lead, sink);
        let innermost = self.levels.last_mut().map(|level| (level.dialect, level.is_begun(), level.start));
        let opened = match (innermost, inner) {
            // TAP 14 has the next subtest's name before it, KTAP in it.
            (Some((dialect, _, start)), _) if here && dialect != Dialect::Ktap && start != Start::Suites => {
                return self.announce(name);
            }
            (Some((dialect, true, _)), _) if here && self.levels.len() > 1 => {
                self.close(sink, |level| level.lead.len() >= lead.len());
                self.open(lead, dialect, Start::Subtest, sink)
            }
            (Some(_), _) if here => true,
            (Some((dialect, ..)), _) if self.is_deeper(lead) => {
                self.open(lead, dialect, Start::Subtest, sink)
            }
            (_, None) if begin && self.begin(lead, Start::Document, sink) => return self.announce(name),
            (_, Some(outer)) if begin && self.begin(outer, Start::Suites, sink) => {
                self.open(lead, Dialect::Ktap, Start::Subtest, sink)
            }
            _ => false,
        };
        if !opened {
            return false;
        }
        if let Some(level) = self.levels.last_mut() {
            level.named = true;
            sink.cases.name_group(level.group, name);
        }
        true
    }

    /// Demands no plan of a document of KUnit's before Linux 5.10, which has none: its suites are indented by a tabulator.
    fn allow_no_plan(&mut self, lead: &str) {
        if let [level] = self.levels.as_mut_slice()
            && level.start == Start::Document
            && level.dialect == Dialect::Tap
            && !level.is_begun()
            && lead.strip_suffix('\t') == Some(&level.lead)
        {
            (level.start, level.dialect) = (Start::Suites, Dialect::Ktap);
        }
    }

    /// The innermost level's next subtest has this name.
    fn announce(&mut self, name: &str) -> bool {
        let Some(level) = self.levels.last_mut() else { return false };
        level.announced = Some(cases::short(name));
        true
    }

    fn bail_out(&mut self, lead: &str, why: &str, begin: bool, sink: &mut Sink) -> bool {
        let commented = lead.contains('#');
        let here = self.levels.iter().any(|level| level.lead == lead);
        if !here
            && (commented || (self.levels.is_empty() && !(begin && self.begin(lead, Start::Document, sink))))
        {
            return false;
        }
        for level in self.levels.iter_mut().filter(|level| level.lead.len() >= lead.len() || !commented) {
            level.bailed = true;
        }
        let details = sink.recent.take();
        let message = if why.is_empty() { "the test bailed out".to_owned() } else { cases::short(why) };
        self.case("Bail out!", Duration::ZERO, Verdict::Error(message, details), sink);
        true
    }

    fn result(&mut self, lead: &str, outcome: Outcome, begin: bool, now: Duration, sink: &mut Sink) -> bool {
        // KTAP's results have numbers: without one, `ok` is the output of something else.
        let level = self.levels.iter().find(|level| level.lead == lead);
        if !outcome.is_definite && level.is_some_and(|level| level.dialect == Dialect::Ktap) {
            return false;
        }
        let is_open = self.at(lead, sink) || (begin && self.end_suite(lead, sink));
        if !is_open && !self.begin_result(lead, &outcome, begin, sink) {
            return false;
        }
        if outcome.number == Some(1) {
            self.part_suite(sink);
        }
        let Some(level) = self.levels.last() else { return false };
        if level.is_closed_by_plan() && outcome.number == Some(1) {
            let (dialect, start) = (level.dialect, level.start);
            self.close(sink, |level| level.lead.len() >= lead.len());
            if !self.open(lead, dialect, start, sink) {
                return false;
            }
        }
        let Some(level) = self.levels.last_mut() else { return false };
        if level.start == Start::Perhaps && outcome.is_definite {
            level.confirm();
        }
        level.count(outcome.number);
        let (ended, count, document) = (level.ended.take(), level.results(), level.start);
        let time = now.saturating_sub(sink.last);
        sink.last = now;
        // kselftest's directive may be before the name, which is then all there is of one.
        let name = match (outcome.name.as_str(), outcome.why.as_str()) {
            ("", "") => format!("test {count}"),
            ("", why) => why.to_owned(),
            (name, _) => name.to_owned(),
        };
        debug_assert!(document != Start::Perhaps || outcome.ok, "a failure makes a document");
        // A subtest without a single case was skipped as a whole, or there was none to run.
        let inner_skip =
            ended.as_ref().filter(|ended| ended.totals.cases == 0).and_then(|ended| ended.skip.clone());
        let verdict = verdict(&outcome, level.dialect, inner_skip, || sink.recent.take());
        self.judge(&name, time, &outcome, verdict, ended, sink);
        sink.recent.clear();
        self.yaml = Yaml::Next;
        if document == Start::Perhaps && count >= PERHAPS {
            self.is_talkative = true;
            self.finish(sink);
        }
        true
    }

    /// Whether a result of this indentation is that of a KUnit suite which has a version line, and nothing around it: so
    /// modules print theirs from Linux 6.2 to 6.5, and a run from debugfs.
    fn end_suite(&mut self, lead: &str, sink: &mut Sink) -> bool {
        let [suite] = self.levels.as_slice() else { return false };
        let is_suite = suite.start == Start::Document && suite.dialect == Dialect::Ktap && suite.named;
        if !is_suite || !INDENTS.iter().any(|indent| suite.lead.strip_suffix(indent) == Some(lead)) {
            return false;
        }
        let Some(group) = sink.cases.open_group(None) else { return false };
        self.levels.insert(0, Level::new(lead, Dialect::Ktap, Start::Suites, group));
        self.at(lead, sink)
    }

    /// Parts such a suite, which has ended, from a document before that has all of its results.
    fn part_suite(&mut self, sink: &mut Sink) {
        let [document] = self.levels.as_mut_slice() else { return };
        let is_other = document.start == Start::Document
            && document.dialect == Dialect::Ktap
            && document.is_complete()
            && document.results() > 0;
        let Some(suite) = document.ended.take_if(|suite| is_other && suite.named) else { return };
        let lead = document.lead.clone();
        self.finish(sink);
        if self.open(&lead, Dialect::Ktap, Start::Suites, sink)
            && let Some(suites) = self.levels.last_mut()
        {
            suites.ended = Some(suite);
        }
    }

    /// Whether a level was begun for a result that is in none that is open.
    fn begin_result(&mut self, lead: &str, outcome: &Outcome, begin: bool, sink: &mut Sink) -> bool {
        let definite = outcome.is_definite;
        match self.levels.last() {
            Some(level) if self.may_nest(level, lead, definite) => {
                let dialect = level.dialect;
                self.open(lead, dialect, Start::Subtest, sink)
            }
            _ if definite => begin && self.begin(lead, Start::Document, sink),
            _ => begin && !self.is_talkative && self.begin(lead, Start::Perhaps, sink),
        }
    }

    /// Notes a result, if it says more than its subtests did.
    fn judge(
        &mut self,
        name: &str,
        time: Duration,
        outcome: &Outcome,
        verdict: Verdict,
        ended: Option<Ended>,
        sink: &mut Sink,
    ) {
        let bad = matches!(verdict, Verdict::Failed(..));
        let Some(ended) = ended else {
            self.case(name, time, verdict, sink);
            return;
        };
        if !ended.named {
            sink.cases.name_group(ended.group, name);
        }
        let abnormal = match outcome.directive {
            Directive::Timeout | Directive::Error => true,
            Directive::Exit(status) => status >= ABNORMAL,
            _ => false,
        };
        match ended.breach.filter(|_| bad && !outcome.note.is_empty()) {
            Some(breach) => sink.cases.add_reason(breach, &cases::short(&outcome.note)),
            None if ended.totals.cases == 0 || (bad && (ended.totals.bad == 0 || abnormal)) => {
                self.case(name, time, verdict, sink);
            }
            None => {}
        }
    }

    /// Whether lines of this indentation belong to a subtest of `level` that no version line has begun.
    fn may_nest(&self, level: &Level, lead: &str, definite: bool) -> bool {
        let Some(more) = lead.strip_prefix(level.lead.as_str()).filter(|more| !more.is_empty()) else {
            return false;
        };
        match more.contains('#') {
            true => self.is_selftests && definite,
            false => level.announced.is_some() || (definite && INDENTS.contains(&more)),
        }
    }

    /// Whether this is the indentation of a subtest of the innermost level.
    fn is_deeper(&self, lead: &str) -> bool {
        self.levels.last().is_some_and(|level| lead.len() > level.lead.len() && lead.starts_with(&level.lead))
    }

    /// Whether a level of this indentation is open; what is deeper ends then.
    fn at(&mut self, lead: &str, sink: &mut Sink) -> bool {
        let here = self.levels.iter().any(|level| level.lead == lead);
        if here {
            self.close(sink, |level| level.lead.len() > lead.len());
        }
        here
    }

    /// Begins a document that has no version line. It is not indented, but for a log's blank, and not within another.
    fn begin(&mut self, lead: &str, start: Start, sink: &mut Sink) -> bool {
        let outermost = self.levels.first().is_none_or(|level| lead.len() < level.lead.len());
        if !outermost || lead.contains('#') || (self.prefix.is_empty() && !lead.is_empty()) {
            return false;
        }
        self.finish(sink);
        let dialect = if start == Start::Suites { Dialect::Ktap } else { Dialect::Plain };
        self.open(lead, dialect, start, sink)
    }

    fn open(&mut self, lead: &str, dialect: Dialect, start: Start, sink: &mut Sink) -> bool {
        if self.levels.len() >= DEPTH {
            sink.cases.lose();
            return false;
        }
        if let (Some(root), Start::Subtest) = (self.levels.first_mut(), start) {
            root.confirm();
        }
        let outer = self.levels.last_mut();
        let announced = outer.and_then(|outer| outer.announced.take());
        // Two documents that one test prints are one subtest; a subtest with a name of its own is not the next one's.
        let ended = self.levels.last_mut().and_then(|outer| outer.ended.take());
        let ended = match ended {
            Some(ended) if ended.named => {
                self.without_result(&ended, sink);
                None
            }
            ended => ended,
        };
        let outer = self.levels.last().map(|level| level.group);
        let group = match &ended {
            Some(ended) => Some(ended.group),
            None => sink.cases.open_group(outer),
        };
        let Some(group) = group else { return false };
        let mut level = Level::new(lead, dialect, start, group);
        if let Some(ended) = ended {
            level.totals = ended.totals;
        }
        if let Some(name) = announced {
            level.named = true;
            sink.cases.name_group(group, &name);
        }
        self.levels.push(level);
        sink.cases.forget_last();
        // A version line alone is no document if it ends a sentence.
        sink.documents |= start != Start::Perhaps && self.prefix.is_log && !self.is_unsure;
        true
    }

    /// Ends the innermost levels, as long as they are such.
    fn close(&mut self, sink: &mut Sink, ends: impl Fn(&Level) -> bool) {
        while self.levels.last().is_some_and(&ends) {
            if let Some(ended) = self.levels.last().and_then(|level| level.ended.as_ref()) {
                let lost = Ended { skip: None, ..*ended };
                self.without_result(&lost, sink);
            }
            let Some(level) = self.levels.last_mut() else { return };
            let (empty, alone) =
                (level.results() == 0 && !level.has_plan() && !level.bailed, self.levels.len() == 1);
            let Some(level) = self.levels.last_mut() else { return };
            let unfounded = alone && empty && level.totals.cases == 0 && !self.prefix.is_log;
            let breach = level.breach().filter(|_| !unfounded);
            let breach = breach.and_then(|message| {
                let details = sink.recent.take();
                self.case("the plan", Duration::ZERO, Verdict::Failed(message, details), sink)
            });
            let Some(level) = self.levels.pop() else { return };
            if level.start == Start::Perhaps {
                sink.cases.drop_group(level.group);
            }
            if let Some(outer) = self.levels.last_mut() {
                let planned = level.has_plan();
                let Level { group, named, totals, skip, .. } = level;
                outer.ended = Some(Ended { group, named, planned, totals, breach, skip });
            }
        }
    }

    /// A subtest's own result never came. A plan and its numbers show that; where there is none, a case does.
    fn without_result(&mut self, ended: &Ended, sink: &mut Sink) {
        let Some(level) = self.levels.last() else { return };
        let is_none = self.is_unsure && !ended.planned && ended.totals.cases == 0;
        if level.has_plan() || ended.totals.bad > 0 || is_none {
            return;
        }
        let message = "the test ended without a result".to_owned();
        self.levels.iter_mut().for_each(|level| level.totals.add(true));
        let details = sink.recent.take();
        sink.cases.push(ended.group, "the result", Duration::ZERO, Verdict::Failed(message, details));
    }

    /// Notes a case of the innermost level, which counts in all around it; returns its index.
    fn case(&mut self, name: &str, time: Duration, verdict: Verdict, sink: &mut Sink) -> Option<usize> {
        let bad = matches!(verdict, Verdict::Failed(..) | Verdict::Error(..));
        self.levels.iter_mut().for_each(|level| level.totals.add(bad));
        let group = self.levels.last().map_or(0, |level| level.group);
        sink.cases.push(group, name, time, verdict)
    }
}

/// What a result line says of its test; `skip` is why all of its subtests were skipped.
fn verdict(
    outcome: &Outcome,
    dialect: Dialect,
    skip: Option<String>,
    details: impl FnOnce() -> String,
) -> Verdict {
    let note = || cases::short(&outcome.note);
    match (outcome.ok, outcome.directive) {
        // A skipped test is `ok` in TAP, and either in KTAP, which kselftest's TAP 13 is, too.
        (ok, Directive::Skip) if ok || dialect != Dialect::Plain => Verdict::Skipped(
            skip.filter(|_| outcome.why.is_empty()).unwrap_or_else(|| cases::short(&outcome.why)),
        ),
        // A failure was expected.
        (_, Directive::Xfail) | (false, Directive::Todo) => Verdict::Skipped(note()),
        // What did not come to its end is no success, whatever the line begins with.
        (true, Directive::Timeout | Directive::Error | Directive::Exit(1..)) => {
            Verdict::Failed(format!("ok, and yet: {}", note()), details())
        }
        (true, _) => skip.map_or(Verdict::Passed, Verdict::Skipped),
        (false, Directive::None | Directive::Figure) => Verdict::Failed("not ok".to_owned(), details()),
        (false, _) => Verdict::Failed(format!("not ok: {}", note()), details()),
    }
}
