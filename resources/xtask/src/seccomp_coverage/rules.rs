//! What the sandbox lets through, as `kite inspect --calls --json` tells, and what of it was seen.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::machine::Machine;

/// What a thread is there for, by the name that kite gives it.
pub type Kind = &'static str;

/// The group of what any thread may need at any time.
const EVERY: &str = "every";

/// The rules of some threads.
struct Group {
    name: String,
    threads: Vec<String>,
    when: String,
    rules: Vec<Rule>,
}

struct Rule {
    call: String,
    /// The place, mask and value of what an argument has to be; no value if only kite knows it.
    argument: Option<(usize, u64, Option<u64>)>,
    /// How often each kind of thread was seen to make a call that it lets through.
    seen: BTreeMap<Kind, u64>,
}

/// All rules.
pub struct Rules {
    groups: Vec<Group>,
    /// Calls that no rule lets through, by their threads.
    refused: BTreeMap<String, u64>,
}

impl Rules {
    /// Reads kite's report.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(report: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(report).context("understanding the list of calls")?;
        ensure!(report["schema"] == "calls/1", "the list of calls has another form: {}", report["schema"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let rule = |value: &Value| {
            let argument = &value["argument"];
            let number = |name: &str| argument[name].as_u64();
            let argument = argument.is_object().then(|| {
                (number("index").unwrap_or(0) as usize, number("mask").unwrap_or(0), number("value"))
            });
            Rule { call: text(&value["name"]), argument, seen: BTreeMap::new() }
        };
        let group = |value: &Value| Group {
            name: text(&value["group"]),
            threads: list(&value["threads"]).iter().map(text).collect(),
            when: text(&value["when"]),
            rules: list(&value["calls"]).iter().map(rule).collect(),
        };
        let groups: Vec<_> = list(&report["groups"]).iter().map(group).collect();
        ensure!(!groups.is_empty(), "the list of calls is empty");
        Ok(Self { groups, refused: BTreeMap::new() })
    }

    /// A thread of this kind makes a call.
    pub fn see(&mut self, kind: Kind, machine: &Machine, call: &str, arguments: &[u64]) {
        let mut known = false;
        for group in &mut self.groups {
            let has = |thread: &str| group.threads.iter().any(|it| it == thread);
            // The main thread starts those of a machine after this one.
            let starts = kind == "main" && machine.has("restart") && (has("vcpu") || has("io"));
            if !(has(kind) || starts) || !machine.has(&group.when) {
                continue;
            }
            for rule in group.rules.iter_mut().filter(|rule| rule.allows(call, arguments)) {
                *rule.seen.entry(kind).or_default() += 1;
                known = true;
            }
        }
        // To this one the kernel answers that it does not know it.
        if !known && call != "clone3" {
            *self.refused.entry(format!("{kind}: {call} {arguments:x?}")).or_default() += 1;
        }
    }

    /// Each rule by its group, the kind of thread and its own words, and how often it was seen. What any thread may need at
    /// any time is of no kind.
    pub fn seen(&self) -> Vec<(String, u64)> {
        let mut seen = Vec::new();
        for group in &self.groups {
            for rule in &group.rules {
                let mut of = |name: &str, times| seen.push((format!("{name}: {}", rule.words()), times));
                if group.name == EVERY {
                    of(EVERY, rule.seen.values().sum());
                    continue;
                }
                for kind in &group.threads {
                    let times = rule.seen.get(kind.as_str()).copied().unwrap_or_default();
                    of(&format!("{} of {kind}", group.name), times);
                }
            }
        }
        seen
    }

    /// Calls that no rule lets through.
    pub fn refused(&self) -> impl Iterator<Item = &String> {
        self.refused.keys()
    }
}

impl Rule {
    fn allows(&self, call: &str, arguments: &[u64]) -> bool {
        let fits = |(place, mask, value): (usize, u64, Option<u64>)| {
            arguments
                .get(place)
                .is_some_and(|argument| value.is_none_or(|value| argument & mask == value & mask))
        };
        self.call == call && self.argument.is_none_or(fits)
    }

    fn words(&self) -> String {
        match self.argument {
            None => self.call.clone(),
            Some((place, _, Some(value))) => format!("{} {}={value:#x}", self.call, place + 1),
            Some((place, _, None)) => format!("{} {}=process", self.call, place + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_seen_only_by_its_threads_on_machines_that_need_it() {
        let report = r#"{"schema": "calls/1", "groups": [
            {"group": "g", "threads": ["io"], "when": "disks", "calls": [
                {"name": "read", "number": 0, "argument": null},
                {"name": "mmap", "number": 9, "argument": {"index": 2, "mask": 4, "value": 0}}]}]}"#;
        let mut rules = Rules::parse(report).unwrap();
        let disks = Machine::of(["kite", "run", "--disk", "x"].map(str::to_owned).into());
        let none = Machine::of(["kite", "run"].map(str::to_owned).into());
        rules.see("io", &disks, "mmap", &[0, 4096, 3]);
        rules.see("io", &disks, "mmap", &[0, 4096, 7]);
        rules.see("main", &disks, "read", &[0, 0, 0]);
        rules.see("io", &none, "read", &[0, 0, 0]);
        assert_eq!(rules.seen(), [("g of io: read".to_owned(), 0), ("g of io: mmap 3=0x0".to_owned(), 1)]);
        assert_eq!(rules.refused().count(), 3);
    }
}
