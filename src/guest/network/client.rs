//! An interface that is set up by what servers and routers say of its network: IPv4 by DHCP, and IPv6 by the kernel, which
//! hears routers itself.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::dhcp::{self, Exchange, Lease, Taken};
use super::packets::Packets;
use super::routers::{Routers, solicit};
use super::{Known, Link};
use crate::host::netlink::{Address, Netlink, Route};

/// How long a network may take to answer: some servers look for seconds whether an address is taken.
const LIMIT: Duration = Duration::from_secs(10);
/// How long IPv4 may take once there is IPv6, and IPv6 to have an address of the link.
const GRACE: Duration = Duration::from_millis(500);
/// When a message is sent again first, and at most.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(4)];
/// How often an offer is asked for until it is looked for another.
const TRIES: u32 = 4;
/// The least time between two renewals.
const LEAST_PAUSE: Duration = Duration::from_secs(10);
/// The stack of a thread that renews a lease, in bytes.
const STACK: usize = 128 << 10;

/// Sets the interface up. `alone` says that its network has no other host than the one that answers.
///
/// # Errors
/// The guest's kernel lacks something, or refuses.
pub(super) fn set_up(link: &Link, alone: bool) -> anyhow::Result<Known> {
    let mut kernel = Netlink::open().context("the guest's kernel has no networking")?;
    let mut routers = Routers::new(link.index).context("cannot hear of routers")?;
    if alone {
        // A kernel without IPv6 has no such switch.
        let _ = link.trust_addresses();
    }
    kernel.bring_up(link.index).with_context(|| format!("cannot bring {} up", link.name))?;
    link.wait_for_carrier();
    let mut packets = Packets::open(link.index, link.mac)
        .context("cannot use DHCP: the guest's kernel needs CONFIG_PACKET")?;
    if alone && link.has_ipv6() {
        // Who answers does so in turn: with the lease there is IPv6, too, if there is any.
        wait_for(&mut routers, GRACE, |routers| routers.on_link);
        let _ = solicit(link.index, link.mac);
    }
    let mut exchange = Exchange::new(link.mac, random());
    let lease = negotiate(&mut exchange, &mut packets, Some(&mut routers), LIMIT);
    let mut known = Known::default();
    match &lease {
        Some(lease) => {
            known.lacks.extend(take(link, &mut kernel, lease)?);
            known.dns.extend(lease.dns.iter().copied().map(IpAddr::V4));
            known.search.extend(lease.search.iter().cloned());
        }
        None if routers.reaches_out => {}
        None => known.lacks.push(lack(link, alone)),
    }
    routers.hear();
    known.dns.append(&mut routers.dns);
    if known.search.is_empty() {
        known.search = routers.search;
    }
    if let Some(lease) = lease.filter(|lease| lease.lasts.is_some()) {
        renew(link.clone(), kernel, lease)?;
    }
    Ok(known)
}

fn lack(link: &Link, alone: bool) -> String {
    let (name, seconds) = (&link.name, LIMIT.as_secs());
    match alone {
        true => format!("{name} has no address: passt gave it none within {seconds} s"),
        false => format!(
            "{name} has no address: no DHCP server or router answered within {seconds} s; --net tap=NAME takes \
             ip=ADDR/LEN,gw=ADDR,dns=ADDR, or ip=none"
        ),
    }
}

