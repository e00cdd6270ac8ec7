//! The cases found so far, in bounded memory.

use std::collections::VecDeque;
use std::time::Duration;

use crate::observe::results::{Case, Verdict};

/// How many cases, and as many groups, are kept.
const CASES: usize = 50_000;
/// How much text is kept for all cases together, in bytes; the names come on top.
const TEXT: usize = 8 << 20;
/// How long a name or a message is, in bytes.
const SHORT: usize = 256;
/// How much is kept of what was printed before a case, in lines and bytes.
const LINES: usize = 64;
const DETAILS: usize = 8 << 10;

/// No longer than a name may be.
pub(super) fn short(text: &str) -> String {
    if text.len() <= SHORT {
        return text.to_owned();
    }
    let end = (0..=SHORT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// The cases and the groups that they are in.
pub(super) struct Cases {
    kept: Vec<Kept>,
    groups: Vec<Group>,
    text: usize,
    /// Cases that were not kept: how many, and how many of them were bad.
    lost: u64,
    lost_bad: u64,
    /// The last case, if it is a failed one that a line may still explain.
    last_bad: Option<usize>,
    /// Whether it was explained by what was printed before it.
    explained: bool,
}

struct Kept {
    group: usize,
    name: String,
    time: Duration,
    verdict: Verdict,
}

#[derive(Default)]
struct Group {
    name: String,
    outer: Option<usize>,
    /// Whether its cases turned out to be ordinary output.
    dropped: bool,
}

impl Cases {
    pub(super) fn new() -> Self {
        Self {
            kept: Vec::new(),
            groups: Vec::new(),
            text: 0,
            lost: 0,
            lost_bad: 0,
            last_bad: None,
            explained: false,
        }
    }

    /// A group without a name yet; `None` if there are too many.
    pub(super) fn open_group(&mut self, outer: Option<usize>) -> Option<usize> {
        if self.groups.len() >= CASES {
            self.lose();
            return None;
        }
        self.groups.push(Group { outer, ..Group::default() });
        Some(self.groups.len() - 1)
    }

    /// Something cannot be recorded, which may be bad.
    pub(super) fn lose(&mut self) {
        self.lost += 1;
        self.lost_bad += 1;
    }

    /// Forgets the cases of a group that is none.
    pub(super) fn drop_group(&mut self, group: usize) {
        if let Some(group) = self.groups.get_mut(group) {
            group.dropped = true;
        }
    }

    pub(super) fn name_group(&mut self, group: usize, name: &str) {
        if let Some(group) = self.groups.get_mut(group) {
            group.name = short(name);
        }
    }

    /// Adds a case; returns its index if there is room for it.
    pub(super) fn push(
        &mut self,
        group: usize,
        name: &str,
        time: Duration,
        mut verdict: Verdict,
    ) -> Option<usize> {
        let bad = matches!(verdict, Verdict::Failed(..) | Verdict::Error(..));
        self.last_bad = None;
        if self.kept.len() >= CASES {
            self.lost += 1;
            self.lost_bad += u64::from(bad);
            return None;
        }
        if let Verdict::Failed(_, details) | Verdict::Error(_, details) = &mut verdict {
            if self.text + details.len() > TEXT {
                details.clear();
            }
            self.text += details.len();
            self.last_bad = Some(self.kept.len());
            self.explained = !details.is_empty();
        }
        self.kept.push(Kept { group, name: short(name), time, verdict });
        Some(self.kept.len() - 1)
    }

    /// Puts a reason before the message of a failed case.
    pub(super) fn add_reason(&mut self, case: usize, reason: &str) {
        if let Some(Kept { verdict: Verdict::Failed(message, _), .. }) = self.kept.get_mut(case) {
            *message = format!("{reason}: {message}");
        }
    }

    /// Adds a line to the last case, if that is one that failed.
    pub(super) fn explain(&mut self, line: &str) {
        let Some(case) = self.last_bad.and_then(|index| self.kept.get_mut(index)) else { return };
        let (Verdict::Failed(_, details) | Verdict::Error(_, details)) = &mut case.verdict else { return };
        if details.len() + line.len() < DETAILS && self.text + line.len() < TEXT {
            details.push_str(line);
            details.push('\n');
            self.text += line.len() + 1;
        }
    }

    /// Adds a comment to the last case, if that is one that failed without a word. Where comments come before a result,
    /// what comes after it belongs to the next.
    pub(super) fn comment(&mut self, line: &str) {
        if !self.explained {
            self.explain(line);
        }
    }

    /// What follows explains the last case no more.
    pub(super) fn forget_last(&mut self) {
        self.last_bad = None;
    }

    /// All cases, each with the names of its groups.
    pub(super) fn finish(self) -> Vec<Case> {
        let Self { kept, groups, lost, lost_bad, .. } = self;
        let path = |innermost: usize| {
            let mut names = Vec::new();
            let mut next = groups.get(innermost);
            while let Some(group) = next {
                names.extend((!group.name.is_empty()).then_some(group.name.as_str()));
                next = group.outer.and_then(|outer| groups.get(outer));
            }
            names.reverse();
            names.join(".")
        };
        let mut cases: Vec<_> = kept
            .into_iter()
            .filter(|case| !groups.get(case.group).is_some_and(|group| group.dropped))
            .map(|Kept { group, name, time, verdict }| Case { group: path(group), name, time, verdict })
            .collect();
        if lost > 0 {
            let message = format!("{lost} more cases were not kept, {lost_bad} of them bad");
            let verdict = match lost_bad {
                0 => Verdict::Skipped(message),
                _ => Verdict::Error(message, String::new()),
            };
            let name = "more cases".to_owned();
            cases.push(Case { group: String::new(), name, time: Duration::ZERO, verdict });
        }
        cases
    }
}

/// The last lines that no case has had yet.
#[derive(Default)]
pub(super) struct Recent {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, line: &str) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        while self.lines.len() > LINES || self.bytes > DETAILS {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= line.len() + 1;
        }
    }

    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.bytes = 0;
    }

    pub(super) fn take(&mut self) -> String {
        let mut text = String::with_capacity(self.bytes);
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        self.clear();
        text
    }
}
