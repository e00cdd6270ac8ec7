//! DHCP for IPv4 (RFC 2131, RFC 2132): a client's messages, and what a server's say. Servers are not trusted.

use std::net::Ipv4Addr;

use super::names;

/// The fixed part of a message, up to its options.
const HEAD: usize = 236;
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Some servers drop what is shorter than a message of BOOTP (RFC 1542 §2.1).
const SHORTEST: usize = 300;
/// Where the server's host name and the boot file lie, which may hold more options (RFC 2132 §9.3).
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// Codes of options.
mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const REQUESTED: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const WANTED: u8 = 55;
    pub const MESSAGE_SIZE: u8 = 57;
    pub const RENEWAL: u8 = 58;
    pub const SEARCH: u8 = 119;
    pub const ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// Kinds of messages, which [`option::KIND`] has.
mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
}

/// A route: to where, with the length of that network, and through which gateway.
pub type Route = (Ipv4Addr, u8, Option<Ipv4Addr>);

/// What a server offers or gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub length: u8,
    pub routes: Vec<Route>,
    pub dns: Vec<Ipv4Addr>,
    pub search: Vec<String>,
    pub mtu: Option<u16>,
    server: Ipv4Addr,
    /// How many seconds it lasts; nothing if for ever.
    pub lasts: Option<u32>,
    /// After how many seconds it is due for renewal.
    pub renew: u32,
}

/// One client's exchange with servers, by the messages of which it comes to a lease.
#[derive(Debug)]
pub struct Exchange {
    mac: [u8; 6],
    id: u32,
    offer: Option<Lease>,
    /// The lease that is renewed.
    bound: Option<Ipv4Addr>,
}

/// What a message that came changes.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing: it is none for this client, or no use.
    Nothing,
    /// The client's message is another one, to be sent at once.
    Next,
    /// There is a lease.
    Lease(Lease),
}

impl Exchange {
    /// Looks for a server. `id` should be hard to guess.
    pub fn new(mac: [u8; 6], id: u32) -> Self {
        Self { mac, id, offer: None, bound: None }
    }

    /// Renews a lease of `address`.
    pub fn renewal(mac: [u8; 6], id: u32, address: Ipv4Addr) -> Self {
        Self { mac, id, offer: None, bound: Some(address) }
    }

