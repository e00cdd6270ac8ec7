//! What a network device is connected to, from its description to the device.

use std::fs::{self, File};
use std::process::Child;

use anyhow::Context;
use devices::virtio::VirtioDevice;
use devices::virtio::net::{KIND, Net, Stream, Tap};

use crate::backend::passt;
use crate::backend::tap;
use crate::backend::{Backend, Calls, Leftovers, Modules};
use crate::spec::net::{NetBackend, NetSetup, NetSpec};
use crate::spec::wire;
use crate::vm::memory::GuestRam;

/// What the devices of `--net user` are called.
const USER: &str = "user";

/// What a network device is connected to, open. Each machine built gets a device from it.
pub struct Network {
    name: String,
    mac: [u8; 6],
    to: Open,
}

enum Open {
    Tap(tap::Tap),
    /// And passt, until it is watched.
    User(Stream, Option<Child>),
}

impl NetSpec {
    /// Opens what it names, for the `index`-th network device of the machine.
    ///
    /// # Errors
    /// It cannot be used: with what to do.
    pub fn open(&self, index: usize) -> anyhow::Result<Network> {
        let to = match &self.backend {
            NetBackend::Tap { name, queues } => Open::Tap(tap::open(name, *queues, self.mtu)?),
            NetBackend::Interface { name } => Open::Tap(tap::in_place_of(name, self.mtu)?),
            NetBackend::User { forwards } => {
                let (socket, passt) = passt::start(forwards, self.mtu)?;
                let stream = Stream::new(socket, self.mtu).context("cannot use passt's socket")?;
                Open::User(stream, Some(passt))
            }
        };
        Ok(Network { name: format!("net{index}"), mac: self.mac(index), to })
    }

    /// The address of the guest's side, if it is the `index`-th network device.
    fn mac(&self, index: usize) -> [u8; 6] {
        let name = match &self.backend {
            NetBackend::Tap { name, .. } | NetBackend::Interface { name } => name,
            NetBackend::User { .. } => USER,
        };
        self.mac.unwrap_or_else(|| derive_mac(&machine_id(), name, index))
    }

    /// The network as kite's own `/init` brings it up.
    pub fn guest_network(&self, index: usize) -> wire::Network {
        let automatic = |alone, dns| wire::Setup::Automatic { alone, dns };
        let setup = match (&self.guest, &self.backend) {
            (Some(NetSetup::None), _) => wire::Setup::None,
            (Some(NetSetup::Fixed { addresses, gateways, routes, dns }), _) => wire::Setup::Fixed {
                addresses: addresses.iter().map(|it| (it.address, it.length)).collect(),
                gateways: gateways.clone(),
                routes: routes.clone(),
                dns: dns.clone(),
            },
            (None, NetBackend::Tap { .. } | NetBackend::Interface { .. }) => automatic(false, Vec::new()),
            (None, NetBackend::User { .. }) => automatic(true, passt::resolver().into_iter().collect()),
        };
        wire::Network { mac: self.mac(index), setup }
    }
}

impl Backend for Network {
    fn device(&self, _ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        self.new_device()
    }

    fn modules(&self) -> Modules {
        Modules { needed: vec![KIND.module], optional: vec!["af_packet", "ipv6"] }
    }

    fn calls(&self) -> Calls {
        Calls::Net
    }

    fn threads(&self) -> usize {
        1
    }

    /// passt, which ends with the last of the processes that have its socket.
    fn take_leftovers(&mut self) -> Leftovers {
        let programs = match &mut self.to {
            Open::User(_, passt) => passt.take().into_iter().collect(),
            Open::Tap(_) => Vec::new(),
        };
        Leftovers { programs, ..Leftovers::default() }
    }
}

impl Network {
    /// A device of a new machine; there is no other at the time.
    ///
    /// # Errors
    /// The host has no files left.
    pub(super) fn new_device(&self) -> anyhow::Result<Box<dyn VirtioDevice>> {
        let backend: Box<dyn devices::virtio::net::Backend> = match &self.to {
            Open::Tap(tap) => {
                let files = tap.files.iter().map(File::try_clone).collect::<Result<_, _>>();
                Box::new(Tap::new(files.context("cannot duplicate a tap's file")?, tap.mtu))
            }
            Open::User(stream, _) => Box::new(stream.try_clone().context("cannot duplicate passt's socket")?),
        };
        Ok(Box::new(Net::new(self.name.clone(), backend, self.mac)))
    }
}

/// What tells this host from others; nothing where it has none.
fn machine_id() -> Vec<u8> {
    fs::read("/etc/machine-id").unwrap_or_default()
}

/// An address that is the same at every start: locally administered, and another for each host, name and index.
fn derive_mac(host: &[u8], name: &str, index: usize) -> [u8; 6] {
    // FNV-1a: it need not be hard to guess.
    let seed = host.iter().chain(name.as_bytes()).chain(&[0]).copied().chain((index as u64).to_le_bytes());
    let hash = seed.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [_, _, mut mac @ ..] = hash.to_be_bytes();
    mac[0] = mac[0] & 0xfc | 2;
    mac
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::spec::net::parse;

    #[test]
    fn a_derived_address_is_stable_local_and_differs_by_host_name_and_index() {
        let mac = derive_mac(b"host", "tap0", 0);
        assert_eq!(mac, derive_mac(b"host", "tap0", 0));
        assert_eq!(mac[0] & 3, 2);
        let others = [(&b"other"[..], "tap0", 0), (b"host", "tap1", 0), (b"host", "tap0", 1)];
        assert!(others.iter().all(|(host, name, index)| derive_mac(host, name, *index) != mac));
    }

    #[test]
    fn a_tap_that_kite_makes_goes_with_it() {
        let name = "kitet9";
        let network = match parse("tap=kitet9,queues=2").unwrap().open(0) {
            Ok(network) => network,
            Err(error) => {
                println!("skipped: a_tap_that_kite_makes_goes_with_it: {error:#}");
                return;
            }
        };
        let path = std::path::Path::new("/sys/class/net").join(name);
        for _machine in 0..2 {
            assert_eq!(network.new_device().unwrap().queue_sizes().len(), 5);
        }
        let error = parse("tap=kitet9").unwrap().open(0).map(drop).map_err(|error| error.to_string());
        assert_eq!(error, Ok(()), "one queue of several will do");
        assert!(fs::read_to_string(path.join("flags")).unwrap().trim().ends_with('3'), "it is up");
        drop(network);
        // A child of another test has all open files until it has become another program.
        let deadline = Instant::now() + Duration::from_secs(60);
        while path.exists() {
            assert!(Instant::now() < deadline, "it stays");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
