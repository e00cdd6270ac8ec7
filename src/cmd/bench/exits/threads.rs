//! Where threads run.

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that this process may use.
///
/// # Errors
/// The host does not tell.
pub fn allowed() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs there are")?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Binds this thread, and those that it starts from now on, to one CPU.
///
/// # Errors
/// There is no such CPU, or it is not allowed.
pub fn bind(cpu: usize) -> anyhow::Result<()> {
    ensure!(cpu < CpuSet::count(), "there is no CPU {cpu}");
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("cannot run on CPU {cpu}: is it there, and allowed?"))
}

/// Does `work` on another CPU, and comes back.
///
/// # Errors
/// It cannot move there, or back.
pub fn on_cpu<T>(cpu: usize, work: impl FnOnce() -> T) -> anyhow::Result<T> {
    let home = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs this thread has")?;
    bind(cpu)?;
    let result = work();
    sched_setaffinity(Pid::from_raw(0), &home).context("cannot move back to a CPU")?;
    Ok(result)
}

/// Gives this thread, and those that it starts from now on, real-time priority.
///
/// # Errors
/// It is not allowed to.
#[expect(unsafe_code, reason = "scheduling policies have no safe interface")]
pub fn real_time() -> anyhow::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: it reads the structure.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    ensure!(result == 0, "--rt: {}; as root, or with ulimit -r 1", std::io::Error::last_os_error());
    Ok(())
}
