//! The threads that serve virtio devices: kicks from the driver, by eventfd, and what the host makes ready.
//!
//! A kick costs no exit once the device is up: KVM itself writes the queue's eventfd (KVM API, `KVM_IOEVENTFD`). That is
//! set up by the thread when the driver comes up, as the kernel waits for every vCPU to see it: a guest without drivers
//! does not pay for it.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use devices::virtio::{Notify, Virtio};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::host::event::kvm_event;
use crate::host::lock::lock;
use crate::host::thread::{Thread, ThreadKind, is_scheduled_as_usual, set_patient, spawn_gathered};
use crate::vcpu::LONGEST_STEP;

/// The events of one device's queues, which its driver sends to the thread that serves it.
pub struct QueueEvents {
    kicks: Vec<EventFd>,
    driver_ok: EventFd,
}

impl QueueEvents {
    /// Those of a device with `count` queues.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(count: usize) -> anyhow::Result<Self> {
        let kicks = (0..count).map(|_| kvm_event()).collect::<anyhow::Result<_>>()?;
        Ok(Self { kicks, driver_ok: kvm_event()? })
    }

    /// One for each queue, which its driver kicks.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Has the thread connect the kicks, and serve every queue and source once.
    pub fn driver_ok(&self) {
        let _ = self.driver_ok.write(1);
    }
}

/// Has KVM write a device's events where the driver kicks.
pub trait Kicks: Send {
    /// From now on KVM writes them instead of an exit. Where it refuses, exits go on.
    fn enable(&mut self, events: &QueueEvents);
}

/// The vCPUs' side of [`QueueEvents`].
pub struct Notifier(pub Arc<QueueEvents>);

impl Notify for Notifier {
    fn kick(&self, index: u16) {
        if let Some(kick) = self.0.kicks.get(usize::from(index)) {
            let _ = kick.write(1);
        }
    }

    fn driver_ok(&self) {
        self.0.driver_ok();
    }
}

/// How a thread that serves one device shares a processor with the vCPU that kicks it.
///
/// A thread that takes the processor when it is woken serves a request, interrupts and sleeps: that is quickest for a driver
/// that waits. A driver with more to ask is interrupted by each of its own requests then, and all of them cost as much as
/// the first. It does better if the thread waits until the vCPU does, and serves what has gathered. Which driver this is
/// shows only when the thread waits: it tries that now and then.
#[derive(Debug, Default)]
struct Pace {
    /// So many lone requests in a row end its patience; it is not patient at 0.
    patience: u32,
    /// How many lone requests it has served since it last tried.
    lone: u32,
}

impl Pace {
    /// After so many lone requests it tries.
    const TRIES: u32 = 64;
    /// So many in a row end its patience.
    const PATIENCE: u32 = 4;

    /// Takes in how many requests a service has found; answers whether the thread is patient from now on, if that changes.
    fn found(&mut self, requests: u32) -> Option<bool> {
        let was = self.patience > 0;
        match requests {
            0 => return None,
            1 if was => self.patience -= 1,
            1 => self.lone += 1,
            _ => self.patience = Self::PATIENCE,
        }
        if self.lone == Self::TRIES {
            (self.lone, self.patience) = (0, 1);
        }
        Some(self.patience > 0).filter(|is| *is != was)
    }
}

/// One device, as the thread that serves it knows it.
pub struct IoDevice {
    /// The device.
    pub virtio: Arc<Mutex<Virtio>>,
    /// Where kicks come.
    pub events: Arc<QueueEvents>,
    /// What connects them with where the guest kicks.
    pub connect: Box<dyn Kicks>,
    /// What its thread may do.
    pub confinement: ThreadKind,
}

/// What an event is about: the device's index in the upper half, and one of these in the lower.
const DRIVER_OK: u32 = 0;
const FIRST_KICK: u32 = 1;
/// Sources count from here; a device has at most 32,768 queues.
const FIRST_SOURCE: u32 = 1 << 16;
/// The epoll event that ends the thread.
const STOP: u64 = u64::MAX;
/// How many events are taken at once.
const EVENTS: usize = 16;
/// The thread's stack in bytes; the host gives what is touched of it.
const STACK: usize = 256 << 10;

/// A thread that serves devices. Dropping it stops it.
pub struct IoThread {
    stop: EventFd,
    thread: Option<Thread<()>>,
}

