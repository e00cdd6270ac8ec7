//! Where viewers of the screen find it; as `--vnc` says it, `ADDRESS:PORT` or `unix:PATH`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::text;

/// How viewers get to the screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VncSpec {
    /// Where kite listens.
    pub listen: Address,
    /// The file with the password, if viewers have to know one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub password_file: Option<PathBuf>,
    /// The folder with noVNC, if it is not where packages put it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub novnc: Option<PathBuf>,
}

/// An address for viewers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Address {
    /// A port of this host's.
    Tcp(SocketAddr),
    /// A UNIX socket, for this user alone.
    Unix(#[serde(with = "text::os")] PathBuf),
}

impl Address {
    /// What `--vnc` means without a value.
    pub const DEFAULT: &str = "unix:kite-vnc.sock";

    /// Reads the value of `--vnc`.
    ///
    /// # Errors
    /// It is no address, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        let address = local.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        match address.or_else(|| text.parse().ok()).filter(|address| address.port() != 0) {
            Some(address) => Ok(Self::Tcp(address)),
            None => Err("it is neither ADDRESS:PORT, such as 127.0.0.1:5901, nor unix:PATH".to_owned()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl VncSpec {
    /// Whether viewers can be let in so.
    ///
    /// # Errors
    /// Why not, in one line.
    pub(super) fn check(&self) -> Result<(), String> {
        match &self.listen {
            Address::Tcp(address) if !address.ip().is_loopback() && self.password_file.is_none() => {
                Err(format!(
                    "{address} can be reached from other hosts, so it needs a password: add --vnc-password-file FILE"
                ))
            }
            Address::Tcp(address) if address.port() == 0 => Err("a port is from 1 to 65535".to_owned()),
            Address::Unix(path) if path.as_os_str().is_empty() => Err("a socket needs a path".to_owned()),
            _ => Ok(()),
        }
    }

    /// Has relative paths begin at `folder`.
    pub(super) fn rebase(&mut self, folder: &Path) {
        let listen = if let Address::Unix(path) = &mut self.listen { Some(path) } else { None };
        for path in listen.into_iter().chain(&mut self.password_file).chain(&mut self.novnc) {
            *path = folder.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_a_path() {
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        assert_eq!(Address::parse("127.0.0.1:5901"), tcp("127.0.0.1:5901"));
        assert_eq!(Address::parse("[::1]:1"), tcp("[::1]:1"));
        assert_eq!(Address::parse("localhost:5900"), tcp("127.0.0.1:5900"));
        assert_eq!(Address::parse("unix:a:b"), Ok(Address::Unix("a:b".into())));
        for text in ["127.0.0.1:5901", "[::1]:1", "unix:/run/a", Address::DEFAULT] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        let wrong =
            ["", "5901", ":5901", "127.0.0.1", "127.0.0.1:0", "localhost:x", "host:1", "unix:", "/run/a"];
        crate::spec::assert_refused_in_one_line(Address::parse, &wrong);
    }

    #[test]
    fn other_hosts_need_a_password() {
        let check = |listen: &str, password: Option<&str>| {
            let listen = Address::parse(listen).unwrap();
            VncSpec { listen, password_file: password.map(Into::into), novnc: None }.check()
        };
        for listen in ["0.0.0.0:5901", "[::]:5901", "192.0.2.1:5901"] {
            assert!(check(listen, None).unwrap_err().contains("add --vnc-password-file"), "{listen}");
            assert_eq!(check(listen, Some("secret")), Ok(()));
        }
        for listen in ["127.0.0.1:5901", "127.1.2.3:5901", "[::1]:5901", "unix:a"] {
            assert_eq!(check(listen, None), Ok(()));
        }
    }

    #[test]
    fn relative_paths_begin_at_a_specs_folder() {
        let (listen, path) = (Address::Unix("a".into()), |path: &str| Some(PathBuf::from(path)));
        let mut spec = VncSpec { listen, password_file: path("b"), novnc: path("/c") };
        spec.rebase(Path::new("/d"));
        let listen = Address::Unix("/d/a".into());
        assert_eq!(spec, VncSpec { listen, password_file: path("/d/b"), novnc: path("/c") });
    }
}
