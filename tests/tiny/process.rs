//! kite with a tiny guest, as a child process.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

use boot::testing::{Code, Entry};

use crate::support::KITE;
use crate::support::child::{End, Running};
use crate::support::guest::Elf;

/// kite with a guest, while it runs.
pub struct Kite {
    running: Running,
    elf: Elf,
}

impl Kite {
    /// Runs a guest in long mode, with nothing on standard input.
    pub fn run(guest: &'static Code, arguments: &[&str]) -> Self {
        Self::start(guest, Entry::Long, arguments, Stdio::null(), Stdio::piped())
    }

    /// Runs a guest that is typed to.
    pub fn typed_to(guest: &'static Code, arguments: &[&str]) -> Self {
        Self::start(guest, Entry::Long, arguments, Stdio::piped(), Stdio::piped())
    }

    /// Runs a guest. What goes to standard output is read here if that is a pipe of kite's own.
    pub fn start(
        guest: &'static Code,
        entry: Entry,
        arguments: &[&str],
        stdin: Stdio,
        stdout: Stdio,
    ) -> Self {
        Self::start_file(Elf::new(guest.code(), entry), arguments, stdin, stdout)
    }

    /// Runs a file, with nothing on standard input.
    pub fn run_file(elf: Elf, arguments: &[&str]) -> Self {
        Self::start_file(elf, arguments, Stdio::null(), Stdio::piped())
    }

    fn start_file(elf: Elf, arguments: &[&str], stdin: Stdio, stdout: Stdio) -> Self {
        let mut command = elf.command(arguments);
        Self::spawn(elf, command.stdin(stdin).stdout(stdout))
    }

    /// Runs a guest as the shell would with `redirection`, or options, behind the command.
    pub fn redirected(guest: &'static Code, redirection: &str) -> Self {
        Self::in_shell(guest, "", redirection)
    }

    /// Runs a guest as the shell would with `assignments` of variables before the command and `options` behind it.
    pub fn in_shell(guest: &'static Code, assignments: &str, options: &str) -> Self {
        let elf = Elf::new(guest.code(), Entry::Long);
        let mut shell = Command::new("sh");
        let script = format!("{assignments} exec \"$0\" run --memory 64M --kernel \"$1\" {options}");
        shell.args(["-c", &script, KITE]).arg(&elf.path);
        Self::spawn(elf, shell.stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    /// Runs a guest by a program that becomes kite.
    pub fn by(program: &[&str], guest: &'static Code, arguments: &[&str]) -> Self {
        let elf = Elf::new(guest.code(), Entry::Long);
        let kite = elf.command(arguments);
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(KITE).args(kite.get_args());
        Self::spawn(elf, command.stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    fn spawn(elf: Elf, command: &mut Command) -> Self {
        Self { running: Running::spawn(command.stderr(Stdio::piped())), elf }
    }

    /// The guest's file.
    pub fn image(&self) -> &Path {
        &self.elf.path
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(self) -> End {
        self.running.end()
    }
}

impl Deref for Kite {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl DerefMut for Kite {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}
