//! What passt is asked for, by what this host has: its routes and its resolvers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::spec::net::Forward;

/// Where resolvers are named (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where those are named that systemd-resolved asks.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// The most resolvers that a resolver's library asks (resolv.conf(5), `MAXNS`).
const MOST_SERVERS: usize = 3;
/// The address at which a guest asks the host's own resolver, if that has no other.
const FORWARDED: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The address of the host's end for the guest's Ethernet. Interfaces of some VPNs have none to copy.
const MAC: &str = "9a:55:9a:55:9a:55";
/// The network of a guest whose host has no gateway: addresses of the link alone (RFC 3927).
const LINK_ALONE: [&str; 8] =
    ["--interface", "lo", "--address", "169.254.2.1", "--netmask", "255.255.0.0", "--gateway", "169.254.2.2"];
/// Flags of a route that leads to a gateway and can be used (Linux, include/uapi/linux/route.h).
const GATEWAY: u32 = 0x3;

/// The resolvers that a guest can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolvers {
    /// Those that passt finds by itself.
    Usual,
    /// These.
    Behind(Vec<IpAddr>),
    /// One on the host's loopback, which passt asks for the guest.
    Loopback,
}

impl Resolvers {
    /// Those of this host.
    pub fn here() -> Self {
        let [usual, behind] =
            [RESOLV_CONF, BEHIND_RESOLVED].map(|path| fs::read_to_string(path).unwrap_or_default());
        Self::of(&usual, &behind)
    }

    /// A resolver on the host's loopback, as systemd's is, cannot be reached from a guest; those behind it can.
    fn of(usual: &str, behind: &str) -> Self {
        let servers = |text: &str| -> Vec<IpAddr> {
            let lines = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
            lines.filter_map(|server| server.trim().parse().ok()).collect()
        };
        let usual = servers(usual);
        if !usual.iter().all(IpAddr::is_loopback) {
            return Self::Usual;
        }
        let behind = servers(behind).into_iter().filter(|server| !server.is_loopback());
        match behind.take(MOST_SERVERS).collect::<Vec<_>>() {
            behind if !behind.is_empty() => Self::Behind(behind),
            _ if usual.iter().any(IpAddr::is_ipv4) => Self::Loopback,
            _ => Self::Usual,
        }
    }

    /// The resolver that passt does not name to the guest, if there is one.
    pub fn unnamed(&self) -> Option<IpAddr> {
        (*self == Self::Loopback).then_some(FORWARDED.into())
    }
}

/// passt's options but for those that name descriptors.
pub(super) fn all(forwards: &[Forward], mtu: Option<u16>) -> Vec<String> {
    let text = |path: &str| fs::read_to_string(Path::new("/proc/net").join(path)).unwrap_or_default();
    let routed = has_gateway(&text("route")) || has_gateway_v6(&text("ipv6_route"));
    options(forwards, mtu, routed, &Resolvers::here())
}

fn options(forwards: &[Forward], mtu: Option<u16>, routed: bool, resolvers: &Resolvers) -> Vec<String> {
    let mut list = vec!["--foreground", "--quiet", "--no-map-gw", "--mac-addr", MAC];
    if !routed {
        list.extend(LINK_ALONE);
    }
    let mut list: Vec<String> = list.into_iter().map(str::to_owned).collect();
    let mut add = |name: &str, value: String| list.extend([name.to_owned(), value]);
    add("--tcp-ports", ports(forwards, false));
    add("--udp-ports", ports(forwards, true));
    if let Some(mtu) = mtu {
        add("--mtu", mtu.to_string());
    }
    match resolvers {
        Resolvers::Usual => {}
        Resolvers::Behind(servers) => servers.iter().for_each(|server| add("--dns", server.to_string())),
        Resolvers::Loopback => add("--dns-forward", FORWARDED.to_string()),
    }
    list
}

