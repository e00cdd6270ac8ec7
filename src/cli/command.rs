//! The options of `kite run -- COMMAND`.
#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "what is in brackets in the help of an option may be left out"
)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::{ArgGroup, Args};

use crate::spec::command::{CommandSpec, FailOnKtap, ImageSpec, RootSpec, UserSpec, VariableSpec};
use crate::spec::device::ShareSpec;
use crate::spec::duration;

/// What to run in the guest, and on which files.
#[derive(Args, Debug)]
#[command(
    next_help_heading = "Options for a command",
    group = ArgGroup::new("subject").args(["command", "image"]).multiple(true)
)]
pub struct CommandOptions {
    /// Run this in the guest instead of a boot, and end with its exit status; with --image, in place of the image's own
    /// command
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Run in the image of a container, on a layer of memory: a folder with an OCI layout, DIR[:TAG]; a tar of one, or one
    /// of `docker save` or `podman save`, FILE[:TAG]; or a name in a registry, [HOST[:PORT]/]NAME[:TAG|@DIGEST]
    #[arg(long, value_name = "IMAGE", conflicts_with = "root")]
    pub image: Option<String>,
    /// Run this program in place of the image's entrypoint, and none of its words; with '' the command alone
    #[arg(long, value_name = "PROGRAM", requires = "image")]
    pub entrypoint: Option<String>,
    /// Trust the image's registry without TLS, or with any certificate; one on this machine may do without TLS anyway
    #[arg(long, requires = "image")]
    pub insecure_registry: bool,
    /// Ask the image's registry again, although there is an image of that name
    #[arg(long, requires = "image")]
    pub pull: bool,
    /// The guest's root folder: a folder of this host's, which never changes, as the guest writes to memory; or `disk`,
    /// the file system on the first --disk [default: /]
    #[arg(long, value_name = "DIR|disk", requires = "subject", value_parser = ValueParser::new(RootSpec::parse))]
    pub root: Option<RootSpec>,
    /// Show the guest a folder, DIR[:GUESTDIR][:rw[,suid]]; with rw it may change it, with suid also leave programs in it
    /// that run as their owner; may be given more than once
    #[arg(long = "share", value_name = "SHARE", requires = "subject", value_parser = ValueParser::new(ShareSpec::parse))]
    pub shares: Vec<ShareSpec>,
    /// The folder to start in [default: this one; with --root, / if the guest does not have it; with --image, the image's,
    /// which is made if need be]
    #[arg(long, value_name = "DIR", requires = "subject")]
    pub cwd: Option<PathBuf>,
    /// Set a variable for the command, NAME=VALUE, or pass on this host's, NAME; with --image, beside the image's; may be
    /// given more than once
    #[arg(long = "env", value_name = "VARIABLE", requires = "subject", value_parser = ValueParser::new(VariableSpec::parse))]
    pub env: Vec<VariableSpec>,
    /// Pass on no variable of this host's but TERM and those that --env names; with --image, none is passed on
    /// anyway
    #[arg(long, requires = "subject")]
    pub clear_env: bool,
    /// Who runs the command, USER[:GROUP], names of the guest's or numbers [default: the same ids as here; with --image,
    /// the image's, or else root]
    #[arg(long, value_name = "USER", requires = "subject", value_parser = ValueParser::new(UserSpec::parse))]
    pub user: Option<UserSpec>,
    /// End a guest that takes longer, such as 90, 5m or 1h30m, with exit code 124
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "subject", value_parser = ValueParser::new(duration::parse))]
    pub timeout: Option<Duration>,
    /// End a guest that neither runs nor prints for so long, with exit code 124
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "subject", value_parser = ValueParser::new(duration::parse))]
    pub idle_timeout: Option<Duration>,
    /// Show the kernel's messages, on standard error, and what of the sandbox this host does not allow
    #[arg(short, long)]
    pub verbose: bool,
    /// Write what came of it as a JUnit file; what the command prints as KTAP becomes a case each
    #[arg(long, value_name = "FILE", requires = "subject")]
    pub junit: Option<PathBuf>,
    /// Whether a failed case of the command's KTAP or TAP makes it fail (exit code 1): auto, where results are written
    /// (--junit, GitHub's annotations); always, also if it prints none at all; never
    #[arg(
        long,
        value_name = "WHEN",
        requires = "subject",
        value_enum,
        hide_possible_values = true,
        default_value_t
    )]
    pub fail_on_ktap: FailOnKtap,
    /// Keep the kernel's messages in this file
    #[arg(long, value_name = "FILE", requires = "subject")]
    pub kernel_log: Option<PathBuf>,
}

impl CommandOptions {
    /// Whether a command is run: one that is named, or an image's own.
    pub fn has_command(&self) -> bool {
        !self.command.is_empty() || self.image.is_some()
    }

    fn image(&self) -> Option<ImageSpec> {
        self.image.as_deref().map(|reference| ImageSpec {
            entrypoint: self.entrypoint.clone(),
            insecure_registry: self.insecure_registry,
            pull: self.pull,
            ..ImageSpec::new(reference)
        })
    }

    /// The command, if there is one.
    pub(super) fn spec(&self) -> Option<CommandSpec> {
        self.has_command().then(|| CommandSpec {
            argv: self.command.clone(),
            root: self.image().map(RootSpec::Image).or_else(|| self.root.clone()),
            cwd: self.cwd.clone(),
            env: self.env.clone(),
            clear_env: self.clear_env,
            user: self.user.clone(),
            timeout: self.timeout,
            idle_timeout: self.idle_timeout,
            junit: self.junit.clone(),
            fail_on_ktap: self.fail_on_ktap,
            kernel_log: self.kernel_log.clone(),
            container: None,
        })
    }
}
