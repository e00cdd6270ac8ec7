//! The report for people: a table for each process, a line each fact. What comes from other processes is printed so that
//! no terminal obeys it.

use super::descriptors::Descriptor;
use super::facts::{Process, Root, Thread};
use super::groups::{Account, Group};
use super::limits::Limit;
use super::namespaces::Namespace;
use super::status::{Capabilities, Seccomp, told};
use super::{Host, Machine};
use crate::host::messages::printable;
use crate::sandbox::cgroup::size;

/// Rows of a table: what it is about, and a fact.
struct Rows(Vec<(&'static str, String)>);

impl Rows {
    fn add(&mut self, about: &'static str, fact: impl Into<String>) {
        self.0.push((about, fact.into()));
    }

    /// Facts below one another, if there are any.
    fn list(&mut self, about: &'static str, facts: impl IntoIterator<Item = String>) {
        facts.into_iter().for_each(|fact| self.add(about, fact));
    }

    fn text(&self) -> String {
        let width = self.0.iter().map(|(about, _)| about.len()).max().unwrap_or(0);
        let mut text = String::new();
        let mut before = "";
        for (about, fact) in &self.0 {
            let shown = if *about == before { "" } else { about };
            text += format!("  {shown:width$}  {}", printable(fact)).trim_end();
            text.push('\n');
            before = about;
        }
        text
    }
}

/// The whole report.
pub fn report(machines: &[Machine], host: &Host) -> String {
    let tables = machines.iter().flat_map(|machine| {
        let tables = machine.processes.iter().map(|process| table(process, machine, host));
        tables.collect::<Vec<_>>()
    });
    tables.collect::<Vec<_>>().join("\n")
}

fn table(process: &Process, machine: &Machine, host: &Host) -> String {
    let mut rows = Rows(Vec::new());
    rows.add("command", process.command.join(" "));
    rows.list("user", process.user.map(|user| user.to_string()));
    rows.list("namespaces", process.namespaces.iter().flatten().map(namespace));
    rows.list(
        "capabilities",
        process.capabilities.iter().flat_map(|sets| capabilities(sets, host.capabilities)),
    );
    rows.list("privileges", process.no_new_privs.map(privileges));
    rows.list("seccomp", process.threads.iter().flat_map(|threads| self::threads(process, threads)));
    rows.add("Landlock", landlock(host));
    rows.list("cgroups", process.cgroups.iter().flatten().flat_map(group));
    rows.list("limits", process.limits.iter().flatten().filter_map(limit));
    rows.list("root folder", process.root.as_ref().map(root));
    rows.list("descriptors", process.descriptors.iter().flat_map(|all| few(descriptors(all))));
    rows.list("has started", machine.started_by(process.pid));
    rows.list("not seen", process.unreadable.iter().cloned());
    format!("{}\n{}", title(process), rows.text())
}

fn privileges(no_new_privs: bool) -> String {
    match no_new_privs {
        true => "no new ones (no_new_privs)".to_owned(),
        false => "may gain new ones".to_owned(),
    }
}

fn landlock(host: &Host) -> String {
    match host.landlock_abi {
        Some(abi) => format!("unknown, as the kernel does not tell (the host has ABI {abi})"),
        None => "the host has none".to_owned(),
    }
}

fn title(process: &Process) -> String {
    let mut title = format!("process {}", process.pid);
    if let Some(inner) = process.inner_pid {
        title += &format!(" ({inner} inside)");
    }
    if let Some(parent) = process.parent {
        title += &format!(", child of {parent}");
    }
    title
}

fn namespace(namespace: &Namespace) -> String {
    let Namespace { kind, id, host, own } = namespace;
    match (own, host) {
        (false, _) => format!("{kind:6}  {id}  the host's"),
        (true, Some(host)) => format!("{kind:6}  {id}  its own (the host's: {host})"),
        (true, None) => format!("{kind:6}  {id}"),
    }
}

fn capabilities(sets: &Capabilities, most: usize) -> Vec<String> {
    let sets = [
        ("effective", &sets.effective),
        ("permitted", &sets.permitted),
        ("inheritable", &sets.inheritable),
        ("bounding", &sets.bounding),
        ("ambient", &sets.ambient),
    ];
    sets.into_iter().map(|(name, set)| format!("{name:11}  {}", told(set, most))).collect()
}

/// A thread each, with what it may do beyond the process's first.
fn threads(process: &Process, threads: &[Thread]) -> Vec<String> {
    let name = |thread: &Thread| match thread.id == process.pid {
        true => "main".to_owned(),
        false => thread.name.clone(),
    };
    let width = threads.iter().map(|thread| name(thread).chars().count()).max().unwrap_or(0);
    let first = process.capabilities.as_ref().map(|it| &it.effective);
    let fact = |thread: &Thread| {
        let mode = match (thread.seccomp, thread.filters) {
            (Some(Seccomp::Filter), Some(count)) => format!("filter ({count})"),
            (Some(Seccomp::Filter), None) => "filter".to_owned(),
            (Some(Seccomp::Strict), _) => "strict".to_owned(),
            (Some(Seccomp::Off), _) => "off".to_owned(),
            (None, _) => "unknown".to_owned(),
        };
        let mut fact = format!("{:width$}  {}  {mode}", name(thread), thread.id);
        if thread.no_new_privs != process.no_new_privs {
            fact += "  no_new_privs unlike the process";
        }
        if thread.effective.as_ref() != first {
            fact += "  capabilities unlike the process";
        }
        fact
    };
    threads.iter().map(fact).collect()
}

fn group(group: &Group) -> Vec<String> {
    let Group { version, controllers, path, account } = group;
    let mut facts = vec![format!("v{version}  {path}  ({})", controllers.join(" "))];
    facts.extend(self::account(account).into_iter().map(|fact| format!("    {fact}")));
    facts
}

fn account(account: &Account) -> Vec<String> {
    let mut facts = Vec::new();
    let limit = |limit: Option<String>| {
        limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {limit}"))
    };
    if account.cpu_limit.is_some() || account.cpu_seconds.is_some() {
        let used = account.cpu_seconds.map(|it| format!(", {it:.1} s used")).unwrap_or_default();
        facts.push(format!("cpu     {}{used}", limit(account.cpu_limit.map(|cpus| format!("{cpus} CPUs")))));
    }
    if let Some(used) = account.memory_used {
        let peak = account.memory_peak.map(|it| format!(", {} at most so far", mib(it))).unwrap_or_default();
        let kills = account.memory_kills.filter(|it| *it > 0);
        let kills = kills.map(|it| format!(", {it} processes killed for it")).unwrap_or_default();
        facts.push(format!(
            "memory  {}, {} used{peak}{kills}",
            limit(account.memory_limit.map(size)),
            mib(used)
        ));
    }
    if let Some(used) = account.pids_used {
        facts.push(format!("pids    {}, {used} used", limit(account.pids_limit.map(|it| it.to_string()))));
    }
    facts.extend(account.io_limits.iter().map(|line| format!("io      {line}")));
    facts
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// A limit that is one.
fn limit(limit: &Limit) -> Option<String> {
    let Limit { name, soft, hard, unit } = limit;
    let soft = (*soft)?;
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    Some(match hard {
        Some(hard) if *hard == soft => format!("{name:17}  {soft}{unit}"),
        Some(hard) => format!("{name:17}  {soft}{unit}, may be raised to {hard}"),
        None => format!("{name:17}  {soft}{unit}, may be raised"),
    })
}

fn root(root: &Root) -> String {
    match root {
        Root { own: false, .. } => "the host's".to_owned(),
        Root { names, .. } if names.is_empty() => "its own, empty".to_owned(),
        Root { names, more, .. } => {
            format!("its own: {}{}", names.join(" "), if *more { " and more" } else { "" })
        }
    }
}

/// A shared folder can have thousands.
fn few(mut lines: Vec<String>) -> Vec<String> {
    const MOST: usize = 100;
    let more = lines.len().saturating_sub(MOST);
    if more > 0 {
        lines.truncate(MOST);
        lines.push(format!("and {more} more, which --json has"));
    }
    lines
}

/// A line each; those that follow one another and are alike share one.
fn descriptors(all: &[Descriptor]) -> Vec<String> {
    let alike =
        |a: &Descriptor, b: &Descriptor| b.fd == a.fd + 1 && Descriptor { fd: a.fd, ..b.clone() } == *a;
    let lines = all.chunk_by(alike).filter_map(|run| {
        let Descriptor { fd, what, target, access, inherited } = run.first()?;
        let fds = if run.len() > 1 { format!("{fd}-{}", run.last()?.fd) } else { fd.to_string() };
        // The kernel's own names say no more.
        let target = if target.starts_with("anon_inode:") { "" } else { target };
        let inherited = if *inherited { "  inherited" } else { "" };
        Some(format!("{fds:7}  {access:4}  {what:11}  {target}{inherited}"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stands_once_and_nothing_controls_the_terminal() {
        let mut rows = Rows(Vec::new());
        rows.add("a", "1\x1b[2J\n");
        rows.list("long", ["2".to_owned(), "3".to_owned()]);
        rows.list("none", []);
        assert_eq!(rows.text(), "  a     1\\u{1b}[2J\\n\n  long  2\n        3\n");
    }

    #[test]
    fn limits_and_use_are_told_in_units() {
        let told = Account {
            cpu_limit: Some(1.5),
            cpu_seconds: Some(2.04),
            memory_limit: Some(600 << 20),
            memory_used: Some(3 << 19),
            memory_kills: Some(1),
            pids_used: Some(7),
            io_limits: vec!["8:0 rbps=1".to_owned()],
            ..Account::default()
        };
        let expected = [
            "cpu     at most 1.5 CPUs, 2.0 s used",
            "memory  at most 600 MiB, 1.5 MiB used, 1 processes killed for it",
            "pids    no limit, 7 used",
            "io      8:0 rbps=1",
        ];
        assert_eq!(account(&told), expected);
        assert!(account(&Account::default()).is_empty());
    }

    #[test]
    fn a_root_folder_is_the_host_s_or_told() {
        let own = |names: &[&str]| Root {
            own: true,
            names: names.iter().map(|it| it.to_string()).collect(),
            more: false,
        };
        assert_eq!(root(&Root { own: false, ..own(&[]) }), "the host's");
        assert_eq!(root(&own(&[])), "its own, empty");
        assert_eq!(root(&Root { more: true, ..own(&["a", "b"]) }), "its own: a b and more");
    }

    #[test]
    fn descriptors_that_are_alike_share_a_line() {
        let event = |fd| Descriptor {
            fd,
            what: "eventfd".to_owned(),
            target: "anon_inode:[eventfd]".to_owned(),
            access: "rw",
            inherited: false,
        };
        let lines = descriptors(&[
            event(3),
            event(4),
            event(5),
            event(7),
            Descriptor { inherited: true, ..event(8) },
        ]);
        let fds: Vec<_> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(fds, ["3-5", "7", "8"]);
        assert!(lines[2].ends_with("inherited"), "{lines:?}");
        assert_eq!(few(vec![String::new(); 100]).len(), 100);
        assert_eq!(few(vec![String::new(); 102])[100], "and 2 more, which --json has");
    }
}
