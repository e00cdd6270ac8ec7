//! A container's network namespace, which its monitor joins, and so the machine: engines set it up and find it there.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};

use super::config::Linux;
use super::state::is_host_root;
use crate::backend::tap;
use crate::host::messages;
use crate::host::netlink::{Address, ETHERNET, Interface, Netlink, Route};
use crate::spec::RunSpec;
use crate::spec::device::DeviceSpec;
use crate::spec::net::{InterfaceAddress, NetBackend, NetSetup, NetSpec, RouteSpec};

/// Which network namespace a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// The host's.
    Host,
    /// The one at this path.
    At(PathBuf),
    /// A new one of its own.
    Own,
}

impl Namespace {
    /// The one that a document names.
    pub fn of(linux: &Linux) -> Self {
        match linux.namespaces.iter().find(|it| it.kind == "network").map(|it| it.path.clone()) {
            None => Self::Host,
            Some(None) => Self::Own,
            Some(Some(path)) if path.as_os_str().is_empty() => Self::Own,
            Some(Some(path)) => Self::At(path),
        }
    }
}

/// Joins a network namespace, with all that this process starts then.
///
/// # Errors
/// There is none at its path, or the host does not let this user.
pub fn enter(at: Option<&Path>, own: bool) -> anyhow::Result<()> {
    if let Some(path) = at {
        let what = || format!("cannot join network namespace {}", path.display());
        let namespace = File::open(path).with_context(what)?;
        return setns(namespace, CloneFlags::CLONE_NEWNET).with_context(what);
    }
    if own {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    }
    Ok(())
}

/// Connects the machine to the namespace that this process is in, if there is an interface. Root's machines take the place of
/// each, so that they are reached by its addresses; others have passt, which goes out only.
///
/// # Errors
/// The kernel does not say what is there.
pub fn connect(spec: &mut RunSpec) -> anyhow::Result<()> {
    let mut kernel = Netlink::open().context("cannot ask for network interfaces")?;
    let what = "cannot list network interfaces";
    let (mut places, mut is_used) = (Vec::new(), false);
    for interface in kernel.interfaces().context(what)?.iter().filter(|it| it.is_up && it.name != "lo") {
        let addresses = kernel.addresses(interface.index).context(what)?;
        if addresses.is_empty() {
            continue;
        }
        is_used = true;
        let routes = kernel.routes(interface.index).context(what)?;
        places.extend(in_place_of(interface, &addresses, routes));
    }
    if !is_host_root() {
        places.clear();
    }
    let possible = places.iter().try_for_each(|net| match &net.backend {
        NetBackend::Interface { name } => tap::can_take_place(name),
        _ => Ok(()),
    });
    if let Err(why) = possible {
        messages::complain(&format!("no one can connect to the container: {why:#}"));
        places.clear();
    }
    if places.is_empty() && is_used {
        places.push(by_passt());
    }
    spec.machine.devices.extend(places.into_iter().map(DeviceSpec::Net));
    Ok(())
}

/// A network device in the place of an interface, with all that it has; nothing for one that has no frames of Ethernet.
fn in_place_of(interface: &Interface, addresses: &[Address], routes: Vec<Route>) -> Option<NetSpec> {
    let mac = interface.mac.filter(|_| interface.kind == ETHERNET)?;
    let addresses = addresses.iter().map(|it| InterfaceAddress { address: it.address, length: it.length });
    let mut routes: Vec<_> =
        routes.into_iter().map(|it| RouteSpec { to: it.to, length: it.length, via: it.via }).collect();
    // Gateways are reached by what is on the link.
    routes.sort_by_key(|route| route.via.is_some());
    let (gateways, dns) = (Vec::new(), Vec::new());
    Some(NetSpec {
        backend: NetBackend::Interface { name: interface.name.clone() },
        mac: Some(mac),
        mtu: Some(u16::try_from(interface.mtu).unwrap_or(u16::MAX)),
        guest: Some(NetSetup::Fixed { addresses: addresses.collect(), gateways, routes, dns }),
    })
}

/// A network device that passt serves.
pub fn by_passt() -> NetSpec {
    NetSpec { backend: NetBackend::User { forwards: Vec::new() }, mac: None, mtu: None, guest: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_joins_the_namespace_that_its_document_names() {
        let of = |json: &str| Namespace::of(&serde_json::from_str(json).unwrap());
        for (json, expected) in [
            ("{}", Namespace::Host),
            (r#"{"namespaces": [{"type": "pid"}]}"#, Namespace::Host),
            (r#"{"namespaces": [{"type": "network"}]}"#, Namespace::Own),
            (r#"{"namespaces": [{"type": "network", "path": ""}]}"#, Namespace::Own),
            (r#"{"namespaces": [{"type": "network", "path": "/x"}]}"#, Namespace::At("/x".into())),
        ] {
            assert_eq!(of(json), expected, "{json}");
        }
    }

    #[test]
    fn a_guest_has_what_its_interface_has_and_routes_of_the_link_first() {
        let address = |text: &str| text.parse().unwrap();
        let interface = Interface {
            index: 2,
            name: "eth0".to_owned(),
            kind: ETHERNET,
            is_up: true,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 70_000,
        };
        let own = [Address { address: address("192.0.2.7"), length: 24, lasts: None }];
        let route = |to: &str, length, via: Option<&str>| Route {
            to: address(to),
            length,
            via: via.map(address),
            priority: 9,
        };
        let routes = vec![route("0.0.0.0", 0, Some("198.51.100.1")), route("198.51.100.1", 32, None)];
        let net = in_place_of(&interface, &own, routes.clone()).unwrap();
        net.check().unwrap();
        assert_eq!((net.mac, net.mtu), (interface.mac, Some(u16::MAX)));
        let Some(NetSetup::Fixed { addresses, routes: found, .. }) = net.guest else {
            panic!("{:?}", net.guest)
        };
        assert_eq!(addresses[0].to_string(), "192.0.2.7/24");
        assert_eq!(found.iter().map(|it| it.length).collect::<Vec<_>>(), [32, 0]);
        let other = Interface { kind: ETHERNET + 1, ..interface };
        assert_eq!(in_place_of(&other, &own, routes), None);
    }
}
