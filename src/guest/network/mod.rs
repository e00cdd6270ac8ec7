//! The guest's networks, as a command finds them: interfaces that are up, with addresses, routes and resolvers, by what
//! servers say or the command line.

mod client;
mod dhcp;
mod names;
mod packets;
mod routers;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::net::if_::if_nametoindex;

use crate::host::netlink::{Address, Netlink, Route};
use crate::spec::net::RouteSpec;
use crate::spec::wire::{Network, Setup};

/// Where the kernel lists interfaces, and their switches for IPv6.
const INTERFACES: &str = "/sys/class/net";
const IPV6: &str = "/proc/sys/net/ipv6/conf";
/// How long an interface may take to appear, and to be connected.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much less the routes of the next network count.
const NEXT: u32 = 100;
/// The most resolvers that programs ask (resolv.conf(5), `MAXNS`).
const MOST_SERVERS: usize = 3;

/// What is known of all networks together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Resolvers, the first to be asked first.
    pub dns: Vec<IpAddr>,
    /// Domains to look for names in.
    pub search: Vec<String>,
    /// What there is not, and why.
    pub lacks: Vec<String>,
}

/// An interface.
#[derive(Clone, Debug)]
struct Link {
    name: String,
    index: u32,
    mac: [u8; 6],
    /// How much its routes count: the less the more.
    priority: u32,
}

/// Sets up all networks at once.
pub fn set_up(networks: &[Network]) -> Known {
    let each = |(network, priority): (&Network, u32)| set_up_one(network, priority);
    let numbered = networks.iter().zip((0..).step_by(NEXT as usize));
    let all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = numbered.map(|one| scope.spawn(move || each(one))).collect();
        threads.into_iter().filter_map(|one| one.join().ok()).collect()
    });
    let mut known = Known::default();
    for one in all {
        match one {
            Ok(one) => {
                known.dns.extend(one.dns);
                known.search.extend(one.search);
                known.lacks.extend(one.lacks);
            }
            Err(error) => known.lacks.push(format!("a network is not set up: {error:#}")),
        }
    }
    let mut seen = Vec::new();
    known.dns.retain(|server| {
        !seen.contains(server) && {
            seen.push(*server);
            true
        }
    });
    known.dns.truncate(MOST_SERVERS);
    known
}

fn set_up_one(network: &Network, priority: u32) -> anyhow::Result<Known> {
    match &network.setup {
        Setup::None => Ok(Known::default()),
        Setup::Fixed { addresses, gateways, routes, dns } => {
            let link = Link::find(network.mac, priority)?;
            fix(&link, addresses, gateways, routes)?;
            Ok(Known { dns: dns.clone(), ..Known::default() })
        }
        Setup::Automatic { alone, dns } => {
            let link = Link::find(network.mac, priority)?;
            let mut known = client::set_up(&link, *alone)?;
            known.dns.splice(0..0, dns.iter().copied());
            Ok(known)
        }
    }
}

/// Sets up an interface as the command line says.
fn fix(
    link: &Link,
    addresses: &[(IpAddr, u8)],
    gateways: &[IpAddr],
    routes: &[RouteSpec],
) -> anyhow::Result<()> {
    let mut kernel = Netlink::open().context("the guest's kernel has no networking")?;
    kernel.bring_up(link.index).with_context(|| format!("cannot bring {} up", link.name))?;
    for (address, length) in addresses {
        let address = Address { address: *address, length: *length, lasts: None };
        kernel
            .add_address(link.index, &address)
            .with_context(|| format!("cannot give {} the address {}", link.name, address.address))?;
    }
    let through = |gateway: &IpAddr| {
        let to = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        RouteSpec { to, length: 0, via: Some(*gateway) }
    };
    for RouteSpec { to, length, via } in gateways.iter().map(through).chain(routes.iter().copied()) {
        let route = Route { to, length, via, priority: link.priority };
        kernel.add_route(link.index, &route).with_context(|| {
            let via = via.map(|via| format!(" through {via}")).unwrap_or_default();
            format!("cannot add a route to {to}/{length}{via} on {}", link.name)
        })?;
    }
    link.wait_for_carrier();
    Ok(())
}

impl Link {
    /// The interface that has this address, once it is there.
    fn find(mac: [u8; 6], priority: u32) -> anyhow::Result<Self> {
        let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
        let start = Instant::now();
        loop {
            let links = fs::read_dir(INTERFACES).into_iter().flatten().filter_map(Result::ok);
            let has_it =
                |path: &Path| fs::read_to_string(path.join("address")).is_ok_and(|it| it.trim() == wanted);
            let name = links.map(|link| link.path()).find(|path| has_it(path));
            if let Some(name) = name.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
                let index = if_nametoindex(name).context("an interface has gone")?;
                return Ok(Self { name: name.to_owned(), index, mac, priority });
            }
            if start.elapsed() > PATIENCE {
                bail!("no interface has the address {wanted}: the guest's kernel needs CONFIG_VIRTIO_NET");
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Waits until what is sent is no longer lost.
    fn wait_for_carrier(&self) {
        let state = Path::new(INTERFACES).join(&self.name).join("operstate");
        let start = Instant::now();
        let is_down = || fs::read_to_string(&state).is_ok_and(|state| state.trim() == "down");
        while is_down() && start.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1));
        }
    }

    /// Whether the kernel gives it IPv6.
    fn has_ipv6(&self) -> bool {
        let switch = Path::new(IPV6).join(&self.name).join("disable_ipv6");
        fs::read_to_string(switch).is_ok_and(|switch| switch.trim() == "0")
    }

    /// Has the kernel use addresses without asking who else has them.
    fn trust_addresses(&self) -> io::Result<()> {
        fs::write(Path::new(IPV6).join(&self.name).join("accept_dad"), "0")
    }
}
