//! `kite oci`: the commands by which engines run containers.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::host::exit_code::{DONE, FAILED};
use crate::host::messages;
use crate::oci::log::{Format, Log};
use crate::oci::state::{Folder, Status, default_root};
use crate::oci::{self, Ask, CreateOptions, MonitorOptions, Words};

/// What `kite oci --help` ends with.
pub const HELP: &str = "\
Engines want one path to a runtime: make a link to kite named kite-oci, which is `kite oci` by that name.
    podman --runtime /usr/local/bin/kite-oci run --rm debian:12 uname -a

Annotations kite.cpus, kite.memory and kite.kernel of a container say how its machine is built; else its limits do, and
$KITE_KERNEL.

Exit status: 0, or 1 if something went wrong; `run` and `exec` end with the process's own status, or 128 + the number of
the signal that ended it.";

/// Exit code of a command that went wrong, as engines know it.
const WRONG: u8 = 1;

/// What an engine asks of the runtime.
#[derive(Args, Debug)]
pub struct Options {
    /// Where containers' states are [default: /run/kite-oci, or else $XDG_RUNTIME_DIR/kite-oci]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Write errors to this file, too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How they are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// Is accepted as other runtimes have it: a group's path says whether it is in systemd's form
    #[arg(long, hide = true)]
    systemd_cgroup: bool,
    /// Is accepted as other runtimes have it, and changes nothing
    #[arg(long, hide = true)]
    debug: bool,
    /// Is accepted as other runtimes have it, and changes nothing
    #[arg(long, hide = true, value_name = "WHETHER")]
    rootless: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a container, whose process waits for `start`
    Create(Create),
    /// Start a container's process
    Start {
        /// Which
        id: String,
    },
    /// Print what a container does, as JSON
    State {
        /// Which
        id: String,
    },
    /// Send a signal to a container's process; KILL ends its machine
    Kill {
        /// Which
        id: String,
        /// The signal's name or number
        #[arg(default_value = "TERM")]
        signal: String,
        /// Is accepted as other runtimes have it: a machine ends with all its processes
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a container that has stopped
    Delete {
        /// Which
        id: String,
        /// End it first if it runs; none at all is removed already
        #[arg(short, long)]
        force: bool,
    },
    /// Run another process in a container
    Exec(Box<Exec>),
    /// Stop a container's machine where it is
    Pause {
        /// Which
        id: String,
    },
    /// Let it go on
    Resume {
        /// Which
        id: String,
    },
    /// Print the number of a container's process on this host
    Ps {
        /// Which
        id: String,
        /// How it is printed: table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
        /// Options of ps(1), which cannot look into a machine
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Print what of the specification there is
    Features,
    /// Make a container, run it to its end, and remove it
    Run(Create),
    /// Wait for a container's start, and end as it does.
    #[command(hide = true)]
    Monitor {
        /// Which.
        id: String,
        /// Where the engine waits for its terminal.
        #[arg(long)]
        console_socket: Option<PathBuf>,
        /// Stay in its caller's session.
        #[arg(long)]
        foreground: bool,
        /// Join this network namespace.
        #[arg(long)]
        network: Option<PathBuf>,
        /// Make a network namespace.
        #[arg(long)]
        own_network: bool,
    },
    /// Run a container's machine.
    #[command(hide = true)]
    Machine {
        /// Which.
        id: String,
        /// In the network namespace that it is in.
        #[arg(long)]
        connected: bool,
    },
    /// Run another process in a container, with a terminal if need be.
    #[command(hide = true)]
    Join {
        /// Which.
        id: String,
        /// The file of the container's folder that describes it.
        document: String,
        /// Where the engine waits for its terminal.
        #[arg(long)]
        console_socket: Option<PathBuf>,
    },
}

/// How a container is made.
#[derive(Args, Debug)]
struct Create {
    /// Its name
    id: String,
    /// Its bundle, a folder with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Write the number of its process on this host to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Hand its terminal to who listens on this socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Is accepted as other runtimes have it, and changes nothing
    #[arg(long, hide = true)]
    no_pivot: bool,
    /// Is accepted as other runtimes have it, and changes nothing
    #[arg(long, hide = true)]
    no_new_keyring: bool,
    /// Is accepted as other runtimes have it: a machine has no descriptors of the host
    #[arg(long, hide = true, value_name = "N")]
    preserve_fds: Option<u32>,
}

/// Another process in a container.
#[derive(Args, Debug)]
struct Exec {
    /// Which container
    id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present = "process")]
    args: Vec<String>,
    /// What is run, as in a config.json's `process`
    #[arg(short, long, value_name = "FILE", conflicts_with = "args")]
    process: Option<PathBuf>,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Write the number of the process that carries its streams to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Hand its terminal to who listens on this socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// The folder to start in
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set a variable, NAME=VALUE; may be given more than once
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Who runs it, as UID or UID:GID
    #[arg(short, long, value_name = "USER", value_parser = user)]
    user: Option<(u32, Option<u32>)>,
    /// Is accepted as other runtimes have it: a machine has no descriptors of the host
    #[arg(long, hide = true, value_name = "N")]
    preserve_fds: Option<u32>,
}

