//! What a machine uses on the host beside its own process, to be ended and removed after it.

use std::os::fd::BorrowedFd;
use std::process::Child;

use anyhow::Result;
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::control::ControlSocket;
use crate::backend::passt;
use crate::backend::socket::Name;

/// Names of sockets, programs and a cgroup that outlive a machine unless they are removed.
///
/// When it is dropped, they are removed; programs end by themselves.
#[derive(Default)]
pub struct Cleanup {
    /// The names of sockets.
    pub names: Vec<Name>,
    /// The programs that devices need.
    pub programs: Vec<Child>,
    /// The group that the machine and these programs are in.
    pub group: Option<Cgroup>,
    /// Where commands ask for the machine.
    pub control: Option<ControlSocket>,
    /// What ends kite is passed on to the command; only SIGTERM has to end the machine, after a while.
    pub passes_signals_on: bool,
}

/// The folders that a supervisor removes something from.
#[derive(Default)]
pub struct Chores<'a> {
    /// Folders that have a name to be removed.
    pub names: Vec<BorrowedFd<'a>>,
    /// Folders of a cgroup to be ended and removed.
    pub groups: Vec<BorrowedFd<'a>>,
}

impl Cleanup {
    /// Puts the VM process and the programs into the group, if there is one.
    ///
    /// # Errors
    /// The host does not let it.
    pub(super) fn place(&self, vm: Pid) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let programs = self.programs.iter().map(|program| Pid::from_raw(program.id() as i32));
        std::iter::once(vm).chain(programs).try_for_each(|process| group.add(process))
    }

    /// Follows the programs to their ends, on threads.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(super) fn watch(&mut self) -> Result<()> {
        self.programs.drain(..).try_for_each(passt::watch)
    }

    /// Leaves everything to another process, which has a copy of this.
    pub(super) fn leave(&mut self) {
        self.names.drain(..).for_each(Name::leave);
        self.programs.clear();
        self.control = None;
        self.group.take().into_iter().for_each(Cgroup::leave);
    }

    /// The folders that things are removed from.
    pub(super) fn chores(&self) -> Chores<'_> {
        Chores {
            names: self.names.iter().map(Name::folder).collect(),
            groups: self.group.iter().flat_map(Cgroup::folders).collect(),
        }
    }
}
