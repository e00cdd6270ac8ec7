//! Which groups of rules make up a thread's filter.

use serde::Serialize;

use super::rules::{self, Rule};
use super::{Needs, SupervisorNeeds, Thread};
use Thread::{Io, Main, ReadOnlyShare, Share, Vcpu, Vnc};

/// Rules, whose they are, and when.
pub(super) struct Group {
    pub name: &'static str,
    pub threads: &'static [Thread],
    pub when: When,
    pub rules: &'static [Rule],
}

/// What a machine must have for a group to be needed.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum When {
    Always,
    Disks,
    Networks,
    Ports,
    Shares,
    WritableShares,
    Vnc,
    /// Streams of a command.
    Streams,
    TestDevices,
    Pci,
    Stats,
    /// Another machine after this one.
    Restart,
    /// Files that the supervisor writes for the VM process.
    Files,
    /// Commands that ask for the machine.
    Control,
    /// Names that it removes.
    Names,
    /// Groups that it removes.
    Groups,
}

impl When {
    /// The group's condition, if it has one.
    pub fn words(self) -> Option<&'static str> {
        Some(match self {
            Self::Always => return None,
            Self::Disks => "with disks",
            Self::Networks => "with networks",
            Self::Ports => "with ports",
            Self::Names => "with ports, --vnc, --id or --screen",
            Self::Control => "with --id or --screen",
            Self::Shares => "with shares",
            Self::WritableShares => "with shares that may be changed",
            Self::Vnc => "with --vnc",
            Self::Streams => "with a command",
            Self::TestDevices => "with --test-devices",
            Self::Pci => "with --transport pci",
            Self::Stats => "with --stats",
            Self::Restart => "with --on-reboot restart",
            Self::Files => "with files to write",
            Self::Groups => "with a cgroup",
        })
    }

    fn holds(self, needs: &Needs) -> bool {
        match self {
            Self::Always => true,
            Self::Disks => needs.disks,
            Self::Networks => needs.networks,
            Self::Ports => needs.ports,
            Self::Shares => needs.shares.is_some(),
            Self::WritableShares => needs.shares == Some(true),
            Self::Vnc => needs.vnc,
            Self::Streams => needs.streams,
            Self::TestDevices => needs.test_devices,
            Self::Pci => needs.pci,
            Self::Stats => needs.stats,
            Self::Restart => needs.restart,
            Self::Files => needs.files,
            Self::Control => needs.control,
            Self::Names | Self::Groups => false,
        }
    }

    fn holds_for_supervisor(self, needs: &SupervisorNeeds) -> bool {
        match self {
            Self::Always => true,
            Self::Files => needs.files,
            Self::Control => needs.control,
            Self::Names => needs.names,
            Self::Groups => needs.groups,
            _ => false,
        }
    }
}

/// All of them.
pub(super) const GROUPS: &[Group] = &[
    group(
        "every",
        &[Vcpu, Io, Share, ReadOnlyShare, Vnc, Main, Thread::Supervisor],
        When::Always,
        rules::EVERY,
    ),
    group("vcpu", &[Vcpu], When::Always, rules::VCPU),
    group("starts-threads", &[Io, Share, ReadOnlyShare], When::Always, rules::STARTS_THREADS),
    group("device", &[Io, Share, ReadOnlyShare], When::Always, rules::DEVICE),
    group("io", &[Io], When::Always, rules::IO),
    group("disk", &[Io], When::Disks, rules::DISK),
    group("disk-reset", &[Vcpu], When::Disks, rules::DISK_RESET),
    group("network", &[Io], When::Networks, rules::NETWORK),
    group("tap", &[Vcpu, Main], When::Networks, rules::TAP),
    group("port", &[Io], When::Ports, rules::PORTS),
    group("streams", &[Io], When::Streams, rules::STREAMS),
    group("stats", &[Io], When::Stats, rules::STATS),
    group("test-devices", &[Vcpu], When::TestDevices, rules::TEST_DEVICES),
    group("pci", &[Vcpu], When::Pci, rules::PCI),
    group("share-reset", &[Vcpu], When::Shares, rules::SHARE_RESET),
    group("share", &[Share, ReadOnlyShare], When::Shares, rules::SHARE),
    group("writable-share", &[Share], When::WritableShares, rules::WRITABLE_SHARE),
    group("vnc", &[Vnc], When::Vnc, rules::VNC),
    group("files", &[Io, Main], When::Files, rules::FILES),
    group("pauses", &[Vcpu], When::Control, rules::PAUSES),
    group("control", &[Main], When::Control, rules::CONTROL),
    group("main", &[Main], When::Always, rules::MAIN),
    group("rebuild", &[Main], When::Restart, rules::REBUILD),
    group("supervisor", &[Thread::Supervisor], When::Always, rules::SUPERVISOR),
    group("supervisor-files", &[Thread::Supervisor], When::Files, rules::SUPERVISOR_FILES),
    group("supervisor-control", &[Thread::Supervisor], When::Control, rules::SUPERVISOR_CONTROL),
    group("supervisor-names", &[Thread::Supervisor], When::Names, rules::SUPERVISOR_NAMES),
    group("supervisor-groups", &[Thread::Supervisor], When::Groups, rules::SUPERVISOR_GROUPS),
];

const fn group(name: &'static str, threads: &'static [Thread], when: When, rules: &'static [Rule]) -> Group {
    Group { name, threads, when, rules }
}

/// The rules of a machine's thread of this kind.
pub(super) fn of_machine(thread: Thread, needs: &Needs) -> Vec<&'static [Rule]> {
    let has = |group: &Group| {
        // The threads of the next machine are started by the main one, and inherit its filter.
        let starts =
            thread == Main && needs.restart && [Vcpu, Io].iter().any(|it| group.threads.contains(it));
        (group.threads.contains(&thread) || starts) && group.when.holds(needs)
    };
    rules(has)
}

/// The rules of the supervisor.
pub(super) fn of_supervisor(needs: &SupervisorNeeds) -> Vec<&'static [Rule]> {
    rules(|group| group.threads.contains(&Thread::Supervisor) && group.when.holds_for_supervisor(needs))
}

fn rules(has: impl Fn(&Group) -> bool) -> Vec<&'static [Rule]> {
    GROUPS.iter().filter(|group| has(group)).map(|group| group.rules).collect()
}
