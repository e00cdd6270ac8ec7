//! The first touch of a page, the first write to one that is watched, and the list of those that were written.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::code;
use super::protocol::{Budget, Measure};
use super::raw;
use super::rig::{Ends, Host, Rig, Setup};
use super::sample::{Leg, Path};
use super::slot::{ADDRESS, Backing, SLOT, Slot};
use super::threads::on_cpu;

const SMALL: u64 = 4096;
const LARGE: u64 = 2 << 20;
/// So many bytes are touched of small pages, and of large ones.
const SMALL_LEN: u64 = 16 << 20;
const LARGE_LEN: u64 = 128 << 20;
/// The memory that is watched for writes.
const WATCHED: u64 = 256 << 20;
/// Pages before those that count.
const WARMTH: u64 = 16;
/// No page takes so long.
const EACH: Duration = Duration::from_millis(50);

fn touch(rig: &mut Rig, at: u64, stride: u64, count: u64) -> anyhow::Result<Leg> {
    rig.set(code::PARAMETER, at)?;
    rig.set(code::STRIDE, stride)?;
    rig.leg((Path::Raw, Ends::Kernel), count, false, EACH * count.min(10_000) as u32)
}

/// The first touch of each page.
pub struct First(pub Backing);

impl Measure for First {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        let large = matches!(self.0, Backing::Huge | Backing::Transparent);
        let (page, len) = if large { (LARGE, LARGE_LEN) } else { (SMALL, SMALL_LEN) };
        let mut rig = Rig::new(host, &code::TOUCH, Setup::default())?;
        // A thread that pages has the other CPU.
        let slot = on_cpu(budget.cpus[1], || Slot::new(&rig, self.0, len as usize, false))??;
        touch(&mut rig, ADDRESS, page, WARMTH)?;
        let leg = touch(&mut rig, ADDRESS + WARMTH * page, page, len / page - WARMTH)?;
        drop(rig);
        drop(slot);
        Ok(vec![leg])
    }
}

/// The first write to each page since it was last asked which had been written.
pub struct FirstWrite;

impl Measure for FirstWrite {
    fn block(&mut self, host: &Host, _: &Budget) -> anyhow::Result<Vec<Leg>> {
        let mut rig = Rig::new(host, &code::TOUCH, Setup::default())?;
        let slot = Slot::new(&rig, Backing::Mapped, SMALL_LEN as usize, true)?;
        touch(&mut rig, ADDRESS, SMALL, SMALL_LEN / SMALL)?;
        written(&rig, SMALL_LEN)?;
        let leg = touch(&mut rig, ADDRESS, SMALL, SMALL_LEN / SMALL)?;
        ensure!(written(&rig, SMALL_LEN)? == SMALL_LEN / SMALL, "KVM does not see every write");
        drop(rig);
        drop(slot);
        Ok(vec![leg])
    }
}

/// How many pages have been written since it was last asked.
fn written(rig: &Rig, len: u64) -> anyhow::Result<u64> {
    let log = rig.vm.fd().get_dirty_log(SLOT, len as usize).context("this KVM keeps no log of writes")?;
    Ok(log.iter().map(|word| u64::from(word.count_ones())).sum())
}

/// KVM_GET_DIRTY_LOG of 256 MiB, of whose pages so many in a hundred have been written.
pub struct GetLog(pub u64);

impl Measure for GetLog {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        let mut rig = Rig::new(host, &code::TOUCH, Setup::default())?;
        let slot = Slot::new(&rig, Backing::Small, WATCHED as usize, true)?;
        let pages = WATCHED / SMALL * self.0 / 100;
        let stride = WATCHED.checked_div(pages).unwrap_or(0) / SMALL * SMALL;
        let before = rig.meanwhile();
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || start.elapsed() < budget.time {
            if pages > 0 {
                touch(&mut rig, ADDRESS, stride, pages)?;
            }
            let asked = raw::ticks();
            let found = written(&rig, WATCHED)?;
            times.push(u32::try_from(raw::ticks() - asked).unwrap_or(u32::MAX));
            ensure!(found == pages, "KVM saw {found} of {pages} pages written");
        }
        let meanwhile = rig.meanwhile().since(&before);
        drop(rig);
        drop(slot);
        Ok(vec![Leg { path: Path::Raw, stage: "total", times, batch: None, meanwhile }])
    }
}
