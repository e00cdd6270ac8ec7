//! What kite tells of a guest's exits and of its boot: numbers that are KVM's own, and moments in their order.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Fixture, command, kernel};

/// What the trace of a boot has, in this order.
const BOOT: [&str; 10] = [
    "parse options",
    "memory",
    "virtual machine",
    "vCPUs",
    "registers",
    "first KVM_RUN",
    "first output",
    "start_kernel",
    "init",
    "exit",
];
/// What that of a command has.
const COMMAND: [&str; 7] = [
    "first KVM_RUN",
    "start_kernel",
    "init",
    "command start",
    "command's first output",
    "command end",
    "exit",
];

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

/// Fails unless kite has counted as many exits as KVM, and has named who cost most; answers the totals.
pub fn compare(path: &Path) -> Result<String> {
    let stats = read(path)?;
    ensure!(stats["finished"] == true, "the guest has not ended");
    let totals = &stats["totals"];
    let (port, memory) = (&totals["port"], &totals["memory"]);
    let [exits, ring, io] = [&port["exits"], &port["ring"], &port["kvm_exits"]].map(number);
    let (exits, ring, io) = (exits?, ring?, io?);
    ensure!(exits + ring == io, "ports: {exits} exits + {ring} in the ring are not KVM's {io}");
    let (accesses, mmio) = (number(&memory["exits"])?, number(&memory["kvm_exits"])?);
    ensure!(accesses == mmio, "memory: {accesses} exits are not KVM's {mmio}");
    let rows = |of: &Value| -> Result<u64> {
        of.as_array().context("no rows")?.iter().map(|row| number(&row["count"])).sum()
    };
    ensure!(rows(&stats["accesses"])? == exits + accesses, "the rows are not all exits");
    let vcpus = stats["vcpus"].as_array().context("no vCPUs")?;
    let parts = vcpus.iter().map(|vcpu| rows(&vcpu["accesses"])).sum::<Result<u64>>()?;
    ensure!(parts == exits + accesses, "the vCPUs' rows are not all exits");
    let named = stats["accesses"].as_array().into_iter().flatten().any(|row| row["device"] == "serial");
    ensure!(named, "the serial port is not named");
    let words = stats["words"].as_array().context("no words")?;
    let Some(Value::String(first)) = words.first() else { bail!("nothing stands out") };
    Ok(format!("ports {exits} + {ring} = {io}, memory {accesses} = {mmio}; {first}"))
}

/// Fails unless these are in the trace in this order; answers how many exits the guest's phases have together.
fn follow(path: &Path, order: &[&str]) -> Result<u64> {
    let trace = read(path)?;
    let events = trace["traceEvents"].as_array().context("no events")?;
    let mut last = 0;
    for name in order {
        let found = events.iter().find(|event| event["name"] == *name && event["ph"] != "M");
        let at = found.and_then(|event| event["ts"].as_u64()).with_context(|| format!("no {name}"))?;
        ensure!(at >= last, "{name} comes at {at}, before what is to precede it");
        last = at;
    }
    ensure!(events.iter().any(|event| event["ph"] == "C"), "nothing shows exits over time");
    let phases = events.iter().filter(|event| event["ph"] == "X" && !event["args"]["exits"].is_null());
    phases.map(|event| number(&event["args"]["exits"])).sum()
}

fn run(mut kite: Command) -> Result<String> {
    let output = kite.output().context("starting kite")?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {stderr}", output.status);
    Ok(stderr)
}

/// A stock kernel, for its own sake and for a command's.
pub fn boot(fixture: &Fixture, name: &str) -> Result<String> {
    let kernel = kernel(name)?;
    let (stats, trace) = (fixture.file("stats.json"), fixture.file("trace.json"));
    let measured = || -> Result<Command> {
        let mut kite = command::kite(fixture, &kernel)?;
        kite.arg("--trace").arg(&trace);
        Ok(kite)
    };
    let mut kite = measured()?;
    kite.args(["--cpus", "2"]).arg(format!("--stats={}", stats.display()));
    ensure!(run(kite)?.is_empty(), "kite has something to say");
    let told = compare(&stats)?;
    let totals = &read(&stats)?["totals"];
    let exits = number(&totals["port"]["exits"])? + number(&totals["memory"]["exits"])?;
    let traced = follow(&trace, &BOOT)?;
    ensure!(traced == exits, "the phases have {traced} exits, and the guest had {exits}");
    let mut kite = measured()?;
    // The table comes also where the command has closed its standard error.
    kite.args(["--stats", "--", "sh", "-c", "exec 2>&-; sleep 1; uname"]);
    let table = run(kite)?;
    for words in ["what stands out", "KVM's own counters", "0x3f8 write 1          serial", "fs0"] {
        ensure!(table.contains(words), "{words} is not in\n{table}");
    }
    follow(&trace, &COMMAND)?;
    Ok(told)
}
