//! The control socket: how commands find a machine that runs, and what they ask of it.
//!
//! The socket is the supervisor's, in a folder that is this user's alone, and is made before there are two processes. It has
//! packets like the [channel](super::channel): one question and one answer a connection, each whole and bounded, and a
//! descriptor with a picture. The supervisor answers between other chores and waits for no client; what only the machine
//! can do, it asks the VM process over the channel.

mod client;
mod folder;
pub mod message;
mod server;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;

use anyhow::{Context, anyhow};

use crate::backend::socket::{Name, listen_for_packets};
use crate::spec::id::MachineId;
pub use client::{Connection, Picture, connect, list};
use folder::Folder;
pub use message::{Description, Facts, cut};
pub use server::{Server, Unasked, Wish};

/// A control socket that listens, and what its machine is.
pub struct ControlSocket {
    listener: UnixListener,
    facts: Facts,
}

impl ControlSocket {
    /// Makes the socket of the machine that `facts` are about. Its name is removed by its owner.
    ///
    /// # Errors
    /// A machine of this name runs, the folder is not this user's alone, or the host refuses a socket.
    pub fn open(facts: Facts) -> anyhow::Result<(Self, Name)> {
        let id = &facts.id;
        let folder = Folder::make()?;
        let listening = listen_for_packets(&folder.way_to(id));
        let (listener, name) = listening.map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                anyhow!(
                    "a machine named {id} runs already: choose another --id, or end it with `kite stop {id}`"
                )
            }
            _ => anyhow!(error).context(format!("cannot listen at {}", folder.path_of(id).display())),
        })?;
        Ok((Self::new(listener, facts), name))
    }

    /// The socket of the machine that `facts` are about.
    pub fn new(listener: UnixListener, facts: Facts) -> Self {
        Self { listener, facts }
    }
}

/// What a command says of a machine that does not run.
fn absent(id: &MachineId) -> anyhow::Error {
    anyhow!("no machine named {id} runs: `kite list` shows those that do")
}

/// The folder with the sockets, for commands; nothing if no machine has made it yet.
fn folder() -> anyhow::Result<Option<Folder>> {
    Folder::open().context("cannot look for machines")
}