    /// The message to send until an answer is taken.
    pub fn message(&self) -> Vec<u8> {
        let mut message = vec![0; HEAD];
        message[..4].copy_from_slice(&[1, 1, 6, 0]);
        message[4..8].copy_from_slice(&self.id.to_be_bytes());
        message[12..16].copy_from_slice(&self.bound.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        message[28..34].copy_from_slice(&self.mac);
        message.extend(COOKIE);
        let mut add = |code: u8, value: &[u8]| {
            message.extend([code, value.len() as u8]);
            message.extend(value);
        };
        let searches = self.offer.is_none() && self.bound.is_none();
        add(option::KIND, &[if searches { kind::DISCOVER } else { kind::REQUEST }]);
        if let Some(offer) = &self.offer {
            add(option::REQUESTED, &offer.address.octets());
            add(option::SERVER, &offer.server.octets());
        }
        add(option::MESSAGE_SIZE, &1500_u16.to_be_bytes());
        // A server may name either routes or a router: routes come first (RFC 3442).
        let wanted = [
            option::ROUTES,
            option::MASK,
            option::ROUTER,
            option::DNS,
            option::DOMAIN,
            option::MTU,
            option::LEASE_TIME,
            option::RENEWAL,
            option::SEARCH,
        ];
        add(option::WANTED, &wanted);
        message.push(option::END);
        message.resize(message.len().max(SHORTEST), option::PAD);
        message
    }

    /// Looks for a server again, if the one that was chosen says nothing more.
    pub fn forget_offer(&mut self) {
        self.offer = None;
    }

    /// Takes a message of a server's.
    pub fn take(&mut self, message: &[u8]) -> Taken {
        let Some((kind, lease)) = self.read(message) else { return Taken::Nothing };
        match (kind, lease, &self.offer) {
            (kind::OFFER, Some(lease), None) if self.bound.is_none() => {
                self.offer = Some(lease);
                Taken::Next
            }
            (kind::ACK, Some(lease), Some(offer)) if lease.server == offer.server => Taken::Lease(lease),
            (kind::ACK, Some(lease), None) if self.bound == Some(lease.address) => Taken::Lease(lease),
            (kind::NAK, _, Some(_)) => {
                self.offer = None;
                Taken::Next
            }
            (kind::NAK, _, None) if self.bound.is_some() => {
                self.bound = None;
                Taken::Next
            }
            _ => Taken::Nothing,
        }
    }

    /// The kind of a message to this client, and the lease in it.
    fn read(&self, message: &[u8]) -> Option<(u8, Option<Lease>)> {
        let head = message.get(..HEAD)?;
        let rest = message.get(HEAD..)?.strip_prefix(&COOKIE)?;
        let ours = head[..3] == [2, 1, 6] && head[4..8] == self.id.to_be_bytes() && head[28..34] == self.mac;
        if !ours {
            return None;
        }
        let mut options = Options::default();
        options.add(rest);
        match options.get(option::OVERLOAD) {
            Some([1]) => options.add(&head[FILE]),
            Some([2]) => options.add(&head[SNAME]),
            Some([3]) => [FILE, SNAME].into_iter().for_each(|part| options.add(&head[part])),
            _ => {}
        }
        let &[kind] = options.get(option::KIND)? else { return None };
        Some((kind, options.lease(address(&head[16..20])?)))
    }
}

/// Options by their codes. Those that come more than once are parts of one (RFC 3396).
#[derive(Default)]
struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    fn add(&mut self, mut rest: &[u8]) {
        while let [code, more @ ..] = rest {
            rest = more;
            match *code {
                option::PAD => continue,
                option::END => return,
                _ => {}
            }
            let [length, more @ ..] = rest else { return };
            let Some((value, more)) = more.split_at_checked(usize::from(*length)) else { return };
            rest = more;
            match self.0.iter_mut().find(|(known, _)| known == code) {
                Some((_, known)) => known.extend(value),
                None => self.0.push((*code, value.to_vec())),
            }
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
    }

    fn number(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    fn addresses(&self, code: u8) -> impl Iterator<Item = Ipv4Addr> {
        self.get(code).unwrap_or_default().chunks_exact(4).filter_map(address).filter(is_host)
    }

    /// What they say of `address`, if that makes sense.
    fn lease(&self, address: Ipv4Addr) -> Option<Lease> {
        // The least MTU that is taken of a server: what every host has to receive (RFC 791).
        const LEAST_MTU: u16 = 576;
        // A lease that does not end.
        const FOR_EVER: u32 = u32::MAX;
        let length = match self.number(option::MASK) {
            Some(mask) if mask.leading_ones() + mask.trailing_zeros() == 32 => mask.leading_ones() as u8,
            Some(_) => return None,
            None => class_length(address),
        };
        let server = self.addresses(option::SERVER).next()?;
        let lasts = self.number(option::LEASE_TIME).filter(|lasts| *lasts != FOR_EVER);
        let half = lasts.map_or(FOR_EVER, |lasts| lasts / 2);
        let renew = self.number(option::RENEWAL).filter(|renew| *renew < half).unwrap_or(half);
        let mtu = self.get(option::MTU).and_then(|mtu| Some(u16::from_be_bytes(mtu.try_into().ok()?)));
        if !is_host(&address) || length == 0 {
            return None;
        }
        Some(Lease {
            address,
            length,
            routes: self.routes(),
            dns: self.addresses(option::DNS).collect(),
            search: self.search(),
            mtu: mtu.filter(|mtu| *mtu >= LEAST_MTU),
            server,
            lasts,
            renew,
        })
    }

    /// Classless routes (RFC 3442), or else the router.
    fn routes(&self) -> Vec<Route> {
        // The most routes that are taken of a server.
        const MOST_ROUTES: usize = 16;
        let Some(mut rest) = self.get(option::ROUTES) else {
            let router = self.addresses(option::ROUTER).next();
            return router.map(|router| (Ipv4Addr::UNSPECIFIED, 0, Some(router))).into_iter().collect();
        };
        let mut routes = Vec::new();
        while let [length @ 0..=32, more @ ..] = rest
            && routes.len() < MOST_ROUTES
        {
            let Some((to, more)) = more.split_at_checked(usize::from(length.div_ceil(8))) else { break };
            let Some((via, more)) = more.split_at_checked(4) else { break };
            rest = more;
            let mut octets = [0; 4];
            octets[..to.len()].copy_from_slice(to);
            let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
            let to = Ipv4Addr::from_bits(u32::from_be_bytes(octets) & mask);
            match address(via) {
                Some(via) if via.is_unspecified() => routes.push((to, *length, None)),
                Some(via) if is_host(&via) => routes.push((to, *length, Some(via))),
                _ => {}
            }
        }
        routes
    }

    fn search(&self) -> Vec<String> {
        let listed = self.get(option::SEARCH).map(names::all).unwrap_or_default();
        let domain = self.get(option::DOMAIN).unwrap_or_default();
        let domain = String::from_utf8_lossy(domain).trim_end_matches(['\0', '.']).to_owned();
        match listed.is_empty() && names::is_name(&domain) {
            true => vec![domain],
            false => listed,
        }
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

/// Whether it may be the address of one host.
fn is_host(address: &Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

/// The length of a network whose server does not say it (RFC 950).
fn class_length(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        ..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];
    const ID: u32 = 0x1234_5678;

    /// A server's message with these options, each with its length.
    fn reply(options: &[&[u8]]) -> Vec<u8> {
        let mut message = vec![0; HEAD];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[4..8].copy_from_slice(&ID.to_be_bytes());
        message[16..20].copy_from_slice(&[192, 0, 2, 7]);
        message[28..34].copy_from_slice(&MAC);
        message.extend(COOKIE);
        options.iter().for_each(|option| message.extend(*option));
        message.push(option::END);
        message
    }

    const SERVER: &[u8] = &[54, 4, 192, 0, 2, 1];
    const MASK: &[u8] = &[1, 4, 255, 255, 255, 0];

    fn offer(options: &[&[u8]]) -> Option<Lease> {
        let mut exchange = Exchange::new(MAC, ID);
        exchange.take(&reply(&[&[&[53, 1, kind::OFFER][..], SERVER], options].concat()));
        exchange.offer
    }

    #[test]
    fn a_client_asks_takes_the_offer_and_has_a_lease() {
        let mut exchange = Exchange::new(MAC, ID);
        let asked = exchange.message();
        assert!(asked.len() >= SHORTEST && asked[240..243] == [53, 1, kind::DISCOVER], "{asked:?}");
        let more: [&[u8]; 5] = [
            MASK,
            &[3, 4, 192, 0, 2, 1],
            &[6, 8, 192, 0, 2, 53, 0, 0, 0, 0],
            &[51, 4, 0, 0, 14, 16],
            &[26, 2, 5, 120],
        ];
        assert_eq!(
            exchange.take(&reply(&[&[&[53, 1, kind::OFFER][..], SERVER], &more[..]].concat())),
            Taken::Next
        );
        let wanted = exchange.message();
        assert_eq!(wanted[240..255], [53, 1, kind::REQUEST, 50, 4, 192, 0, 2, 7, 54, 4, 192, 0, 2, 1]);
        let Taken::Lease(lease) =
            exchange.take(&reply(&[&[&[53, 1, kind::ACK][..], SERVER], &more[..]].concat()))
        else {
            panic!("no lease")
        };
        assert_eq!((lease.address.octets(), lease.length), ([192, 0, 2, 7], 24));
        assert_eq!(lease.routes, [(Ipv4Addr::UNSPECIFIED, 0, Some([192, 0, 2, 1].into()))]);
        assert_eq!((lease.dns, lease.mtu), (vec![[192, 0, 2, 53].into()], Some(1400)));
        assert_eq!((lease.lasts, lease.renew), (Some(3600), 1800));
    }

    #[test]
    fn messages_for_others_and_of_other_servers_are_not_taken() {
        let good = reply(&[&[53, 1, kind::OFFER], SERVER, MASK]);
        for at in [0, 2, 4, 7, 28, 33, HEAD] {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(Exchange::new(MAC, ID).take(&other), Taken::Nothing, "at {at}");
        }
        let mut exchange = Exchange::new(MAC, ID);
        assert_eq!(
            exchange.take(&reply(&[&[53, 1, kind::ACK], SERVER, MASK])),
            Taken::Nothing,
            "nothing was asked"
        );
        assert_eq!(exchange.take(&good), Taken::Next);
        let other = reply(&[&[53, 1, kind::ACK], &[54, 4, 192, 0, 2, 66], MASK]);
        assert_eq!(exchange.take(&other), Taken::Nothing);
        assert_eq!(exchange.take(&reply(&[&[53, 1, kind::NAK], SERVER])), Taken::Next);
        assert_eq!(exchange.offer, None, "it begins again");
    }

    #[test]
    fn a_renewal_keeps_its_address_or_begins_again() {
        let mut exchange = Exchange::renewal(MAC, ID, [192, 0, 2, 7].into());
        let message = exchange.message();
        assert_eq!(message[12..16], [192, 0, 2, 7]);
        assert_eq!(message[240..243], [53, 1, kind::REQUEST]);
        let ack = reply(&[&[53, 1, kind::ACK], SERVER, MASK]);
        assert!(matches!(exchange.take(&ack), Taken::Lease(_)));
        assert_eq!(exchange.take(&reply(&[&[53, 1, kind::NAK], SERVER])), Taken::Next);
        assert_eq!(exchange.message()[240..243], [53, 1, kind::DISCOVER]);
    }

    #[test]
    fn routes_take_the_place_of_the_router() {
        let router: &[u8] = &[3, 4, 192, 0, 2, 1];
        let routes: &[u8] = &[121, 14, 32, 203, 0, 113, 1, 0, 0, 0, 0, 0, 203, 0, 113, 1];
        let gateway = Ipv4Addr::from([203, 0, 113, 1]);
        let lease = offer(&[MASK, router, routes]).unwrap();
        assert_eq!(lease.routes, [(gateway, 32, None), (Ipv4Addr::UNSPECIFIED, 0, Some(gateway))]);
        for broken in
            [&[121, 3, 33, 1, 2][..], &[121, 2, 24, 10], &[121, 0], &[121, 5, 0, 255, 255, 255, 255]]
        {
            assert_eq!(offer(&[MASK, router, broken]).unwrap().routes, [], "{broken:?}");
        }
    }

    #[test]
    fn options_may_be_in_parts_and_in_the_names_places() {
        let lease = offer(&[MASK, &[6, 2, 192, 0], &[6, 2, 2, 53]]).unwrap();
        assert_eq!(lease.dns, [Ipv4Addr::from([192, 0, 2, 53])]);
        let mut message = reply(&[&[53, 1, kind::OFFER], SERVER, &[52, 1, 3]]);
        message[FILE][..6].copy_from_slice(MASK);
        message[SNAME][..7].copy_from_slice(b"\x0f\x05a.org");
        let mut exchange = Exchange::new(MAC, ID);
        assert_eq!(exchange.take(&message), Taken::Next);
        let lease = exchange.offer.unwrap();
        assert_eq!((lease.length, lease.search), (24, vec!["a.org".to_owned()]));
    }

    #[test]
    fn what_makes_no_sense_of_a_server_is_not_taken() {
        assert_eq!(offer(&[&[1, 4, 255, 0, 255, 0]]), None);
        assert_eq!(offer(&[&[1, 4, 0, 0, 0, 0]]), None);
        assert_eq!(offer(&[]).unwrap().length, 24, "by its class");
        assert_eq!(offer(&[MASK, &[26, 2, 0, 68]]).unwrap().mtu, None);
        assert_eq!(offer(&[MASK, &[26, 1, 9]]).unwrap().mtu, None);
        assert_eq!(
            offer(&[MASK, &[15, 7, b'a', b'\n', b'b', b' ', b'c', b'.', b'd']]).unwrap().search,
            [""; 0]
        );
        for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
            let mut message = reply(&[&[53, 1, kind::OFFER], SERVER, MASK]);
            message[16..20].copy_from_slice(&address);
            assert_eq!(Exchange::new(MAC, ID).take(&message), Taken::Nothing, "{address:?}");
        }
    }

    #[test]
    fn a_message_that_is_cut_anywhere_is_not_a_panic() {
        let whole = reply(&[
            &[53, 1, kind::OFFER],
            SERVER,
            MASK,
            &[119, 6, 1, b'a', 1, b'b', 0xc0, 0],
            &[121, 5, 0, 192, 0, 2, 1],
            &[52, 1, 3],
        ]);
        for end in 0..whole.len() {
            let _ = Exchange::new(MAC, ID).take(&whole[..end]);
        }
        for at in HEAD..whole.len() {
            for value in [0, 1, 0x7f, 0xc0, 0xff] {
                let mut odd = whole.clone();
                odd[at] = value;
                let _ = Exchange::new(MAC, ID).take(&odd);
            }
        }
    }
}
