//! What ends a payload that never ends by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::raw::Thread;
use crate::vcpu::StopHandle;

/// Between two signals: one that comes just before KVM_RUN is lost.
const AGAIN: Duration = Duration::from_millis(1);

/// Does `work`, which runs a vCPU on this thread. After `limit` the vCPU is stopped, and `late` is true from then on.
pub fn watched<T>(limit: Duration, switch: &StopHandle, late: &AtomicBool, work: impl FnOnce() -> T) -> T {
    let this = Thread::this();
    std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            let mut patience = limit;
            while wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Release);
                switch.stop();
                // This scope's owner outlives it.
                this.interrupt();
                patience = AGAIN;
            }
        });
        let result = work();
        drop(done);
        result
    })
}
