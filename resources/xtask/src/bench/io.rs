//! Disk and network of a running guest: kite beside QEMU's microvm machine, with the same kernel, initrd, programs, disk
//! and tap, on the same KVM. Each round boots each once; its guest does everything in turn, each at a word from here.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::exits::{ALL, Histograms, TO_USER, hits};
use super::quartiles;
use crate::e2e::{Fixture, GUEST, HERE, Started, TAP, Wire, finish, go_alone};
use crate::machine::{Access, Machine, Net, Vmm};
use crate::running::Running;

/// The disk's size in bytes.
const DISK: u64 = 256 << 20;
/// What anything may take, with its machine emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// Something a guest does.
struct Work {
    name: &'static str,
    /// What the figure is in.
    unit: &'static str,
    /// What exits are counted by.
    per: &'static str,
    /// More is better.
    more: bool,
    /// The guest's command.
    command: &'static str,
}

impl Work {
    const fn disk(name: &'static str, unit: &'static str, command: &'static str) -> Self {
        Self { name, unit, per: "request", more: true, command }
    }

    /// A figure by the clock of the lab in which an instruction takes a nanosecond, in thousand instructions for a request,
    /// a MiB or a round trip.
    fn instructions(&self, figure: f64) -> f64 {
        const MIB: f64 = (1 << 20) as f64;
        match self.unit {
            "KiB/s" => 1e6 * 1024.0 / figure,
            "Mbit/s" => MIB * 8.0 / figure,
            "ms" => 1000.0 * figure,
            _ => 1e6 / figure,
        }
    }

    const fn net(name: &'static str, command: &'static str) -> Self {
        Self { name, unit: "Mbit/s", per: "MiB", more: true, command }
    }
}

/// In the order in which they are done.
const WORKS: [Work; 11] = [
    Work::disk("random read 4 KiB, depth 1", "/s", "disk randread 4096 1 1 iops"),
    Work::disk("random write 4 KiB, depth 1", "/s", "disk randwrite 4096 1 1 iops"),
    Work::disk("random read 4 KiB, depth 32, one by one", "/s", "disk randread 4096 32 1 iops"),
    Work::disk("random write 4 KiB, depth 32, one by one", "/s", "disk randwrite 4096 32 1 iops"),
    Work::disk("random read 4 KiB, depth 32, all at once", "/s", "disk randread 4096 32 32 iops"),
    Work::disk("random write 4 KiB, depth 32, all at once", "/s", "disk randwrite 4096 32 32 iops"),
    Work::disk("sequential read 1 MiB", "KiB/s", "disk read 1048576 4 1 speed"),
    Work::disk("sequential write 1 MiB", "KiB/s", "disk write 1048576 4 1 speed"),
    Work::net("TCP, guest sends", "tcp"),
    Work::net("TCP, guest receives", "tcp -R"),
    Work { name: "round trip", unit: "ms", per: "ping", more: false, command: "round" },
];
/// What the guest's commands mean. Each says how many requests it made, and its figure. A disk's depth is how many requests
/// are there at a time, of which so many are taken back, and as many made, at once.
const SCRIPT: &str = r#"
ip link set lo up; ip link set eth0 up
ip addr add $GUEST/24 dev eth0
disk() {
    IFS=';' read -ra f < <(fio --name=work --filename=/dev/vdb --direct=1 --ioengine=libaio --rw=$1 --bs=$2 --iodepth=$3 \
        --iodepth_batch=$4 --iodepth_batch_complete_min=$4 --iodepth_batch_complete_max=$4 --time_based --runtime=$SECONDS_EACH --size=100% --randrepeat=1 --norandommap --output-format=terse --terse-version=3)
    case $5 in iops) figure=$((f[7] + f[48]));; speed) figure=$((f[6] + f[47]));; esac
    echo "$(((f[5] + f[46]) * 1024 / $2)) $figure"
}
tcp() { iperf3 -c $HERE -t $SECONDS_EACH -f m $1 | grep receiver | tr -s ' ' | cut -d ' ' -f 5,7; }
round() { echo "300 $(ping -q -f -c 300 $HERE | sed -n 's/^rtt.* = [^/]*\/\([^/]*\)\/.*/\1/p')"; }
work() {
    echo "guest: ready"; read -r _
    result=$("$@")
    echo "guest: result $result."; read -r _
}
ping -q -c 1 $HERE >/dev/null
"#;
/// How long the guest does each thing, in seconds.
const SECONDS: u32 = 3;
/// As [`SECONDS`], where each is a thousand million instructions.
const COUNTED_SECONDS: u32 = 1;

/// What is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Question {
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::whole(1, u32::MAX))]
    rounds: u32,
    /// Do only what has this in its name
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// Count instructions in the lab, instead of times
    #[arg(long)]
    pub count: bool,
}

impl Question {
    /// As this program's own arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--rounds".into(), self.rounds.to_string().into()];
        arguments.extend(["--only".into(), OsString::from(&self.only)]);
        arguments.extend(self.count.then(|| "--count".into()));
        arguments
    }
}

/// What is compared, and what it did.
struct Subject {
    name: &'static str,
    vmm: Vmm,
    is_on_pci: bool,
    /// For each work, the figures of the rounds.
    figures: Vec<Vec<f64>>,
    /// For each work, exits for each request: to user space, and in all.
    exits: Vec<[f64; 2]>,
}

