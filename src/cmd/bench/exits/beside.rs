//! A vCPU that runs on a thread of its own while this thread does something.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

use super::raw::Thread;
use super::threads::{bind, on_cpu};
use crate::vcpu::{StopHandle, Vcpu};

/// Between two signals: one that comes just before KVM_RUN is lost.
const AGAIN: Duration = Duration::from_micros(200);

/// Runs `vcpu` on CPU `there` by kite's own loop while `work` is done on CPU `here`, and stops it by its `switch`.
///
/// # Errors
/// A thread cannot be started, or not be where it should, or `work` fails.
pub fn beside<T>(
    vcpu: &mut Vcpu,
    switch: &StopHandle,
    (there, here): (usize, usize),
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let ended = AtomicBool::new(false);
    switch.go();
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let ended = &ended;
        scope.spawn(move || {
            let bound = bind(there);
            let may_run = bound.is_ok();
            // Whoever waits for it is there.
            let _ = sender.send(bound.map(|()| Thread::this()));
            if may_run {
                vcpu.run();
            }
            ended.store(true, Ordering::Release);
        });
        let thread = receiver.recv().context("the vCPU's thread did not start")??;
        let result = on_cpu(here, work);
        switch.stop();
        while !ended.load(Ordering::Acquire) {
            // The scope waits for the thread, so it is still there.
            thread.interrupt();
            std::thread::sleep(AGAIN);
        }
        result?
    })
}
