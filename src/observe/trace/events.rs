//! The timeline as Chrome's trace events, which ui.perfetto.dev and chrome://tracing show ("Trace Event Format", Google):
//! phases are complete events, marks instants, exits counters. Times are microseconds since kite's start.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

use super::{Mark, Moment, Samples, Timeline};
use crate::observe::stats::{Counts, Stats};

/// The process that kite's threads belong to in the trace.
const KITE: u32 = 1;
/// The process that the guest is in the trace.
const GUEST: u32 = 2;
/// Number of a vCPU's thread in the trace, for the first of them.
const VCPUS: usize = 100;
/// How often two clocks are read to find one reading that nothing interrupted.
const READINGS: usize = 8;
/// Of a phase's exits, the most expensive are named.
const NAMED: usize = 16;

/// What the guest does from a mark on.
const FROM: [(Mark, &str); 4] = [
    (Mark::Kernel, "kernel"),
    (Mark::Init, "user space"),
    (Mark::CommandStart, "command"),
    (Mark::CommandEnd, "end"),
];

impl Timeline {
    /// Everything as JSON.
    pub fn to_json(&self, samples: &Samples) -> Value {
        let mut events = vec![name("process_name", KITE, 0, "kite"), name("process_name", GUEST, 0, "guest")];
        self.add_phases(&mut events);
        if let Some(stats) = self.stats.get() {
            let end = self.moment(Mark::Exit).map_or_else(Instant::now, |moment| moment.at);
            self.add_vcpus(&mut events, stats, end);
            self.add_guest(&mut events, stats, end);
            self.add_samples(&mut events, samples);
        }
        json!({
            "displayTimeUnit": "ms",
            "otherData": { "kite": env!("CARGO_PKG_VERSION"), "begun_monotonic_ns": self.begun_ns() },
            "traceEvents": events,
        })
    }

    /// When kite started, that is where `ts` is 0, by CLOCK_MONOTONIC, which all processes share: in nanoseconds, of
    /// several readings the one that took least.
    fn begun_ns(&self) -> Option<u64> {
        let now = || Some(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?));
        let reading = |_| {
            let (before, elapsed, after) = (now()?, self.begun.elapsed(), now()?);
            let took = after.checked_sub(before)?;
            Some((took, (before + took / 2).checked_sub(elapsed)?))
        };
        let (_, begun) = (0..READINGS).filter_map(reading).min_by_key(|(took, _)| *took)?;
        begun.as_nanos().try_into().ok()
    }

    /// Whole numbers: of two slices that touch, viewers must not find that they overlap.
    fn us(&self, at: Instant) -> u64 {
        self.since(at).as_micros() as u64
    }

    fn slice(&self, name: &str, place: (u32, usize), from: Instant, to: Instant) -> Map<String, Value> {
        let duration = self.us(to).saturating_sub(self.us(from));
        let fields = [
            ("ph", "X".into()),
            ("name", name.into()),
            ("pid", place.0.into()),
            ("tid", place.1.into()),
            ("ts", self.us(from).into()),
            ("dur", duration.into()),
        ];
        fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect()
    }

    fn instant(&self, name: &str, place: (u32, usize), at: Instant) -> Value {
        json!({ "ph": "i", "s": "p", "name": name, "pid": place.0, "tid": place.1, "ts": self.us(at) })
    }

    fn add_phases(&self, events: &mut Vec<Value>) {
        let phases = self.list();
        let mut threads: Vec<&str> = Vec::new();
        for phase in phases.iter() {
            let known = threads.iter().position(|thread| *thread == phase.thread);
            let thread = known.unwrap_or_else(|| {
                threads.push(&phase.thread);
                events.push(name("thread_name", KITE, threads.len(), &phase.thread));
                threads.len() - 1
            });
            events.push(self.slice(phase.name, (KITE, thread + 1), phase.start, phase.end).into());
        }
    }

    fn add_vcpus(&self, events: &mut Vec<Value>, stats: &Stats, end: Instant) {
        for (index, entered) in stats.entered().enumerate() {
            let Some(entered) = entered else { continue };
            let place = (KITE, VCPUS + index);
            events.push(name("thread_name", place.0, place.1, &format!("vcpu{index}")));
            events.push(self.instant("first KVM_RUN", place, entered));
            events.push(self.slice("runs the guest", place, entered, end).into());
        }
    }

    /// The guest's marks, and between them what it does, with the exits for it.
    fn add_guest(&self, events: &mut Vec<Value>, stats: &Stats, end: Instant) {
        let place = (GUEST, 1);
        events.push(name("thread_name", place.0, place.1, "boot"));
        for (mark, moment) in Mark::ALL.into_iter().filter_map(|mark| Some((mark, self.moment(mark)?))) {
            events.push(self.instant(mark.name(), place, moment.at));
        }
        let Some(entered) = stats.entered().flatten().min() else { return };
        events.push(self.instant("first instruction", place, entered));
        let is_linux = self.moment(Mark::Kernel).is_some();
        let first = if is_linux { "to the kernel's first line" } else { "guest" };
        let start = Moment { at: entered, counts: Counts::default() };
        let mut starts = vec![(first, &start)];
        for (mark, name) in FROM {
            // A guest may print what it likes, in any order.
            let moment = self.moment(mark).filter(|moment| starts.iter().all(|(_, it)| it.at <= moment.at));
            starts.extend(moment.map(|moment| (name, moment)));
        }
        let last = Moment { at: end, counts: stats.counts() };
        let ends = starts.iter().skip(1).map(|(_, moment)| *moment).chain([&last]);
        for ((name, from), to) in starts.iter().zip(ends) {
            let mut slice = self.slice(name, place, from.at, to.at);
            slice.insert("args".to_owned(), exits(&to.counts.since(&from.counts), stats));
            events.push(slice.into());
        }
    }

    fn add_samples(&self, events: &mut Vec<Value>, samples: &Samples) {
        for pair in samples.kept.windows(2) {
            let [before, after] = pair else { continue };
            let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
            let rate = |(device, count): (&String, &u64)| {
                let more = count.saturating_sub(before.exits.get(device).copied().unwrap_or(0));
                (device.clone(), ((more as f64 / seconds.max(1e-6)) as u64).into())
            };
            let rates: Map<String, Value> = after.exits.iter().map(rate).collect();
            let ts = self.us(before.at);
            events
                .push(json!({ "ph": "C", "name": "exits a second", "pid": GUEST, "ts": ts, "args": rates }));
        }
    }
}

