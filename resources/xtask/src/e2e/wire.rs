//! The network around a guest: a tap in this network namespace, which routes between it and another namespace.
//!
//! ```text
//! guest 10.9.0.2 -- tap 10.9.0.1 (here) 10.8.0.1 -- 10.8.0.2 (peer)
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::step::output;

/// The tap's name.
pub const TAP: &str = "kite0";
/// Another tap, of several queues and with nothing behind it.
pub const SEVERAL: &str = "kite9";
/// A third, with this end's address and nobody who assigns others yet.
pub const ASSIGNED: &str = "kite7";
/// This end of the first.
pub const HERE: &str = "10.9.0.1";
/// The guest.
pub const GUEST: &str = "10.9.0.2";
/// The other namespace.
pub const PEER: &str = "10.8.0.2";

/// The tap and the other namespace; they go with it.
pub struct Wire {
    /// Holds the other namespace.
    holder: Child,
}

impl Wire {
    /// Makes both, in a network namespace that nothing else uses. The tap is for root, or for whom it is given to.
    ///
    /// # Errors
    /// A part of it cannot be made.
    pub fn new(owner: Option<u32>) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec sleep infinity"]).stdout(Stdio::piped());
        let holder = command.spawn().context("making a network namespace")?;
        let mut wire = Self { holder };
        let said = wire.holder.stdout.take().context("it has an output")?;
        BufReader::new(said).read_line(&mut String::new()).context("waiting for a network namespace")?;
        let pid = wire.holder.id().to_string();
        ip("link set lo up")?;
        wire.tap(owner)?;
        ip(&format!("link add kite1 type veth peer name kite2 netns {pid}"))?;
        ip("addr add 10.8.0.1/24 dev kite1")?;
        ip("link set kite1 up")?;
        for command in [
            "link set lo up",
            "addr add 10.8.0.2/24 dev kite2",
            "link set kite2 up",
            "route add default via 10.8.0.1",
        ] {
            output(wire.at_peer("ip").args(command.split(' ')))?;
        }
        ip(&format!("route add default via {PEER}"))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("switching routing on")?;
        Ok(wire)
    }

    fn tap(&self, owner: Option<u32>) -> Result<()> {
        add_tap(TAP, "", owner)?;
        ip(&format!("addr add {HERE}/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))
    }

    /// Makes the tap of several queues, for the same.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn several(&self, owner: Option<u32>) -> Result<()> {
        add_tap(SEVERAL, " multi_queue", owner)
    }

    /// Makes the tap behind which addresses are assigned, for the same.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn assigned(&self, address: &str, owner: Option<u32>) -> Result<()> {
        add_tap(ASSIGNED, "", owner)?;
        ip(&format!("addr add {address}/24 dev {ASSIGNED}"))?;
        ip(&format!("link set {ASSIGNED} up"))
    }

    /// A command that runs in the other namespace.
    pub fn at_peer(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", program]);
        command
    }

    /// Takes the tap away.
    ///
    /// # Errors
    /// It cannot be.
    pub fn unplug(&self) -> Result<()> {
        ip(&format!("link delete {TAP}"))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // What is not there any more need not be removed.
        let _ = self.unplug();
        let _ = ip("link delete kite1");
        for name in [SEVERAL, ASSIGNED] {
            let _ = ip(&format!("link delete {name}"));
        }
        let _ = self.holder.kill().and_then(|()| self.holder.wait());
    }
}

fn add_tap(name: &str, kind: &str, owner: Option<u32>) -> Result<()> {
    let owner = owner.map(|owner| format!(" user {owner}")).unwrap_or_default();
    ip(&format!("tuntap add {name} mode tap{kind}{owner}"))
}

/// ip(8) with these words.
///
/// # Errors
/// It says so.
pub(super) fn ip(words: &str) -> Result<()> {
    output(Command::new("ip").args(words.split(' '))).map(drop).with_context(|| format!("ip {words}"))
}
