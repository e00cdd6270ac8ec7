//! The lane of Linux guests: batches that a lab each runs, in a queue that both lanes take from.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use super::Profile;
use super::state;
use super::tally::Tally;
use super::watched::Watched;
use crate::bench::latency;
use crate::e2e;
use crate::guests;
use crate::host;
use crate::images;
use crate::lab_batch::Batch;
use crate::seccomp_coverage;
use crate::setup::{Kernel, Setup, Unavailable};
use crate::tier::{Choice, Tier};
use crate::user;

/// A part of the lane.
type Work = Box<dyn FnOnce(&mut Tally) -> Result<()> + Send>;

/// What is left to be done, by whichever lane has time.
#[derive(Default)]
pub struct Queue(Mutex<VecDeque<(String, Work)>>);

impl Queue {
    fn push(&self, what: &str, work: impl FnOnce(&mut Tally) -> Result<()> + Send + 'static) {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back((what.to_owned(), Box::new(work)));
    }

    fn pop(&self) -> Option<(String, Work)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Does what is left.
    pub fn work(&self, tally: &mut Tally) {
        while let Some((what, work)) = self.pop() {
            tally.check(&what, work);
        }
    }
}

/// The tests of containers in a guest, of an image's podman and the host's, and those of engines.
const PODMAN: &str = "image/podman";
const OWN_PODMAN: &str = "command/podman";
const ENGINES: &str = "oci/";
/// The tests of images' trees in guests.
const TREES: [&str; 2] = ["image/trees/by-tools", "image/trees/by-hand"];
/// Those of screens that people look at.
const VIEWERS: [&str; 3] = ["screen/viewers", "screen/xorg/fbdev", "screen/xorg/modesetting"];
/// The gates of which each is due in the quick run if what it watches has changed.
const CALLS: (&str, Tier) = ("calls", Tier::Nightly);
const INSTRUCTIONS: (&str, Tier) = ("instructions", Tier::Nightly);
/// A Linux guest that is saved and loaded.
const STATE: (&str, Tier) = ("state", Tier::Nightly);
/// What is neither a batch of guests nor of end-to-end tests.
const ALONE: [(&str, Tier); 3] = [CALLS, INSTRUCTIONS, STATE];

/// Whether a name of the command line is of tests here, whatever kernels there are.
pub fn means(wanted: &str) -> bool {
    const GUESTS: &str = "linux-";
    let choice = Choice { tier: Tier::All, names: vec![wanted.to_owned()] };
    let e2e_tests = || e2e::tests(true).into_iter().map(|(test, _)| test.to_string());
    wanted.starts_with(GUESTS)
        || GUESTS.starts_with(wanted)
        || wanted.starts_with(user::MARK)
        || ALONE.iter().any(|(name, _)| choice.takes(name, Tier::All))
        || e2e_tests().any(|name| choice.takes(&name, Tier::All))
}

/// The names of all tests here, with their tiers.
pub fn tests(kernels: &[Kernel]) -> Vec<(String, Tier)> {
    let both = user::is_another();
    let guests = guests::cases(kernels, both).into_iter().map(|(case, tier)| (case.to_string(), tier));
    let e2e_tests = e2e::tests(both).into_iter().map(|(test, tier)| (test.to_string(), tier));
    let gates = ALONE.map(|(name, tier)| (name.to_owned(), tier));
    guests.chain(e2e_tests).chain(gates).collect()
}

/// Makes everything ready, of which the part that the other lane waits for is `ready` first, and puts what is chosen into
/// the queue.
///
/// # Errors
/// Set-up fails, or kite does not build.
pub fn prepare(choice: &Choice, tally: &mut Tally, queue: &Queue, ready: &Sender<()>) -> Result<()> {
    let mut setup = Setup::new();
    let kernels = tally.part("set-up", |tally| set_up(&mut setup, choice, tally))?;
    // Nobody waits if no native tests were chosen, or they do not build.
    let _ = ready.send(());
    let both = user::is_another();
    let cases = guests::cases(&kernels, both);
    let cases: Vec<_> = cases.into_iter().map(|(case, tier)| (case.to_string(), tier)).collect();
    let cases: Vec<_> = cases.into_iter().filter(|(name, tier)| tally.wants(choice, name, *tier)).collect();
    let e2e_tests = e2e::tests(both).into_iter().map(|(test, tier)| (test.to_string(), tier));
    let e2e_tests: Vec<_> = e2e_tests.filter(|(name, tier)| tally.wants(choice, name, *tier)).collect();
    let gates = ALONE.map(|(name, tier)| {
        let due = choice.names.is_empty() && Watched::of(name).is_some_and(|watched| watched.has_changed());
        (name, tally.wants(choice, name, if due { Tier::Quick } else { tier }))
    });
    let profile = if choice.tier == Tier::Quick { Profile::Ci } else { Profile::Release };
    let names = |list: Vec<(String, Tier)>| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let (cases, e2e_tests) = (names(cases), names(e2e_tests));
    if !cases.is_empty() || !e2e_tests.is_empty() {
        let kite = tally.part("building kite", |_| profile.build())?;
        let limit = if choice.tier == Tier::All { e2e::LIMIT } else { e2e::USUAL_LIMIT };
        push_e2e(&mut setup, (&kite, limit), e2e_tests, tally, queue)?;
        push_guests(&kite, &kernels, cases, queue);
    }
    push_gates(gates, profile, choice.tier, queue);
    Ok(())
}

