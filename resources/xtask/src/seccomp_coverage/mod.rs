//! `cargo xtask calls`: whether each rule of the sandbox is needed. kite is traced while its own tests and Linux guests run,
//! linked with the C libraries of two releases; what no thread makes use of is told.

mod kite;
mod machine;
mod rare;
mod rules;
mod trace;
mod traced;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use self::kite::Kite;
use self::rules::Rules;
use self::traced::Folder;
use crate::setup::{Setup, Unavailable};
use crate::step::{output, step};
use crate::test::{Profile, Programs};

/// The programs of tests that run machines of every kind, and the parts of names by which tests are chosen; none: all.
const TESTS: [(&str, &[&str]); 2] = [("tiny", &[]), ("cli", &["terminal::", "cgroup::"])];
/// One that is run again in the lab, since not every host allows io_uring.
const BUSY_DISK: (&str, &str) = ("tiny", "virtio::a_disk_that_is_reset_while_it_reads_starts_again");

/// How often each rule was seen, in the order of the rules, by the C libraries.
#[derive(Default)]
struct Seen {
    libraries: Vec<&'static str>,
    rules: Vec<(String, BTreeMap<&'static str, u64>)>,
    refused: Vec<String>,
}

/// Traces kite, built so, with this host's C library, and with the other release's, too, if `both`. Prints how often each
/// rule was seen.
///
/// # Errors
/// Set-up fails; or a rule is not needed, or lacks.
pub fn run(setup: &mut Setup, profile: Profile, both: bool) -> Result<()> {
    setup.programs(&[("strace", "strace"), ("insmod", "kmod")])?;
    setup.programs(&crate::e2e::PROGRAMS)?;
    setup.debian()?;
    let kernel = setup.kernel()?;
    let programs = step("building tests", Programs::built)?;
    let mut kites = vec![Kite::own(&programs.kite, profile)?];
    if both {
        match Kite::other() {
            Ok(kite) => kites.push(kite),
            Err(error) if error.is::<Unavailable>() => println!("skipped: another C library: {error}"),
            Err(error) => return Err(error),
        }
    }
    let mut seen = Seen::default();
    for kite in kites {
        let mut rules = Rules::parse(&listing(&kite.tested)?)?;
        let folder = Folder::new(&kite.tested, false)?;
        for (name, filters) in TESTS {
            let test = programs.test(name)?;
            let what = format!("tracing kite in the tests of {name}, glibc {}", kite.glibc);
            step(what, || folder.test(&programs.kite, test, filters))?;
        }
        folder.read(&mut rules)?;
        let folder = Folder::new(&kite.released, true)?;
        let what = format!("tracing kite in the lab, glibc {}", kite.glibc);
        step(what, || {
            let (test, name) = BUSY_DISK;
            folder.test_in_lab(setup, &programs.kite, programs.test(test)?, name)?;
            folder.guests(setup, &kernel.name)
        })?;
        folder.read(&mut rules)?;
        seen.add(kite.glibc, &rules);
    }
    seen.judge()
}

/// The rules, as this kite tells them.
fn listing(kite: &Path) -> Result<String> {
    output(Command::new(kite).args(["inspect", "--calls", "--json"]))
}

impl Seen {
    fn add(&mut self, library: &'static str, rules: &Rules) {
        self.libraries.push(library);
        for (name, times) in rules.seen() {
            let at = self.rules.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                self.rules.push((name, BTreeMap::new()));
                self.rules.len() - 1
            });
            self.rules[at].1.insert(library, times);
        }
        self.refused.extend(rules.refused().map(|call| format!("glibc {library}: {call}")));
    }

    fn judge(&self) -> Result<()> {
        for library in &self.libraries {
            print!("{:>12}", format!("glibc {library}"));
        }
        println!("  times each rule was made use of");
        let mut unused = Vec::new();
        for (rule, times) in &self.rules {
            for library in &self.libraries {
                print!("{:>12}", times.get(library).map(u64::to_string).unwrap_or_default());
            }
            let why = rare::why(rule);
            println!("  {rule}{}", why.map(|why| format!(" ({why})")).unwrap_or_default());
            if times.values().all(|times| *times == 0) && why.is_none() {
                unused.push(rule);
            }
        }
        ensure!(self.refused.is_empty(), "calls that no rule lets through: {:#?}", self.refused);
        ensure!(unused.is_empty(), "rules that nothing makes use of: {unused:#?}");
        let unknown: Vec<_> =
            rare::rules().filter(|rare| self.rules.iter().all(|(it, _)| it != rare)).collect();
        ensure!(unknown.is_empty(), "rarely used rules that there are not: {unknown:#?}");
        Ok(())
    }
}