fn user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |text: &str| text.parse().map_err(|_| "it is UID[:GID], in numbers".to_owned());
    match text.split_once(':') {
        Some((user, group)) => Ok((number(user)?, Some(number(group)?))),
        None => Ok((number(text)?, None)),
    }
}

/// Does it; returns the exit code. What goes wrong is said on standard error and in the log.
pub fn run(options: &Options) -> u8 {
    let log = Log { path: options.log.clone(), format: options.log_format };
    let root = options.root.clone().unwrap_or_else(default_root);
    carry_out(&root, &options.command, &log).unwrap_or_else(|error| {
        log.error(&format!("{error:#}"));
        // What takes the container's place ends with kite's own code.
        match options.command {
            Command::Monitor { .. } | Command::Machine { .. } | Command::Join { .. } => FAILED,
            _ => WRONG,
        }
    })
}

fn carry_out(root: &Path, command: &Command, log: &Log) -> anyhow::Result<u8> {
    match command {
        Command::Create(create) => oci::create(&create.options(root, false), log).map(|_| DONE),
        Command::Start { id } => oci::start(root, id).map(|()| DONE),
        Command::State { id } => print(Folder::open(root, id)?.record()?.to_json()),
        Command::Kill { id, signal, .. } => {
            oci::ask(root, id, Ask::Signal(oci::signal_number(signal)?)).map(|()| DONE)
        }
        Command::Delete { id, force } => oci::delete(root, id, *force).map(|()| DONE),
        Command::Exec(exec) => run_process(root, exec),
        Command::Pause { id } => oci::ask(root, id, Ask::Pause).map(|()| DONE),
        Command::Resume { id } => oci::ask(root, id, Ask::Resume).map(|()| DONE),
        Command::Ps { id, format, .. } => {
            let record = Folder::open(root, id)?.record()?;
            let pids: Vec<_> =
                Some(record.pid).filter(|_| record.status != Status::Stopped).into_iter().collect();
            match format.as_str() {
                "json" => print(serde_json::json!(pids).to_string()),
                _ => print(pids.iter().fold("PID".to_owned(), |text, pid| format!("{text}\n{pid}"))),
            }
        }
        Command::Features => print(oci::features()),
        Command::Run(create) => oci::run(&create.options(root, create.console_socket.is_none()), log),
        Command::Monitor { id, console_socket, foreground, network, own_network } => {
            let options = MonitorOptions {
                root,
                id,
                console: console_socket.as_deref(),
                foreground: *foreground,
                network: network.as_deref(),
                own_network: *own_network,
            };
            or_left(root, id, oci::monitor(&options))
        }
        Command::Machine { id, connected } => or_left(root, id, oci::machine(root, id, *connected)),
        Command::Join { id, document, console_socket } => {
            oci::join(root, id, document, console_socket.as_deref())
        }
    }
}

/// What became of a container's monitor or machine. Where it fails, the command that waits for it says why.
fn or_left(root: &Path, id: &str, end: anyhow::Result<u8>) -> anyhow::Result<u8> {
    match end {
        Err(error) if oci::leave_failure(root, id, &format!("{error:#}")) => Ok(FAILED),
        end => end,
    }
}

fn run_process(root: &Path, exec: &Exec) -> anyhow::Result<u8> {
    let folder = Folder::open(root, &exec.id)?;
    let document = exec.process.as_deref().map(oci::config::read).transpose()?;
    let words = Words {
        args: exec.args.clone(),
        cwd: exec.cwd.clone(),
        env: exec.env.clone(),
        user: exec.user,
        terminal: exec.tty,
    };
    let process = oci::process(&folder, document, words)?;
    if exec.detach || exec.console_socket.is_some() {
        let child = oci::detached(root, &exec.id, &process, exec.console_socket.as_deref())?;
        exec.pid_file.as_deref().map_or(Ok(()), |path| oci::write_pid(path, child.id() as i32))?;
        return match exec.detach {
            true => Ok(DONE),
            false => oci::status(child),
        };
    }
    exec.pid_file.as_deref().map_or(Ok(()), |path| oci::write_pid(path, std::process::id() as i32))?;
    oci::carry(&folder, process)
}

impl Create {
    fn options<'a>(&'a self, root: &'a Path, foreground: bool) -> CreateOptions<'a> {
        CreateOptions {
            root,
            id: &self.id,
            bundle: &self.bundle,
            pid_file: self.pid_file.as_deref(),
            console: self.console_socket.as_deref(),
            foreground,
        }
    }
}

/// Prints a line or several.
fn print(text: impl std::fmt::Display) -> anyhow::Result<u8> {
    messages::print(format!("{text}\n"), "the answer").map(|()| DONE)
}