/// Measures and prints, with QEMU alone if there is no kite.
///
/// # Errors
/// A guest fails.
pub fn run(kite: Option<PathBuf>, kernel: &str, question: &Question) -> Result<()> {
    let Question { rounds, ref only, count } = *question;
    go_alone()?;
    let wire = Wire::new(None)?;
    let _server = Started::new(Command::new("iperf3").arg("-s").stdout(Stdio::null()))?;
    let works: Vec<&Work> = WORKS.iter().filter(|work| work.name.contains(only.as_str())).collect();
    let fixture = Fixture::new(Vmm::Qemu("threads"), kernel)?;
    let disk = disk(&fixture)?;
    let seconds = if count { COUNTED_SECONDS } else { SECONDS };
    let kites = kite.into_iter().flat_map(|kite| {
        [("kite, MMIO", false), ("kite, PCI", true)].map(|(name, pci)| (name, Vmm::Kite(kite.clone()), pci))
    });
    let qemus = ["io_uring", "threads"].map(|aio| {
        (if aio == "threads" { "QEMU, threads" } else { "QEMU, io_uring" }, Vmm::Qemu(aio), false)
    });
    let mut subjects: Vec<Subject> = kites
        .chain(qemus)
        .map(|(name, vmm, is_on_pci)| {
            let (figures, exits) = (vec![Vec::new(); works.len()], Vec::new());
            Subject { name, vmm, is_on_pci, figures, exits }
        })
        .collect();
    for round in 0..=rounds {
        for subject in &mut subjects {
            eprintln!("xtask: round {round} of {rounds}, {}", subject.name);
            let counted = if round == 0 { Histograms::start([TO_USER, ALL]).ok() } else { None };
            let machine = machine(&fixture, &disk, subject.is_on_pci, &works, seconds)?;
            let mut running = Running::start(machine.command(&subject.vmm), false)?;
            for (index, work) in works.iter().enumerate() {
                let done = one(&mut running, counted.as_ref());
                let done =
                    done.with_context(|| format!("{}, {}:\n{}", subject.name, work.name, running.said()));
                let (figure, exits) = done?;
                let figure = if count { work.instructions(figure) } else { figure };
                eprintln!("xtask:   {}: {figure} {}, exits {exits:.2?}", work.name, work.unit);
                match (round, &counted) {
                    (0, Some(_)) => subject.exits.push(exits),
                    (0, None) => {}
                    _ => subject.figures[index].push(figure),
                }
            }
            finish(&mut running)?;
        }
    }
    drop(wire);
    print(&works, &mut subjects, count);
    Ok(())
}

/// A disk without holes: reading them would cost less than reading.
fn disk(fixture: &Fixture) -> Result<PathBuf> {
    let disk = fixture.file("io.img");
    let file = File::create(&disk).context("making a disk")?;
    let chunk = [0xa5; 1 << 20];
    for _ in 0..DISK / chunk.len() as u64 {
        (&file).write_all(&chunk).context("filling a disk")?;
    }
    Ok(disk)
}

fn machine(fixture: &Fixture, disk: &Path, pci: bool, works: &[&Work], seconds: u32) -> Result<Machine> {
    let mut script = format!("GUEST={GUEST}; HERE={HERE}; SECONDS_EACH={seconds}\n{SCRIPT}");
    for work in works {
        script += &format!("work {}\n", work.command);
    }
    script += "exit 0\n";
    let mut machine = if pci { fixture.machine_on_pci(&script)? } else { fixture.machine(&script)? };
    machine.disks.push((disk.to_owned(), Access::Write));
    machine.nets.push(Net::Tap(TAP.to_owned()));
    Ok(machine)
}

/// Has the guest do the next thing; answers its figure, and exits for each of its requests.
fn one(running: &mut Running, histograms: Option<&Histograms<2>>) -> Result<(f64, [f64; 2])> {
    let count = || match histograms.map(Histograms::read).transpose()? {
        Some(texts) => Ok::<_, anyhow::Error>([hits(&texts[0])?, hits(&texts[1])?]),
        None => Ok([0; 2]),
    };
    running.wait_for("guest: ready", LIMIT)?;
    let before = count()?;
    running.type_in("\n")?;
    running.wait_for("guest: result ", LIMIT)?;
    let result = running.wait_for(".\r\n", LIMIT)?;
    let after = count()?;
    running.type_in("\n")?;
    let (requests, figure) = result.split_once(' ').context("no result")?;
    let requests: f64 = requests.parse().with_context(|| format!("no count: {result}"))?;
    let figure: f64 = figure.parse().with_context(|| format!("no figure: {result}"))?;
    if requests <= 0.0 || figure <= 0.0 {
        bail!("nothing was done: {result}");
    }
    Ok((figure, [0, 1].map(|index| (after[index] - before[index]) as f64 / requests)))
}

fn print(works: &[&Work], subjects: &mut [Subject], count: bool) {
    println!(
        "medians; the first one's part of each, above 1 where it is ahead; exits to user space and in all, a request each"
    );
    for (index, work) in works.iter().enumerate() {
        let unit = if count { "thousand instructions" } else { work.unit };
        println!("\n{} ({unit}; exits by {})", work.name, work.per);
        let mut kite = None;
        for subject in subjects.iter_mut() {
            let figures = &mut subject.figures[index];
            figures.sort_unstable_by(f64::total_cmp);
            let [low, median, high] = quartiles(figures);
            let kite = *kite.get_or_insert(median);
            let ratio = if work.more && !count { kite / median } else { median / kite };
            let spread = format!("{low:.2} to {high:.2}");
            let exits = subject
                .exits
                .get(index)
                .map_or("not counted".to_owned(), |[user, all]| format!("{user:.2} {all:.2}"));
            println!("{:<18}{median:>12.2}{spread:>26}{ratio:>8.2}{exits:>20}", subject.name);
        }
    }
}