/// The kernels to be tried, and all that tests here and of the other lane use.
fn set_up(setup: &mut Setup, choice: &Choice, tally: &mut Tally) -> Result<Vec<Kernel>> {
    let (mut kernels, missing) = setup.kernels()?;
    for kernel in missing {
        tally.skipped.push(format!("linux-{}: {}", kernel.name, kernel.reason));
    }
    let lab = setup.lab_kernel()?;
    kernels.push(lab);
    // The script for CI is checked, and so are completions and manual pages.
    setup.programs(&["shellcheck", "zsh", "fish", "mandoc"].map(|name| (name, name)))?;
    // A registry for images, and what makes a certificate for it.
    setup.programs(&["docker-registry", "openssl"].map(|name| (name, name)))?;
    // What checks the root file systems that are made of them.
    setup.programs(&[("fsck.erofs", "erofs-utils")])?;
    setup.programs(&e2e::PROGRAMS)?;
    setup.programs(&e2e::DOCUMENTED)?;
    if TREES.iter().any(|name| choice.takes(name, Tier::Nightly)) {
        images::guest::prepare(setup)?;
    }
    if choice.tier >= Tier::Nightly || choice.names.iter().any(|name| name.contains("selftests")) {
        setup.selftests()?;
    }
    if VIEWERS.iter().any(|name| choice.takes(name, Tier::Nightly)) {
        setup.viewers()?;
    }
    // A test says so itself where there is none.
    let optional = |made: Result<std::path::PathBuf>| match made {
        Err(error) if !error.is::<Unavailable>() => Err(error),
        _ => Ok(()),
    };
    if choice.takes(PODMAN, Tier::Nightly) {
        optional(setup.podman())?;
    }
    if choice.takes(OWN_PODMAN, Tier::Nightly) || choice.names.iter().any(|name| name.starts_with(ENGINES)) {
        optional(setup.engines())?;
    }
    if host::hardware_kvm().is_err() {
        match setup.qemu() {
            // Each batch says so.
            Err(error) if !error.is::<Unavailable>() => return Err(error),
            _ => {}
        }
    }
    Ok(kernels)
}

fn push_guests(kite: &Path, kernels: &[Kernel], names: Vec<String>, queue: &Queue) {
    if names.is_empty() {
        return;
    }
    let mut arguments: Vec<OsString> = vec!["guests".into(), "--kite".into(), kite.into()];
    for kernel in kernels {
        arguments.extend(["--kernel".into(), OsString::from(&kernel.name)]);
    }
    let (limit, usual) = (guests::LIMIT, Duration::from_secs(90));
    push(queue, Batch { what: "Linux guests", names, arguments, limit, usual });
}

/// Devices on real guests: root's in one batch, the user's in another.
fn push_e2e(
    setup: &mut Setup,
    (kite, limit): (&Path, Duration),
    names: Vec<String>,
    tally: &mut Tally,
    queue: &Queue,
) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    match tally.part("making a Debian", |_| setup.debian()) {
        Ok(_) => {}
        Err(error) if error.is::<Unavailable>() => {
            tally.skipped.extend(names.iter().map(|name| format!("{name}: {error}")));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let kernel = setup.kernel()?;
    let arguments: Vec<OsString> =
        vec!["e2e".into(), "--kite".into(), kite.into(), "--kernel".into(), kernel.name.into()];
    let usual = Duration::from_secs(300);
    let (theirs, own): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.starts_with(user::MARK));
    for (what, names) in [("End-to-end tests by root", own), ("End-to-end tests by an ordinary user", theirs)]
    {
        if !names.is_empty() {
            push(queue, Batch { what, names, arguments: arguments.clone(), limit, usual });
        }
    }
    Ok(())
}

fn push(queue: &Queue, mut batch: Batch) {
    batch.arguments.extend(batch.names.iter().map(OsString::from));
    queue.push(batch.what, move |tally| {
        batch.run(&mut Setup::new())?.into_iter().for_each(|outcome| tally.count(outcome));
        Ok(())
    });
}

/// Whether each rule of the sandbox is needed, with either C library in the last tier; how many instructions kite adds to an
/// exit; and whether a saved Linux guest goes on.
fn push_gates(gates: [(&'static str, bool); ALONE.len()], profile: Profile, tier: Tier, queue: &Queue) {
    for (name, _) in gates.into_iter().filter(|(_, wanted)| *wanted) {
        queue.push(name, move |tally| {
            match name {
                "calls" => seccomp_coverage::run(&mut Setup::new(), profile, tier == Tier::All)?,
                "instructions" => latency::count(&mut Setup::new(), &Profile::Release.build()?)?,
                _ => state::run(&mut Setup::new())?,
            }
            tally.passed += 1;
            // Only what is run as users get it counts for later runs.
            if let Some(watched) = Watched::of(name).filter(|_| tier >= Tier::Nightly) {
                watched.record()?;
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_done_once_by_whoever_has_time() {
        let queue = Queue::default();
        for name in ["a", "b"] {
            queue.push(name, |tally| {
                tally.passed += 1;
                Ok(())
            });
        }
        let (mut first, mut second) = (Tally::default(), Tally::default());
        queue.work(&mut first);
        queue.work(&mut second);
        first.add(second);
        assert_eq!((first.passed, first.failed.len()), (2, 0));
    }

    #[test]
    fn names_of_linux_guests_e2e_tests_and_gates_are_no_parts_of_native_tests_names() {
        for name in
            ["linux-6.1/bzImage", "net/tap", "net/", "user/command/", "calls", "instructions", "state"]
        {
            assert!(means(name), "{name}");
        }
        assert!(!means("a_disk_that_is_reset") && !means("nosuch"));
    }
}
