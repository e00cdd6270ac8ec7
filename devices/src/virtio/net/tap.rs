//! A tap as the backend (Linux, Documentation/networking/tuntap.rst): packets go between it and guest memory without a
//! copy, each with one system call. The kernel checks the headers that the guest writes.
#![expect(unsafe_code, reason = "a tap's ioctls have no safe interface")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUNSETOFFLOAD,
    TUNSETQUEUE,
};
use virtio_bindings::virtio_net::*;

use super::{Backend, Room, bit};
use crate::GuestMemory;
use crate::virtio::{Chain, Source, vectored};

/// What the kernel may leave to the guest, and the feature that allows it. All need the first.
const OFFLOADS: [(u32, u32); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
];
/// What the guest may leave to the kernel.
const GUEST_OFFLOADS: u64 = bit(VIRTIO_NET_F_CSUM)
    | bit(VIRTIO_NET_F_HOST_TSO4)
    | bit(VIRTIO_NET_F_HOST_TSO6)
    | bit(VIRTIO_NET_F_HOST_ECN);

/// A tap with one file a queue pair.
pub struct Tap {
    queues: Vec<File>,
    features: u64,
    mtu: Option<u16>,
    /// Packets that the tap didn't take, since the driver came up.
    lost: u64,
    warned: bool,
}

impl Tap {
    /// A tap of which `queues`, at least one, are open for this device alone: non-blocking, with headers of
    /// [`super::HEADER`] bytes and no packet information. `mtu` is the interface's, where it is known.
    pub fn new(queues: Vec<File>, mtu: Option<u16>) -> Self {
        let mut tap = Self { queues, features: 0, mtu, lost: 0, warned: false };
        let all = OFFLOADS.iter().fold(0, |all, (_, flag)| all | flag);
        if tap.set_offloads(all).is_ok() {
            tap.features = OFFLOADS.iter().fold(GUEST_OFFLOADS, |all, (feature, _)| all | bit(*feature));
        }
        tap.activate(0);
        tap
    }

    /// As on a wire, a packet that isn't taken is lost: the tap is full or down, or the guest's header is nonsense
    /// (EINVAL), of which the host's log need not know.
    fn lose(&mut self, error: &io::Error) {
        self.lost += 1;
        let level = match error.raw_os_error() {
            Some(libc::EINVAL) => log::Level::Debug,
            _ if self.warned => log::Level::Debug,
            _ => log::Level::Warn,
        };
        self.warned |= level == log::Level::Warn;
        log::log!(target: "tap", level, "tap: {} packets are lost since the driver came up; now: {error}", self.lost);
    }

    fn set_offloads(&self, flags: u32) -> io::Result<()> {
        // All queues have one setting.
        let Some(file) = self.queues.first() else { return Ok(()) };
        // SAFETY: the argument is a number; on a file that isn't a tap the call fails.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    // SAFETY: a request is integers and characters, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads the request, which lives during the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETQUEUE, &request) };
    match io::Error::last_os_error() {
        // It is attached, or detached, already.
        error if done < 0 && error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

impl Backend for Tap {
    fn features(&self) -> u64 {
        self.features
    }

    fn pairs(&self) -> u16 {
        self.queues.len() as u16
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.queues.iter().map(|file| Source::readable(file.as_fd())).collect()
    }

    fn activate(&mut self, features: u64) {
        (self.lost, self.warned) = (0, false);
        let accepted = OFFLOADS.iter().filter(|(feature, _)| features & bit(*feature) != 0);
        let flags = accepted.fold(0, |all, (_, flag)| all | flag);
        let flags = if flags & TUN_F_CSUM == 0 { 0 } else { flags };
        if self.features != 0
            && let Err(error) = self.set_offloads(flags)
            && flags != 0
        {
            log::warn!(target: "tap", "tap: cannot set its offloads: {error}");
        }
    }

    fn set_pairs(&mut self, count: u16) -> io::Result<()> {
        let mut others = self.queues.iter().enumerate().skip(1);
        others.try_for_each(|(index, file)| set_attached(file, index < count.into()))
    }

    fn receive(&mut self, pair: usize, room: Room<'_>) -> io::Result<usize> {
        let Some(file) = self.queues.get(pair) else { return Err(io::ErrorKind::WouldBlock.into()) };
        let buffers = room.chains.iter().map(|chain| &chain.writable);
        vectored::read_beyond(file.as_fd(), room.memory, buffers, room.beyond)
    }

    fn send(&mut self, pair: usize, memory: &GuestMemory, chains: &[Chain]) -> io::Result<usize> {
        for packet in chains.iter().map(|chain| &chain.readable).filter(|packet| !packet.is_empty()) {
            let written = self.queues.get(pair).map(|file| vectored::write(file.as_fd(), memory, packet));
            if let Some(Err(error)) = written {
                self.lose(&error);
            }
        }
        Ok(chains.len())
    }
}
