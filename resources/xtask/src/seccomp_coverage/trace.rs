//! What strace(1) wrote of a kite: which thread made which calls in which sandbox.

use std::collections::HashMap;
use std::io::BufRead;
use std::rc::Rc;

use anyhow::{Context, Result};

use super::machine::Machine;
use super::rules::{Kind, Rules};

/// strace(1), for what is to be appended: a file, and kite and its arguments. It is a grandchild of kite's, which so has
/// the parent it would have, and prints arguments as numbers but for what is read here.
pub const STRACE: &str = "strace -DDD -f -qq --decode-pids=comm,pidns -s 4096 -e signal=none \
                          -e raw=!execve,clone,clone3";

/// What strace(1) calls a call that it could not look at.
const UNKNOWN: &str = "???";

/// clone(2)'s flags, as far as a thread has them.
const CLONE_FLAGS: [(&str, i32); 9] = [
    ("CLONE_VM", libc::CLONE_VM),
    ("CLONE_FS", libc::CLONE_FS),
    ("CLONE_FILES", libc::CLONE_FILES),
    ("CLONE_SIGHAND", libc::CLONE_SIGHAND),
    ("CLONE_THREAD", libc::CLONE_THREAD),
    ("CLONE_SYSVSEM", libc::CLONE_SYSVSEM),
    ("CLONE_SETTLS", libc::CLONE_SETTLS),
    ("CLONE_PARENT_SETTID", libc::CLONE_PARENT_SETTID),
    ("CLONE_CHILD_CLEARTID", libc::CLONE_CHILD_CLEARTID),
];

/// A thread.
#[derive(Clone)]
struct Task {
    /// Of what it is, if that is a kite.
    machine: Option<Rc<Machine>>,
    /// The filters on it.
    filters: Vec<Kind>,
    /// Its process was started as this program, and not split from another.
    started: bool,
    /// It is the first of its process.
    first: bool,
    /// What clone(2) is to make, while it does.
    makes_thread: bool,
}

/// Reads traces.
pub struct Reader<'a> {
    rules: &'a mut Rules,
    tasks: HashMap<u32, Task>,
    /// Calls of threads of whose making nothing has been read yet.
    early: HashMap<u32, Vec<String>>,
}

/// A line's thread, its name, and what it does.
fn parts(line: &str) -> Option<(u32, &str, &str)> {
    let (id, rest) = line.split_at(line.find(|char: char| !char.is_ascii_digit())?);
    let (name, rest) = match rest.strip_prefix('<') {
        Some(named) => named.split_once("> ")?,
        None => ("", rest),
    };
    Some((id.parse().ok()?, name, rest.trim_start()))
}

impl<'a> Reader<'a> {
    /// Counts for `rules`.
    pub fn new(rules: &'a mut Rules) -> Self {
        Self { rules, tasks: HashMap::new(), early: HashMap::new() }
    }

    /// Reads the whole trace of one kite.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&mut self, from: impl BufRead) -> Result<()> {
        self.tasks.clear();
        self.early.clear();
        for line in from.split(b'\n') {
            self.line(&String::from_utf8_lossy(&line.context("reading a trace")?));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        let Some((id, thread, rest)) = parts(line) else { return };
        if let Some(resumed) = rest.strip_prefix("<... ") {
            if resumed.starts_with("clone") {
                self.made(id, rest);
            }
            return;
        }
        let Some((call, arguments)) = rest.split_once('(') else { return };
        // The thread was killed before strace had looked at its call, which so was never made.
        if call == UNKNOWN {
            return;
        }
        if call == "execve" {
            self.started(id, arguments);
            return;
        }
        let Some(task) = self.tasks.get_mut(&id) else {
            self.early.entry(id).or_default().push(line.to_owned());
            return;
        };
        let mut numbers = numbers(arguments);
        if call.starts_with("clone") {
            let flags = flags(arguments);
            task.makes_thread = flags & libc::CLONE_THREAD as u64 != 0;
            numbers = vec![flags];
        }
        if let Some(machine) = &task.machine {
            for filter in &task.filters {
                self.rules.see(filter, machine, call, &numbers);
            }
            if call == "seccomp" && numbers.first() == Some(&1) {
                task.filters.push(task.kind(thread));
            }
        }
        if call.starts_with("clone") {
            self.made(id, rest);
        }
    }

    /// A process becomes another program.
    fn started(&mut self, id: u32, arguments: &str) {
        let words = strings(arguments);
        let program = words.first().map(|path| path.rsplit('/').next().unwrap_or_default());
        // One that runs itself does so by its file's name in /proc.
        let is_kite = matches!(program, Some("kite" | "exe"));
        let machine = is_kite.then(|| Rc::new(Machine::of(words)));
        let task = Task { machine, filters: Vec::new(), started: true, first: true, makes_thread: false };
        self.add(id, task);
    }

