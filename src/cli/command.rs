//! The options of `kite run -- COMMAND`.
#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "what is in brackets in the help of an option may be left out"
)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::ValueParser;

use crate::observe::results::FailOnKtap;
use crate::spec::duration;

/// What to run in the guest, and on which files.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options for a command")]
pub struct CommandOptions {
    /// Run this in the guest instead of a boot, and end with its exit status
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// The guest's root folder: a folder of this host's, which never changes, as the guest writes to memory; or `disk`,
    /// the file system on the first --disk [default: /]
    #[arg(long, value_name = "DIR|disk", requires = "command", value_parser = ValueParser::new(Root::parse))]
    pub root: Option<Root>,
    /// Show the guest a folder, DIR[:GUESTDIR][:rw[,suid]]; with rw it may change it, with suid also leave programs in it
    /// that run as their owner; may be given more than once
    #[arg(long = "share", value_name = "SHARE", requires = "command", value_parser = ValueParser::new(ShareSpec::parse))]
    pub shares: Vec<ShareSpec>,
    /// The folder to start in [default: this one; with --root, / if the guest does not have it]
    #[arg(long, value_name = "DIR", requires = "command")]
    pub cwd: Option<PathBuf>,
    /// Set a variable for the command, NAME=VALUE, or pass on this host's, NAME; may be given more than once
    #[arg(long = "env", value_name = "VARIABLE", requires = "command", value_parser = ValueParser::new(variable))]
    pub env: Vec<(String, Option<String>)>,
    /// Pass on no variable of this host's but TERM and those that --env names
    #[arg(long, requires = "command")]
    pub clear_env: bool,
    /// Who runs the command, USER[:GROUP], names of the guest's or numbers [default: the same ids as here]
    #[arg(long, value_name = "USER", requires = "command", value_parser = ValueParser::new(user))]
    pub user: Option<(String, Option<String>)>,
    /// End a guest that takes longer, such as 90, 5m or 1h30m, with exit code 124
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "command", value_parser = ValueParser::new(duration::parse))]
    pub timeout: Option<Duration>,
    /// End a guest that neither runs nor prints for so long, with exit code 124
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "command", value_parser = ValueParser::new(duration::parse))]
    pub idle_timeout: Option<Duration>,
    /// Show the kernel's messages, on standard error, and what of the sandbox this host does not allow
    #[arg(short, long)]
    pub verbose: bool,
    /// Write what came of it as a JUnit file; what the command prints as KTAP becomes a case each
    #[arg(long, value_name = "FILE", requires = "command")]
    pub junit: Option<PathBuf>,
    /// Whether a failed case of the command's KTAP or TAP makes it fail (exit code 1): auto, where results are written
    /// (--junit, GitHub's annotations); always, also if it prints none at all; never
    #[arg(
        long,
        value_name = "WHEN",
        requires = "command",
        value_enum,
        hide_possible_values = true,
        default_value_t
    )]
    pub fail_on_ktap: FailOnKtap,
    /// Keep the kernel's messages in this file
    #[arg(long, value_name = "FILE", requires = "command")]
    pub kernel_log: Option<PathBuf>,
}

impl CommandOptions {
    /// Whether somebody wants to see all that the kernel says.
    pub fn shows_kernel(&self) -> bool {
        self.verbose || self.kernel_log.is_some()
    }
}

/// The guest's root folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A folder of the host's.
    Folder(PathBuf),
    /// The first disk.
    Disk,
}

impl Root {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it names no folder".to_owned()),
            "disk" => Ok(Self::Disk),
            folder => Ok(Self::Folder(folder.into())),
        }
    }
}

/// The value of `--share`: `DIR[:GUESTDIR][:rw[,suid]]`, where GUESTDIR begins with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// The host's folder.
    pub folder: PathBuf,
    /// Where the guest sees it, if not at the same place.
    pub at: Option<PathBuf>,
    /// Whether the guest may change it.
    pub writable: bool,
    /// Whether it may leave set-user-ID programs in it.
    pub suid: bool,
}

impl ShareSpec {
    /// Reads the value of `--share`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const ENDS: [(&str, bool, bool); 4] = [
            (":rw,suid", true, true),
            (":rw,nosuid", true, false),
            (":rw", true, false),
            (":ro", false, false),
        ];
        let end = ENDS
            .iter()
            .find_map(|(end, writable, suid)| text.strip_suffix(end).map(|rest| (rest, *writable, *suid)));
        let (rest, writable, suid) = end.unwrap_or((text, false, false));
        let (folder, at) = match rest.rfind(":/") {
            Some(colon) => (&rest[..colon], Some(PathBuf::from(&rest[colon + 1..]))),
            None => (rest, None),
        };
        if let (None, Some((before, word))) = (&at, rest.rsplit_once(':'))
            && !before.is_empty()
            && !Path::new(rest).exists()
        {
            return Err(format!(
                "'{word}' is neither rw nor ro, nor a folder of the guest's, which begins with /"
            ));
        }
        if folder.is_empty() {
            return Err("a share is DIR[:GUESTDIR][:rw[,suid]], such as .:rw or out:/mnt:rw".to_owned());
        }
        Ok(Self { folder: folder.into(), at, writable, suid })
    }
}

fn variable(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name.is_empty() {
        true => Err("a variable is NAME=VALUE or NAME".to_owned()),
        false => Ok((name.to_owned(), value)),
    }
}

fn user(text: &str) -> Result<(String, Option<String>), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let fits = |name: &str| !name.is_empty() && !name.contains([':', '\n']);
    match fits(user) && group.is_none_or(fits) {
        true => Ok((user.to_owned(), group.map(str::to_owned))),
        false => Err("a user is USER or USER:GROUP, names or numbers".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(folder: &str, at: Option<&str>, writable: bool) -> Result<ShareSpec, String> {
        Ok(ShareSpec { folder: folder.into(), at: at.map(Into::into), writable, suid: false })
    }

    #[test]
    fn a_share_may_say_where_and_whether_it_is_written() {
        assert_eq!(ShareSpec::parse("/a"), share("/a", None, false));
        assert_eq!(ShareSpec::parse(".:rw"), share(".", None, true));
        assert_eq!(ShareSpec::parse("a:/b"), share("a", Some("/b"), false));
        assert_eq!(ShareSpec::parse("a:x:/b/c:rw"), share("a:x", Some("/b/c"), true));
        assert_eq!(ShareSpec::parse("a:/b:ro"), share("a", Some("/b"), false));
        for text in [".:rx", ".:rW", ".:mnt", ".:mnt:rw", ".:r", ".:"] {
            assert!(ShareSpec::parse(text).unwrap_err().contains("neither rw nor ro"), "{text}");
        }
        assert_eq!(ShareSpec::parse("a:/b:rw,nosuid"), share("a", Some("/b"), true));
        let suid = share("a", Some("/b"), true).map(|share| ShareSpec { suid: true, ..share });
        assert_eq!(ShareSpec::parse("a:/b:rw,suid"), suid);
        assert!(ShareSpec::parse("").is_err() && ShareSpec::parse(":rw").is_err());
    }

    #[test]
    fn a_user_may_have_a_group() {
        assert_eq!(user("ann"), Ok(("ann".to_owned(), None)));
        assert_eq!(user("0:5"), Ok(("0".to_owned(), Some("5".to_owned()))));
        for text in ["", ":", "a:", ":b", "a:b:c"] {
            assert!(user(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_has_a_name() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), Some("b=c".to_owned()))));
        assert_eq!(variable("A"), Ok(("A".to_owned(), None)));
        assert!(variable("=b").is_err() && variable("").is_err());
    }
}