/// Names a process or a thread.
fn name(what: &str, process: u32, thread: usize, name: &str) -> Value {
    json!({ "ph": "M", "name": what, "pid": process, "tid": thread, "args": { "name": name } })
}

/// What the exits of a phase were for.
fn exits(counts: &Counts, stats: &Stats) -> Value {
    let mut rows = counts.rows();
    let (exits, ns) = rows.iter().fold((0, 0), |sum, row| (sum.0 + row.exits, sum.1 + row.ticks));
    let ms = |ticks: u64| ticks as f64 * stats.tick_ns() / 1e6;
    let mut args = Map::new();
    args.insert("exits".to_owned(), exits.into());
    args.insert("ms in kite".to_owned(), ms(ns).into());
    rows.sort_by_key(|row| std::cmp::Reverse(row.ticks));
    for (row, rank) in rows.iter().take(NAMED).zip(1..) {
        let mut text = format!("{} exits, {:.3} ms", row.exits, ms(row.ticks));
        if row.ring > 0 {
            text.push_str(&format!(", {} writes without an exit", row.ring));
        }
        // Viewers sort by name.
        args.insert(format!("{rank:2}: {}", stats.place(row.subject)), text.into());
    }
    args.into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::watched;
    use super::*;

    fn events(timeline: &Timeline) -> Vec<Value> {
        timeline.to_json(&Samples::default())["traceEvents"].as_array().unwrap().clone()
    }

    #[test]
    fn every_event_has_what_a_viewer_needs_of_it() {
        let timeline = watched();
        timeline.phase("memory", || ());
        timeline.mark(Mark::Kernel);
        timeline.mark(Mark::Init);
        timeline.mark(Mark::Exit);
        let events = events(&timeline);
        for event in &events {
            assert!(event["pid"].is_u64() && event["name"].is_string(), "{event}");
            match event["ph"].as_str().unwrap() {
                "M" => assert!(event["args"]["name"].is_string()),
                "X" => assert!(event["ts"].is_u64() && event["dur"].is_u64(), "{event}"),
                "i" => assert!(event["ts"].is_u64() && event["s"] == "p", "{event}"),
                other => panic!("{other}"),
            }
        }
        let named = |name: &str| events.iter().filter(|event| event["name"] == name).count();
        assert_eq!(["memory", "start_kernel", "init", "exit"].map(named), [1; 4]);
    }

    #[test]
    fn the_start_is_told_by_the_clock_that_all_processes_share() {
        let now = || Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_nanos() as u64;
        let (before, timeline, after) = (now(), Timeline::default(), now());
        std::thread::sleep(Duration::from_millis(20));
        let json = timeline.to_json(&Samples::default());
        let begun = json["otherData"]["begun_monotonic_ns"].as_u64().unwrap();
        // Half of what a reading takes may be missing.
        let reading = 10_000_000;
        assert!((before - reading..after + reading).contains(&begun), "{before} {begun} {after}");
    }

    #[test]
    fn counters_are_rates_of_each_device() {
        let timeline = watched();
        let mut samples = Samples::default();
        let at = |ms| timeline.begun + std::time::Duration::from_millis(ms);
        let sample = |ms, count| super::super::samples::Sample {
            at: at(ms),
            exits: [("serial".to_owned(), count)].into(),
        };
        samples.kept = vec![sample(10, 5), sample(20, 25), sample(30, 25)];
        let json = timeline.to_json(&samples);
        let counters = json["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "C");
        let found: Vec<_> =
            counters.map(|event| (event["ts"].as_u64(), event["args"]["serial"].as_u64())).collect();
        assert_eq!(found, [(Some(10_000), Some(2000)), (Some(20_000), Some(0))]);
    }
}
