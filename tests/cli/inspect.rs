//! `kite inspect`, beside what `/proc` says of the same processes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

use crate::cgroup::group::groups;
use crate::cgroup::spinning::Spinning;
use crate::support::attempt::Attempt;
use crate::support::child::End;
use crate::support::{KITE, NOBODY, root, skipped};

fn inspect(arguments: &[&str]) -> End {
    Attempt::new().run(["inspect"].iter().chain(arguments))
}

/// The processes of the first machine that this prints as JSON.
fn processes(arguments: &[&str]) -> Vec<Value> {
    let end = inspect(arguments);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(end.text()).unwrap();
    assert_eq!(report["schema"], "inspect/1");
    report["machines"][0]["processes"].as_array().unwrap().clone()
}

fn strings(list: &Value, field: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|it| it[field].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_supervisor_and_its_machine_are_told_of_with_their_limits() {
    needs!(groups("memory=64M,pids=64"));
    let kite = Spinning::start("inspected", &["--limit", "memory=96M,pids=50"]);
    let machine = kite.machine().unwrap();
    let count = || fs::read_dir(format!("/proc/{machine}/task")).unwrap().count();
    // It may be at its last steps of starting.
    let (told, threads) = loop {
        let before = count();
        let told = processes(&["--json", &kite.supervisor().to_string()]);
        if count() == before {
            break (told, before);
        }
    };
    let pids: Vec<_> = told.iter().map(|process| process["pid"].as_i64().unwrap()).collect();
    assert_eq!(pids, [kite.supervisor(), machine].map(i64::from));

    let cgroups = told[1]["cgroups"].as_array().unwrap();
    let limits = |name: &str| cgroups.iter().filter_map(|it| it[name].as_u64()).collect::<Vec<_>>();
    assert_eq!((limits("memory_limit"), limits("pids_limit")), (vec![96 << 20], vec![50]));
    assert!(limits("pids_used").iter().all(|used| (2..50).contains(used)), "{cgroups:?}");
    assert!(!told[0]["cgroups"].to_string().contains(&kite.group));

    let names = strings(&told[1]["threads"], "name");
    assert!(names.iter().any(|name| name == "vcpu0") && names.len() == threads, "{names:?}");
    let what = strings(&told[1]["descriptors"], "what");
    for expected in ["the machine", "vCPU 0", "eventfd"] {
        assert!(what.iter().any(|it| it == expected), "{what:?}");
    }
}

#[test]
fn what_a_process_is_told_to_be_is_what_proc_says() {
    needs!(groups("pids=64"));
    let kite = Spinning::start("proc", &[]);
    let machine = kite.machine().unwrap();
    let proc = format!("/proc/{machine}");
    let open = || fs::read_dir(format!("{proc}/fd")).unwrap().count();
    // It may be at its last steps of starting.
    let (told, fds) = loop {
        let before = open();
        let told = processes(&["--json", &machine.to_string()]).remove(0);
        if open() == before {
            break (told, before);
        }
    };
    for namespace in told["namespaces"].as_array().unwrap() {
        let (kind, id) = (namespace["kind"].as_str().unwrap(), namespace["id"].as_u64().unwrap());
        let link =
            |process: &str| fs::read_link(format!("{process}/ns/{kind}")).unwrap().display().to_string();
        assert_eq!(link(&proc), format!("{kind}:[{id}]"));
        assert_eq!(namespace["own"], link(&proc) != link("/proc/self"));
    }
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap().to_owned()
    };
    for (name, set) in [("CapEff", "effective"), ("CapPrm", "permitted"), ("CapBnd", "bounding")] {
        let mask = u64::from_str_radix(&field(name), 16).unwrap();
        let count = told["capabilities"][set].as_array().unwrap().len();
        assert_eq!(count, mask.count_ones() as usize, "{name}");
    }
    assert_eq!(told["no_new_privs"], field("NoNewPrivs") == "1");
    assert_eq!(told["descriptors"].as_array().unwrap().len(), fds);
}

#[test]
fn every_running_kite_is_found_and_the_table_has_each_fact() {
    needs!(groups("pids=64"));
    let kites = [Spinning::start("first", &[]), Spinning::start("second", &[])];
    let end = inspect(&[]);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    for kite in &kites {
        let (supervisor, machine) = (kite.supervisor(), kite.machine().unwrap());
        for (process, parent) in [(supervisor, "child of "), (machine, &format!("child of {supervisor}"))] {
            let is_title = |line: &&str| {
                line.starts_with(&format!("process {process}")) && line.contains(&format!(", {parent}"))
            };
            assert_eq!(end.text().lines().filter(is_title).count(), 1, "{process}: {}", end.text());
        }
    }
    for label in [
        "command",
        "user",
        "namespaces",
        "capabilities",
        "privileges",
        "seccomp",
        "Landlock",
        "cgroups",
        "limits",
        "root folder",
        "descriptors",
    ] {
        assert!(end.text().contains(&format!("\n  {label} ")), "{label}: {}", end.text());
    }
}

#[test]
fn a_process_that_is_not_there_or_another_user_s_is_refused_in_one_line() {
    let gone = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id().to_string()
    };
    inspect(&[&gone]).assert_refusal(&format!("there is no process {gone}"));
    if let Err(reason) = root() {
        return skipped(
            "a_process_that_is_not_there_or_another_user_s_is_refused_in_one_line (another user's)",
            &reason,
        );
    }
    let attempt = Attempt::new();
    let kite = attempt.kite();
    let as_nobody = |arguments: &[&str]| {
        attempt.end_of(Command::new(&kite).arg("inspect").args(arguments).uid(NOBODY).gid(NOBODY))
    };
    let own = std::process::id().to_string();
    as_nobody(&[&own])
        .assert_refusal(&format!("of user 0 may not be looked at: run `sudo kite inspect {own}`"));
    let none = as_nobody(&[]);
    assert_eq!((none.status.code(), none.text()), (Some(1), ""));
    assert_eq!(none.stderr, "kite: no kite is running that this user may look at\n");
    let none = as_nobody(&["--json"]);
    let report: Value = serde_json::from_str(none.text()).unwrap();
    assert_eq!((none.status.code(), report["machines"].as_array().map(Vec::len)), (Some(1), Some(0)));
}

#[test]
fn a_report_that_nobody_reads_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let own = std::process::id().to_string();
    let status = Command::new(KITE).args(["inspect", &own]).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn calls_that_a_sandbox_lets_through_are_listed_without_a_process() {
    let end = inspect(&["--calls", "--json"]);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(end.text()).unwrap();
    let groups = report["groups"].as_array().unwrap();
    let allows = |thread: &str, call: &str| {
        groups.iter().any(|group| {
            let is_its = group["threads"].as_array().unwrap().iter().any(|it| it == thread);
            is_its && strings(&group["calls"], "name").iter().any(|name| name == call)
        })
    };
    assert!(allows("vcpu", "ioctl") && allows("share", "openat2") && allows("io", "io_uring_enter"));
    for call in ["execve", "socket", "ptrace", "open", "kill", "mount"] {
        assert!(!["vcpu", "io", "share", "main"].iter().any(|thread| allows(thread, call)), "{call}");
    }
    assert!(inspect(&["--calls"]).text().starts_with("every ("));
    assert_eq!(inspect(&["--calls", "1"]).status.code(), Some(125));
}