/// Comes to a lease with a server, or not within `limit`; nor for long once routers have given an address.
fn negotiate(
    exchange: &mut Exchange,
    packets: &mut Packets,
    mut routers: Option<&mut Routers>,
    limit: Duration,
) -> Option<Lease> {
    let mut deadline = Instant::now() + limit;
    let (mut again, mut tries, mut reaches_out) = (AGAIN[0], 0, false);
    loop {
        // What is lost now is sent again.
        let _ = packets.send(&exchange.message());
        let until = (Instant::now() + again).min(deadline);
        again = (again * 2).min(AGAIN[1]);
        tries += 1;
        let next = loop {
            wait(packets, routers.as_deref(), until);
            if let Some(routers) = routers.as_deref_mut() {
                routers.hear();
                if routers.reaches_out && !reaches_out {
                    (reaches_out, deadline) = (true, deadline.min(Instant::now() + GRACE * 2));
                }
            }
            let taken = packets.receive().map_or(Taken::Nothing, |message| exchange.take(message));
            match taken {
                Taken::Lease(lease) => return Some(lease),
                Taken::Next => break true,
                Taken::Nothing if Instant::now() >= until.min(deadline) => break false,
                Taken::Nothing => {}
            }
        };
        if Instant::now() >= deadline {
            return None;
        }
        if next {
            (again, tries) = (AGAIN[0], 0);
        } else if tries >= TRIES {
            tries = 0;
            exchange.forget_offer();
        }
    }
}

/// Waits until there is something to hear, or it is late.
fn wait(packets: &Packets, routers: Option<&Routers>, until: Instant) {
    let fds = [Some(packets.as_fd()), routers.map(AsFd::as_fd)];
    let mut fds: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
    // An error ends the wait, too.
    let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
}

fn wait_for(routers: &mut Routers, limit: Duration, mut until: impl FnMut(&Routers) -> bool) {
    let start = Instant::now();
    routers.hear();
    while !until(routers) && start.elapsed() < limit {
        let mut fds = [PollFd::new(routers.as_fd(), PollFlags::POLLIN)];
        let left = limit.saturating_sub(start.elapsed()).as_millis() + 1;
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        routers.hear();
    }
}

/// Sets the interface up as a lease says; returns what of it cannot be: a route of which the kernel makes no sense leaves the
/// rest of use.
fn take(link: &Link, kernel: &mut Netlink, lease: &Lease) -> anyhow::Result<Vec<String>> {
    if let Some(mtu) = lease.mtu {
        // The device may have less room.
        let _ = kernel.set_mtu(link.index, mtu);
    }
    let address = Address { address: lease.address.into(), length: lease.length, lasts: lease.lasts };
    kernel
        .add_address(link.index, &address)
        .with_context(|| format!("cannot give {} the address {}", link.name, lease.address))?;
    let add = |(to, length, via): &dhcp::Route| {
        let (to, via) = ((*to).into(), via.map(IpAddr::V4));
        let added =
            kernel.add_route(link.index, &Route { to, length: *length, via, priority: link.priority });
        let error = added.err()?;
        let via = via.map(|via| format!(" through {via}")).unwrap_or_default();
        Some(format!("a DHCP server's route to {to}/{length}{via} is of no use on {}: {error}", link.name))
    };
    Ok(lease.routes.iter().filter_map(add).collect())
}

/// Renews a lease for as long as the guest runs, on a thread. Without its server the kernel drops the address in time.
fn renew(link: Link, mut kernel: Netlink, mut lease: Lease) -> anyhow::Result<()> {
    let run = move || {
        loop {
            sleep(Duration::from_secs(lease.renew.into()).max(LEAST_PAUSE));
            if let Some(renewed) = renewed(&link, &mut kernel, &lease) {
                lease = renewed;
            } else {
                lease.renew = 0; // Again after the least pause.
            }
        }
    };
    Builder::new()
        .name("dhcp".to_owned())
        .stack_size(STACK)
        .spawn(run)
        .map(drop)
        .context("the guest cannot start a thread")
}

/// The lease that takes the place of this one, which the interface has then.
fn renewed(link: &Link, kernel: &mut Netlink, lease: &Lease) -> Option<Lease> {
    // Such a socket is given every packet: it is there only while it is needed.
    let mut packets = Packets::open(link.index, link.mac).ok()?;
    let mut exchange = Exchange::renewal(link.mac, random(), lease.address);
    let lease = negotiate(&mut exchange, &mut packets, None, LIMIT)?;
    take(link, kernel, &lease).ok()?;
    Some(lease)
}

/// A number that others cannot guess.
fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