    /// A call that makes a thread or a process has returned with its id, if `rest` has one: first as the thread knows it,
    /// then, if that is another, as strace does.
    fn made(&mut self, id: u32, rest: &str) {
        let Some((_, result)) = rest.rsplit_once(" = ") else { return };
        let outer = result.split_once("/* ").map_or(result, |(_, comment)| comment);
        let digits = outer.split(|char: char| !char.is_ascii_digit()).next().unwrap_or_default();
        let (Ok(child), Some(parent)) = (digits.parse(), self.tasks.get(&id)) else { return };
        let first = !parent.makes_thread;
        let started = parent.started && !first;
        self.add(child, Task { first, started, makes_thread: false, ..parent.clone() });
    }

    fn add(&mut self, id: u32, task: Task) {
        self.tasks.insert(id, task);
        for line in self.early.remove(&id).unwrap_or_default() {
            self.line(&line);
        }
    }
}

impl Task {
    /// What a thread is there for that confines itself under this name.
    fn kind(&self, name: &str) -> Kind {
        match name {
            _ if self.started => "supervisor",
            _ if self.first => "main",
            _ if name.starts_with("vcpu") => "vcpu",
            _ if name.starts_with("fs") => "share",
            "vnc" => "vnc",
            _ => "io",
        }
    }
}

/// Arguments that are all numbers, up to the first that is none.
fn numbers(arguments: &str) -> Vec<u64> {
    let end = arguments.find([')', '<']).unwrap_or(arguments.len());
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    };
    arguments[..end].split(',').map_while(|word| number(word.trim())).collect()
}

fn flags(arguments: &str) -> u64 {
    let (_, rest) = arguments.split_once("flags=").unwrap_or_default();
    let list = &rest[..rest.find([',', '}', ')', ' ']).unwrap_or(rest.len())];
    let bit = |word: &str| {
        let known = CLONE_FLAGS.iter().find(|(name, _)| *name == word);
        // One that no thread has.
        known.map_or(1 << 31, |(_, bit)| *bit as u64)
    };
    list.split('|').fold(0, |all, word| all | bit(word))
}

/// The strings of an array, without what is escaped in them.
fn strings(arguments: &str) -> Vec<String> {
    let array = arguments.split_once('[').map_or("", |(_, rest)| rest);
    let array = array.split_once("], ").map_or(array, |(array, _)| array);
    array.split(", ").map(|word| word.trim_matches('"').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"schema": "calls/1", "groups": [
        {"group": "v", "threads": ["vcpu"], "when": "always", "calls": [
            {"name": "ioctl", "number": 16, "argument": {"index": 1, "mask": 4294967295, "value": 44672}}]},
        {"group": "i", "threads": ["io"], "when": "always", "calls": [
            {"name": "clone", "number": 56, "argument": {"index": 0, "mask": 4294967295, "value": 4001536}},
            {"name": "read", "number": 0, "argument": null}]}]}"#;

    #[test]
    fn calls_are_those_of_the_filters_on_their_threads() {
        let trace = "7 execve(\"/x/kite\", [\"/x/kite\", \"run\"], 0x0 /* 3 vars */) = 0\n\
            7<kite> read(0x3, 0x1, 0x1) = 0\n\
            7<kite> clone(child_stack=NULL, flags=CLONE_NEWPID|SIGCHLD, child_tidptr=0x1) = 8<kite>\n\
            10<vcpu0> ioctl(0x3, 0xae80, 0 <unfinished ...>\n\
            8<kite> clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x1} => {parent_tid=[2]}, 88) = 2<kite> /* 9 in strace's PID NS */\n\
            9<disk0> seccomp(0x1, 0, 0x1) = 0\n\
            8<kite> clone3({flags=CLONE_VM|CLONE_THREAD} <unfinished ...>\n\
            8<kite> <... clone3 resumed> => {parent_tid=[3<kite> /* 10 in strace's PID NS */]}, 88) = 3<kite> /* 10 in strace's PID NS */\n\
            10<vcpu0> seccomp(0x1, 0, 0x1) = 0\n\
            10<vcpu0> ioctl(0x3, 0xae80, 0) = -1 EINTR\n\
            9<disk0> clone(child_stack=0x7, flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|\
CLONE_SETTLS|CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID, parent_tid=[4]) = 4<disk0> /* 11 in strace's PID NS */\n\
            11<disk> read(0x3, 0x1, 0x1) = 0\n\
            9<disk0> open(0x3, 0x1, 0x1) = 0\n\
            9<disk0> ???()                           = ?\n\
            12<passt> read(0x3, 0x1, 0x1) = 0\n";
        let mut rules = Rules::parse(REPORT).unwrap();
        Reader::new(&mut rules).read(trace.as_bytes()).unwrap();
        let seen: Vec<_> = rules.seen().into_iter().map(|(_, times)| times).collect();
        assert_eq!(seen, [1, 1, 1]);
        assert_eq!(rules.refused().cloned().collect::<Vec<_>>(), ["io: open [3, 1, 1]"]);
    }

    #[test]
    fn a_line_may_lack_the_threads_name() {
        assert_eq!(parts("12 brk(0) = 0x1"), Some((12, "", "brk(0) = 0x1")));
        assert_eq!(parts("12<a b> brk(0)"), Some((12, "a b", "brk(0)")));
        assert_eq!(parts("strace: a word"), None);
        assert_eq!(numbers("0x9, 0xae80, 0 <unfinished ...>"), [9, 0xae80, 0]);
    }
}