/// Whether `/proc/net/route` has a gateway to everywhere. passt takes addresses from the interface of such a route, and
/// older ones end without it.
fn has_gateway(routes: &str) -> bool {
    routes.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>()).any(|route| {
        let flags = route.get(3).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        route.get(1) == Some(&"00000000") && route.get(7) == Some(&"00000000") && flags & GATEWAY == GATEWAY
    })
}

/// The same of `/proc/net/ipv6_route`.
fn has_gateway_v6(routes: &str) -> bool {
    routes.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>()).any(|route| {
        let flags = route.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        let everywhere = route.first().is_some_and(|it| it.bytes().all(|digit| digit == b'0'));
        everywhere && route.get(1) == Some(&"00") && flags & GATEWAY == GATEWAY
    })
}

/// passt's list of forwarded ports.
fn ports(forwards: &[Forward], udp: bool) -> String {
    let ports = forwards.iter().filter(|forward| forward.udp == udp);
    let list: Vec<_> = ports.map(|forward| format!("{}:{}", forward.host, forward.guest)).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_loopback_gives_way_to_those_behind_it() {
        let behind = "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n";
        let expected = Resolvers::Behind(vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(Resolvers::of("# local\nnameserver 127.0.0.53\noptions edns0\n", behind), expected);
        let usual = Resolvers::of("nameserver 127.0.0.1\nnameserver 198.51.100.1\n", behind);
        assert_eq!(usual, Resolvers::Usual);
    }

    #[test]
    fn a_resolver_on_loopback_with_nothing_behind_it_is_asked_through_passt() {
        for behind in ["", "nameserver 127.0.0.1\n"] {
            let resolvers = Resolvers::of("nameserver 127.0.0.53\n", behind);
            assert_eq!(resolvers, Resolvers::Loopback);
            assert_eq!(resolvers.unnamed(), Some(FORWARDED.into()));
            let options = options(&[], None, true, &resolvers).join(" ");
            assert!(
                options.contains("--dns-forward 169.254.1.1") && !options.contains("--dns "),
                "{options}"
            );
        }
        for usual in ["", "nameserver ::1\n"] {
            assert_eq!(Resolvers::of(usual, ""), Resolvers::Usual, "{usual}");
        }
    }

    #[test]
    fn a_host_without_a_gateway_gives_its_guest_a_network_of_the_link_alone() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let via = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let near = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let vpn = "wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(has_gateway(&[head, near, via].concat()));
        assert!(!has_gateway(&[head, near, vpn].concat()) && !has_gateway("") && !has_gateway("\n x"));
        let (none, gateway) = ("0".repeat(32), "fd000000000000000000000000000001");
        let route = |to: &str, length, via: &str, flags, on| {
            format!("{to} {length} {none} 00 {via} 00000400 00000001 00000000 {flags} {on}\n")
        };
        assert!(has_gateway_v6(&route(&none, "00", gateway, "00000003", "eth0")));
        assert!(!has_gateway_v6(&route(&none, "00", &none, "00200200", "lo")));
        assert!(!has_gateway_v6(&route(gateway, "80", gateway, "00000003", "eth0")));
        let alone = options(&[], None, false, &Resolvers::Usual).join(" ");
        assert!(alone.contains("--interface lo --address 169.254.2.1"), "{alone}");
        assert!(!options(&[], None, true, &Resolvers::Usual).join(" ").contains("--interface"));
    }

    #[test]
    fn ports_are_listed_by_protocol() {
        let forward = |host, guest, udp| Forward { host, guest, udp };
        let list = [forward(8080, 80, false), forward(53, 5353, true), forward(22, 22, false)];
        assert_eq!(
            (ports(&list, false), ports(&list, true)),
            ("8080:80,22:22".to_owned(), "53:5353".to_owned())
        );
        let options = options(&list, Some(1400), true, &Resolvers::Usual).join(" ");
        assert!(options.ends_with("--udp-ports 53:5353 --mtu 1400"), "{options}");
        assert_eq!(ports(&[], true), "none");
    }
}
