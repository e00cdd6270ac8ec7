//! Names of hosts, looked up by `getent ahosts` (getent(1)).
//!
//! kite is linked statically with glibc, whose own lookup would load the modules that the host's nsswitch.conf names, of
//! another version of glibc: a crash where it does not fail. `getent` is the host's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::url::is_loopback;
use crate::host::child::{self, End, Stream};

/// How long a lookup may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The most bytes that are read of an answer.
const ANSWER_MAX: usize = 64 << 10;
/// The most addresses that are tried.
const ADDRESSES_MAX: usize = 8;

/// Looks names up as the host does.
#[derive(Debug)]
pub(super) struct HostNames;

impl Resolver for HostNames {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default);
        let mut found = self.empty();
        let addresses = addresses(host).map_err(|why| ureq::Error::Io(std::io::Error::other(why)))?;
        addresses.into_iter().take(ADDRESSES_MAX).for_each(|it| found.push(SocketAddr::new(it, port)));
        Ok(found)
    }
}

/// The addresses of a host, at least one.
fn addresses(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    if is_loopback(host) {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let failed = |why: &str| format!("cannot look up {}: {why}", host.escape_debug());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.starts_with('-') || !host.bytes().all(is_name) {
        return Err(failed("it is no name of a host"));
    }
    let mut answer = Vec::new();
    let mut take = |stream, bytes: &[u8]| {
        let room = ANSWER_MAX - answer.len();
        if stream == Stream::Stdout {
            answer.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    };
    let mut getent = Command::new("getent");
    let ended = child::run(getent.args(["ahosts", host]), b"", None, Some(LIMIT), &mut take);
    match ended {
        Err(error) => return Err(failed(&format!("{error:#}; kite asks the program getent, of libc-bin"))),
        Ok(End::Status(_)) => {}
        Ok(End::Late | End::Stopped) => return Err(failed("no name server answers")),
    }
    let found = parse(&String::from_utf8_lossy(&answer));
    if found.is_empty() {
        return Err(failed("there is no such host, or no name server is reached"));
    }
    Ok(found)
}

/// The addresses in what getent prints: each in the first word of a line, once for each kind of socket.
fn parse(answer: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in answer.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_lookup_and_this_machine_has_its_own() {
        assert_eq!(addresses("192.0.2.1").unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses("::1").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(addresses("localhost").unwrap().iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn what_getent_prints_is_understood() {
        let answer = "192.0.2.1       STREAM example.org\n192.0.2.1       DGRAM  \n192.0.2.1       RAW    \n\
                      2001:db8::1     STREAM \nnonsense\n\n";
        assert_eq!(parse(answer), ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn what_is_no_name_never_becomes_an_argument() {
        for host in ["-s", "--help", "a b", "a;b", "a\nb", "ä"] {
            assert!(addresses(host).unwrap_err().contains("no name of a host"), "{host}");
        }
    }
}
