//! `kite run -- COMMAND`: what the guest is to do, and what it and kite tell each other while it does it.
//!
//! The command is a file of the initrd. The command's streams have a port of the virtio console each; what is said goes
//! over another port, a line of JSON a message. Neither side trusts the other's messages: a line that is too long or
//! says nothing known is not heard.

use std::ffi::OsString;
use std::net::IpAddr;

use nix::sys::resource::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::container::ContainerSpec;
use super::net::RouteSpec;

/// The command's file in the initrd.
pub const FILE: &str = "/command";
/// The port for messages.
pub const CONTROL: &str = "kite.control";
/// The port of the command's standard input.
pub const STDIN: &str = "kite.stdin";
/// The tags of the folders of single files that a container shows, and whether each may be written.
pub const FILES: [(&str, bool); 2] = [("files-ro", false), ("files-rw", true)];
/// The serial number of the disk that holds an image's root file system.
pub const IMAGE_SERIAL: &str = "kite-image";
/// What a guest says, before a port's name, whose kernel finds no console.
pub const NO_PORT: &str = "no virtio port ";
/// The longest message, in bytes with its line break.
const MESSAGE_MAX: usize = 16 << 10;

/// A command as kite's own `/init` runs it: a [`CommandSpec`](super::CommandSpec) with what only the host knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCommand {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// The whole of the environment.
    pub env: Vec<(OsString, OsString)>,
    /// The folder to start in.
    pub cwd: OsString,
    /// What happens if there is no such folder.
    pub missing_cwd: MissingCwd,
    /// Who runs it.
    pub user: User,
    /// What new files do not permit (umask(2)).
    pub umask: u32,
    /// What it may use, soft and hard, of each of [`LIMITS`].
    pub limits: Vec<(u64, u64)>,
    /// The root folder.
    pub root: Root,
    /// Folders to be mounted below it, in this order.
    pub shares: Vec<Share>,
    /// Its networks, in the order of their devices.
    pub networks: Vec<Network>,
    /// The terminal, if the command gets one for standard input and output.
    pub terminal: Option<Terminal>,
    /// The container that the command is the process of.
    pub container: Option<ContainerSpec>,
}

/// What happens where the folder that a command starts in is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MissingCwd {
    /// The command is not started.
    Fail,
    /// It starts in the root folder.
    Root,
    /// The folder is made.
    Make,
}

/// The limits of kite's caller that hold for the command (getrlimit(2)): those of what a program does to itself and to files.
/// The others are of what a machine has, and a guest is another one.
pub const LIMITS: [Resource; 7] = [
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_CPU,
    Resource::RLIMIT_FSIZE,
    Resource::RLIMIT_NOFILE,
    Resource::RLIMIT_STACK,
    Resource::RLIMIT_DATA,
    Resource::RLIMIT_AS,
];

/// A network of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The address of its interface, by which that is found.
    pub mac: [u8; 6],
    /// How the interface is set up.
    pub setup: Setup,
}

/// How an interface gets its addresses, routes and resolvers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setup {
    /// As a DHCP server and a router on the network say.
    Automatic {
        /// The guest is alone on the network, so that no address is taken.
        alone: bool,
        /// Resolvers beside those that are named there.
        dns: Vec<IpAddr>,
    },
    /// As the command line says.
    Fixed {
        /// Addresses, each with the length of its network.
        addresses: Vec<(IpAddr, u8)>,
        /// Gateways, at most one a family.
        gateways: Vec<IpAddr>,
        /// Other routes, in this order.
        routes: Vec<RouteSpec>,
        /// Resolvers.
        dns: Vec<IpAddr>,
    },
    /// Not at all: the command may do it.
    None,
}

/// Who runs the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// Numbers, whatever the guest's files say of them.
    Numbers {
        /// The user's.
        uid: u32,
        /// The group's.
        gid: u32,
        /// Those of the supplementary groups.
        groups: Vec<u32>,
    },
    /// Names or numbers that the guest looks up in its own passwd(5) and group(5).
    Named {
        /// The user.
        user: String,
        /// The group; the user's own if there is none.
        group: Option<String>,
    },
    /// The same by the rules for containers: a number that passwd(5) does not have is a user of group 0, a group that is
    /// named is the only one, and of the environment only `HOME` is the user's, where it is not set.
    Container {
        /// The user.
        user: String,
        /// The group; the user's own and those that have it as a member if there is none.
        group: Option<String>,
    },
}

/// What the root folder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// A shared folder under a layer of memory.
    Share {
        /// The share's tag.
        tag: String,
    },
    /// The file system on the first disk.
    Disk {
        /// It is not to be written.
        readonly: bool,
    },
    /// The EROFS file system on the disk whose serial number is [`IMAGE_SERIAL`], under a layer of memory.
    Image,
}

