//! Addresses of a registry's parts, and which of them may be asked.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, bail};
use ureq::http::Uri;

/// An address of HTTP or HTTPS with a host, and no user in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    text: String,
    is_https: bool,
    /// Host and port as they are written.
    authority: String,
    /// The host alone, without brackets.
    host: String,
}

impl Url {
    /// Reads an address.
    ///
    /// # Errors
    /// It is no such address.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let shown = || format!("'{}' is no address of a registry", shortened(text));
        // A fragment is for the reader, and names no other thing.
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().with_context(shown)?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!(shown()),
        };
        let authority = uri.authority().with_context(shown)?.as_str().to_owned();
        if authority.contains('@') || uri.host().is_none_or(str::is_empty) {
            bail!(shown());
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { text: text.to_owned(), is_https, authority, host })
    }

    /// Where a redirection from here leads to (RFC 3986, section 5, without paths that are relative to the last).
    ///
    /// # Errors
    /// That is no address.
    pub(super) fn join(&self, location: &str) -> anyhow::Result<Self> {
        let scheme = if self.is_https { "https" } else { "http" };
        if location.starts_with("//") {
            Self::parse(&format!("{scheme}:{location}"))
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{}{location}", self.authority))
        } else {
            Self::parse(location)
        }
    }

    /// The whole text.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether what is sent there is encrypted.
    pub(super) fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether it is of this machine, whoever resolves names.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// Whether credentials for one are for the other, too.
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        self.is_https == other.is_https && self.authority.eq_ignore_ascii_case(&other.authority)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What comes behind a question mark may be a secret.
        let text = self.text.split('?').next().unwrap_or_default();
        write!(formatter, "{}", shortened(text))
    }
}

/// A text of another's for an error.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shown += "...";
    }
    shown
}

/// Whether a host is this machine itself.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_leads_where_a_browser_would_go() {
        let from = Url::parse("https://a.example:5000/v2/x?y#z").unwrap();
        for (location, to) in [
            ("https://b.example/c?d=e", "https://b.example/c?d=e"),
            ("/c", "https://a.example:5000/c"),
            ("//b.example/c", "https://b.example/c"),
            ("http://127.0.0.1:1/", "http://127.0.0.1:1/"),
        ] {
            assert_eq!(from.join(location).unwrap().as_str(), to);
        }
        for location in [
            "ftp://b/",
            "file:///etc/passwd",
            "c",
            "",
            "https://",
            "https://user:password@b/",
            "https://b\r\nX: y/",
        ] {
            assert!(from.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://localhost:5000/", true),
            ("http://127.9.9.9/", true),
            ("http://[::1]:5000/", true),
            ("http://registry.localhost/", true),
            ("http://localhost.example/", false),
            ("http://127.0.0.1.example/", false),
            ("http://10.0.0.1/", false),
            ("http://[::2]/", false),
        ] {
            assert_eq!(Url::parse(url).unwrap().is_loopback(), expected, "{url}");
        }
    }

    #[test]
    fn an_address_in_an_error_has_no_secrets_and_no_end_of_line() {
        let url = Url::parse("https://a/b?sig=secret").unwrap();
        assert_eq!(url.to_string(), "https://a/b");
        assert!(shortened(&format!("a\n{}", "b".repeat(500))).len() < 210);
    }

    #[test]
    fn credentials_are_for_one_server_only() {
        let server = Url::parse("https://a.example/v2/").unwrap();
        for (other, expected) in [
            ("https://A.example/token", true),
            ("http://a.example/", false),
            ("https://a.example:444/", false),
            ("https://b.a.example/", false),
        ] {
            assert_eq!(server.is_same_server(&Url::parse(other).unwrap()), expected, "{other}");
        }
    }
}