impl IoThread {
    /// Starts to serve `devices`.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn start(name: &str, devices: Vec<IoDevice>) -> anyhow::Result<Self> {
        let epoll = Epoll::new().context("cannot make an epoll")?;
        let stop = kvm_event()?;
        let watch = |fd: RawFd, data, events| {
            let event = EpollEvent::new(events, data);
            epoll.ctl(ControlOperation::Add, fd, event).context("cannot watch a device")
        };
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(stop.as_raw_fd(), STOP, EventSet::IN)?;
        for (index, device) in (0u64..).zip(&devices) {
            let data = |token: u32| index << 32 | u64::from(token);
            watch(device.events.driver_ok.as_raw_fd(), data(DRIVER_OK), edge)?;
            for (kick, token) in device.events.kicks.iter().zip(FIRST_KICK..) {
                watch(kick.as_raw_fd(), data(token), edge)?;
            }
            for (source, token) in lock(&device.virtio).device().sources().iter().zip(FIRST_SOURCE..) {
                let more = if source.writable { EventSet::OUT } else { EventSet::empty() };
                watch(source.fd.as_raw_fd(), data(token), edge | more)?;
            }
        }
        // A thread that serves several serves none that needs more than others.
        let kind = devices.first().map_or(ThreadKind::Io, |device| device.confinement);
        let run = move || run(&epoll, devices);
        Ok(Self { stop, thread: Some(spawn_gathered(name, STACK, kind, run)?) })
    }

    /// Stops it, and waits until it has ended or the time is over. Answers whether it has ended; if not, it keeps what it
    /// uses, and ends with the process.
    pub fn end(&mut self, until: Instant) -> bool {
        let _ = self.stop.write(1);
        let left = until.saturating_duration_since(Instant::now());
        self.thread.take().is_none_or(|thread| thread.ends_within(left))
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.end(Instant::now() + LONGEST_STEP);
    }
}

fn run(epoll: &Epoll, mut devices: Vec<IoDevice>) {
    let mut events = [EpollEvent::default(); EVENTS];
    let gathers = |device: &IoDevice| lock(&device.virtio).device().gathers();
    let has_pace = devices.len() == 1 && devices.iter().all(gathers) && is_scheduled_as_usual();
    let mut pace = has_pace.then(Pace::default);
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => panic!("epoll_wait on descriptors of our own: {error}"),
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return;
            }
            let device = devices.get_mut((event.data() >> 32) as usize).expect("events name devices");
            let requests = device.take(event.data() as u32);
            if let Some(patient) = pace.as_mut().and_then(|pace| pace.found(requests)) {
                set_patient(patient);
            }
        }
    }
}

impl IoDevice {
    /// Serves what an event is about; answers how many requests there were.
    fn take(&mut self, token: u32) -> u32 {
        if token == DRIVER_OK {
            self.start();
            return 0;
        }
        let mut virtio = lock(&self.virtio);
        let more = match token.checked_sub(FIRST_SOURCE) {
            Some(source) => virtio.serve_source(source as usize),
            None => virtio.serve((token - FIRST_KICK) as usize),
        };
        let requests = virtio.taken();
        if more {
            self.come_back(&mut virtio);
        }
        requests
    }

    /// The driver is up, perhaps after work had come for it.
    fn start(&mut self) {
        self.connect.enable(&self.events);
        let mut virtio = lock(&self.virtio);
        for source in 0..virtio.device().sources().len() {
            virtio.serve_source(source);
        }
        for queue in 0..self.events.kicks.len() {
            virtio.serve(queue);
        }
        self.come_back(&mut virtio);
    }

    /// Has what is left served after everything else that waits.
    fn come_back(&self, virtio: &mut Virtio) {
        for queue in virtio.take_unserved() {
            let _ = self.events.kicks[queue].write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_patient_where_requests_gather_and_tries_that_now_and_then() {
        let mut pace = Pace::default();
        let mut find =
            |requests: &[u32]| requests.iter().filter_map(|count| pace.found(*count)).collect::<Vec<_>>();
        assert!(find(&[1; Pace::TRIES as usize - 1]).is_empty());
        assert!(find(&[0, 0]).is_empty(), "the host's events say nothing");
        assert_eq!(find(&[1]), [true]);
        assert_eq!(find(&[1]), [false], "the driver waits");
        assert_eq!(find(&[1; Pace::TRIES as usize]), [true]);
        assert!(find(&[7, 1, 0, 1, 2, 1, 1, 1]).is_empty(), "what gathers once in a while is enough");
        assert_eq!(find(&[1]), [false]);
        assert_eq!(find(&[2]), [true]);
    }
}