impl Root {
    /// Whether what is written to it is in memory, and gone with the guest.
    pub fn is_in_memory(&self) -> bool {
        matches!(self, Self::Share { .. } | Self::Image)
    }
}

/// A shared folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The share's tag.
    pub tag: String,
    /// Where it is mounted.
    pub at: OsString,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// Its programs do not run as their owner.
    pub nosuid: bool,
}

/// The terminal of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
    /// Standard error goes there too.
    pub stderr: bool,
}

/// One of the command's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Standard output, or all that the terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Output {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The name of its port.
    pub fn port(self) -> &'static str {
        match self {
            Self::Stdout => "kite.stdout",
            Self::Stderr => "kite.stderr",
        }
    }
}

/// What the guest tells kite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// What the command does without; a line says what and why.
    Lacks(String),
    /// The command is about to be started.
    Started,
    /// Nobody writes to the output any more. Its port and this message travel apart: so many bytes went that way.
    Closed {
        /// Which.
        output: Output,
        /// Bytes in all.
        bytes: u64,
    },
    /// Nobody reads standard input any more.
    Unread,
    /// The command has ended. It is the last message.
    Ended(End),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this status.
    Exited(u8),
    /// By this signal.
    Signalled(i32),
    /// It was not found; a line says what.
    NotFound(String),
    /// It cannot be executed; a line says why.
    NotExecutable(String),
    /// The guest could not come to start it; a line says why.
    Failed(String),
}

/// What kite tells the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The terminal has another size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Nobody reads the output any more.
    HangUp(Output),
    /// The command gets this signal.
    Signal(i32),
}

/// A message as it travels.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("plain data can be written as JSON");
    line.push(b'\n');
    line
}

/// Cuts what has come into messages.
#[derive(Debug, Default)]
pub struct Messages {
    line: Vec<u8>,
    /// The line so far is too long to be one.
    skipping: bool,
}

impl Messages {
    /// Takes more bytes and hands on the messages that are whole with them.
    pub fn feed<M: DeserializeOwned>(&mut self, bytes: &[u8], mut each: impl FnMut(M)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.skipping |= self.line.len() + part.len() > MESSAGE_MAX;
            if !self.skipping {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                if !std::mem::take(&mut self.skipping)
                    && let Ok(message) = serde_json::from_slice(&self.line)
                {
                    each(message);
                }
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn fed(messages: &mut Messages, bytes: &[u8]) -> Vec<Report> {
        let mut heard = Vec::new();
        messages.feed(bytes, |report| heard.push(report));
        heard
    }

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let sent = [
            Report::Started,
            Report::Closed { output: Output::Stderr, bytes: u64::MAX },
            Report::Ended(End::NotFound("a\nb".to_owned())),
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
        for size in [1, 7, bytes.len()] {
            let mut messages = Messages::default();
            let heard: Vec<_> = bytes.chunks(size).flat_map(|part| fed(&mut messages, part)).collect();
            assert_eq!(heard, sent, "in parts of {size}");
        }
    }

    #[test]
    fn nonsense_and_endless_lines_are_not_heard_and_what_follows_is() {
        let mut messages = Messages::default();
        assert_eq!(fed(&mut messages, b"{\"Ended\":7}\n\xff\n\n"), []);
        for _ in 0..100 {
            assert_eq!(fed(&mut messages, &[b'x'; 4096]), []);
            assert!(messages.line.len() <= MESSAGE_MAX);
        }
        assert_eq!(fed(&mut messages, b"\n\"Unread\"\n"), [Report::Unread]);
    }

    #[test]
    fn a_command_keeps_every_byte_of_its_names() {
        let odd = OsString::from_vec(vec![b'a', 0xff, b'\n', b'"']);
        let command = GuestCommand {
            argv: vec![odd.clone()],
            env: vec![("A".into(), odd.clone())],
            cwd: odd.clone(),
            missing_cwd: MissingCwd::Make,
            user: User::Numbers { uid: 1, gid: 2, groups: vec![3] },
            umask: 0o027,
            limits: vec![(0, u64::MAX)],
            root: Root::Share { tag: "root".to_owned() },
            shares: vec![Share { tag: "s".to_owned(), at: odd, writable: true, nosuid: true }],
            networks: vec![Network {
                mac: [2, 0, 0, 0, 0, 1],
                setup: Setup::Automatic { alone: true, dns: vec![IpAddr::from([192, 0, 2, 1])] },
            }],
            terminal: Some(Terminal { columns: 80, rows: 24, stderr: false }),
            container: None,
        };
        assert_eq!(serde_json::from_slice::<GuestCommand>(&encode(&command)).unwrap(), command);
    }
}
