//! Defaults of `kite run`'s options, in files: `kite.toml` of the current folder or the nearest above it, and the user's
//! own. A key is an option's long name.
//!
//! A project's file may come with a repository that another person has written. It sets what a guest is, and nothing that
//! widens what a guest reaches or writes on this host.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Parser};
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use toml::{Spanned, Value};

use super::{Cli, RunOptions, refusal};
use crate::spec::command::{ImageSpec, RootSpec};
use crate::spec::machine::KERNEL_VARIABLE;
use crate::spec::vnc::Address;

mod project;

/// What `kite run --help` says of it.
pub(super) const HELP: &str = "\
Defaults:
  Options have defaults in kite.toml of this folder, or the nearest above it, and in
  $XDG_CONFIG_HOME/kite/config.toml (~/.config/kite/config.toml), each by its long name:
    kernel = \"arch/x86/boot/bzImage\"    # paths are from the file's folder
    memory = \"2G\"
    module = [\"virtio_net\"]
    no-rng = true
  The command line comes first, then $KITE_KERNEL and $KITE_SANDBOX, then kite.toml, then the
  user's. --no-config reads neither file. As kite.toml may come with somebody else's sources, it
  sets nothing by which a guest reaches or writes more of this host: no network, disk, port,
  sandbox, group, limit or file to write; and folders lie in its own and are read-only.";

const PROJECT: &str = "kite.toml";
const USER: &str = "kite/config.toml";
/// The options that a `kite run` of a command refuses: as defaults they are for boots.
const NOT_WITH_COMMAND: [&str; 5] = ["console", "initrd", "no-acpi", "on-reboot", "test-devices"];
/// The options that no file sets.
const NOT_IN_FILES: [&str; 5] = ["help", "id", "no-config", "print-spec", "spec"];
/// How long a file may be, in bytes.
const LONGEST: u64 = 64 << 10;

/// An option that a file sets.
#[derive(Debug)]
struct Setting {
    name: String,
    words: Vec<OsString>,
    /// The file and the line.
    at: String,
    folder: PathBuf,
}

/// A file of defaults.
struct Source {
    path: PathBuf,
    is_project: bool,
}

/// The options of `arguments`, a `kite run` whose own options are `given`, with the defaults of files; nothing if there
/// are none.
///
/// # Errors
/// A file is wrong, in one line that names it.
pub(super) fn complete(
    arguments: &[OsString],
    given: &ArgMatches,
) -> Result<Option<Box<RunOptions>>, String> {
    let sources = sources();
    if sources.is_empty() {
        return Ok(None);
    }
    let mut command = Cli::command();
    command.build();
    let run = command.find_subcommand("run").ok_or("there is no `kite run`")?;
    let has_command = given.contains_id("command") || given.contains_id("image");
    let mut chosen: Vec<Setting> = Vec::new();
    for source in &sources {
        for setting in settings(source, run)? {
            let is_taken = chosen.iter().any(|it| it.name == setting.name);
            let is_for_boot = has_command && NOT_WITH_COMMAND.contains(&&*setting.name);
            if !is_taken && !is_for_boot && !is_given(&setting.name, run, given) {
                chosen.push(setting);
            }
        }
    }
    chosen.sort_by(|one, other| one.name.cmp(&other.name));
    merge(arguments, chosen).map(Some)
}

/// Whether the command line or the environment sets an option.
fn is_given(name: &str, run: &Command, given: &ArgMatches) -> bool {
    let id = run.get_arguments().find(|it| it.get_long() == Some(name)).map(|it| it.get_id().as_str());
    let by_line = id.is_some_and(|id| given.value_source(id) == Some(ValueSource::CommandLine));
    let variable = match name {
        "kernel" => env::var_os(KERNEL_VARIABLE),
        "sandbox" => env::var_os(super::SANDBOX_VARIABLE),
        _ => None,
    };
    by_line || variable.is_some_and(|value| !value.is_empty())
}

/// Adds settings to a command line. What is for a command is left out where there is none, and what the command line
/// rules out, too.
fn merge(arguments: &[OsString], chosen: Vec<Setting>) -> Result<Box<RunOptions>, String> {
    let (begin, rest) = arguments.split_at(arguments.len().min(2));
    let line = |words: &[OsString]| [begin, words, rest].concat();
    let (mut words, mut used) = (Vec::new(), Vec::new());
    for setting in chosen {
        let candidate = [&words[..], &setting.words].concat();
        match Cli::try_parse_from(line(&candidate)) {
            Ok(_) => {
                words = candidate;
                used.push(setting);
            }
            Err(error) if needs_more(&error) => {}
            Err(error) => {
                let alone = line(&setting.words);
                if Cli::try_parse_from(&alone).is_ok() {
                    return Err(format!("{}: {}", setting.at, refusal::why(&error, &line(&candidate))));
                }
            }
        }
    }
    let all = line(&words);
    let parsed = Cli::try_parse_from(&all).map_err(|error| refusal::why(&error, &all))?;
    let super::Command::Run(mut options) = parsed.command else {
        return Err("this is no `kite run`".to_owned());
    };
    for setting in &used {
        rebase(&mut options, &setting.name, &setting.folder);
        if options.command.verbose {
            super::complain(&format!("{}: {}", setting.at, setting.name));
        }
    }
    Ok(options)
}

fn needs_more(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::MissingRequiredArgument
}

/// The files that there are, the nearest first.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    let here = env::current_dir().unwrap_or_default();
    let near =
        here.ancestors().map(|folder| folder.join(PROJECT)).find(|path| path.is_file() || path.is_symlink());
    match near {
        Some(path) if !path.is_file() => {
            super::complain(&format!("{}: is a link to no file, and is not read", path.display()));
        }
        Some(path) if is_ours(&path) => sources.push(Source { path, is_project: true }),
        Some(path) => super::complain(&format!("{}: is another user's, and is not read", path.display())),
        None => {}
    }
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    let user = config.map(|folder| folder.join(USER)).filter(|path| path.is_file());
    sources.extend(user.map(|path| Source { path, is_project: false }));
    sources
}

/// Whether a file is of this user, of root, or of the user who has become root by sudo(8); and the link that leads to it.
fn is_ours(path: &Path) -> bool {
    let owners = [path.symlink_metadata(), path.metadata()];
    owners.into_iter().all(|metadata| metadata.is_ok_and(|it| is_trusted(it.uid())))
}

fn is_trusted(user: u32) -> bool {
    let me = geteuid().as_raw();
    let before = env::var("SUDO_UID").ok().and_then(|id| id.parse().ok()).filter(|_| me == 0);
    user == me || user == 0 || before == Some(user)
}

/// What a file sets, each value checked.
fn settings(source: &Source, run: &Command) -> Result<Vec<Setting>, String> {
    let path = source.path.display();
    let text = read(source).map_err(|why| format!("cannot read {path}: {why}"))?;
    let line = |offset: usize| text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
    let table: BTreeMap<String, Spanned<Value>> = toml::from_str(&text).map_err(|error| {
        let words: Vec<_> = error.message().split_whitespace().collect();
        let at = error.span().map_or_else(|| path.to_string(), |span| format!("{path}:{}", line(span.start)));
        format!("{at}: {}", words.join(" "))
    })?;
    let folder = source.path.parent().unwrap_or(Path::new("/"));
    let setting = |(name, value): (String, Spanned<Value>)| {
        let at = format!("{path}:{}", line(value.span().start));
        let words = checked(&name, value.get_ref(), run)
            .and_then(|words| match source.is_project {
                true => project::check(&name, &words, folder).map(|()| words),
                false => Ok(words),
            })
            .map_err(|why| format!("{at}: {why}"))?;
        Ok(Setting { name, words, at, folder: folder.to_owned() })
    };
    table.into_iter().map(setting).collect()
}

fn read(source: &Source) -> Result<String, String> {
    let open = || -> std::io::Result<Vec<u8>> {
        // What has become a pipe meanwhile is not waited for.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&source.path)?;
        // Another file may have taken the place of the one that was looked at.
        if source.is_project && !is_trusted(file.metadata()?.uid()) {
            return Err(std::io::Error::other("it is another user's"));
        }
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = open().map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("it is longer than {} KiB", LONGEST >> 10));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

/// A setting as words of a command line.
fn checked(name: &str, value: &Value, run: &Command) -> Result<Vec<OsString>, String> {
    let mut options = run.get_arguments();
    let known = options.find(|it| it.get_long() == Some(name) && !NOT_IN_FILES.contains(&name));
    let Some(option) = known else { return Err(unknown(name)) };
    let words = words(name, value, option)?;
    let line: Vec<_> = ["kite", "run"].map(OsString::from).into_iter().chain(words.iter().cloned()).collect();
    match Cli::try_parse_from(&line) {
        Err(error) if !needs_more(&error) => Err(refusal::why(&error, &line)),
        _ => Ok(words),
    }
}

fn unknown(name: &str) -> String {
    let line = ["kite".to_owned(), "run".to_owned(), format!("--{name}")].map(OsString::from);
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match Cli::try_parse_from(&line) {
        Err(error) if plain && !NOT_IN_FILES.contains(&name) => refusal::why(&error, &line),
        _ => format!("there is no option '{name}' to set; keys are long names of `kite run`'s options"),
    }
}

fn words(name: &str, value: &Value, option: &Arg) -> Result<Vec<OsString>, String> {
    let is_flag = matches!(option.get_action(), ArgAction::SetTrue);
    let is_list = matches!(option.get_action(), ArgAction::Append);
    let may_be_bare = option.get_num_args().is_some_and(|count| count.min_values() == 0);
    let word = |value: &Value| match value {
        Value::String(text) => Some(OsString::from(format!("--{name}={text}"))),
        Value::Integer(number) => Some(OsString::from(format!("--{name}={number}"))),
        _ => None,
    };
    let words = match value {
        Value::Boolean(on) if is_flag || may_be_bare => {
            return Ok(on.then(|| format!("--{name}").into()).into_iter().collect());
        }
        Value::Array(list) if is_list => list.iter().map(word).collect(),
        value if !is_flag => word(value).map(|word| vec![word]),
        _ => None,
    };
    words.ok_or_else(|| match (is_flag, is_list) {
        (true, _) => format!("{name} is true or false"),
        (false, true) => format!("{name} is a string, or a list of strings"),
        (false, false) => format!("{name} is a string or a whole number"),
    })
}

/// Has a path that a file names begin in the file's folder.
fn rebase(options: &mut RunOptions, name: &str, folder: &Path) {
    let join = |path: &mut PathBuf| *path = folder.join(&*path);
    let (command, measure) = (&mut options.command, &mut options.measure);
    match name {
        // It may be a version, too.
        "kernel" => {
            let is_file =
                |path: &&mut PathBuf| path.components().count() > 1 || folder.join(&**path).exists();
            options.kernel.as_mut().filter(is_file).map(join);
        }
        "initrd" => drop(options.initrd.as_mut().map(join)),
        "modules" => drop(options.modules.as_mut().map(join)),
        "disk" => options.disks.iter_mut().for_each(|disk| join(&mut disk.path)),
        "port" => options.ports.iter_mut().for_each(|port| join(&mut port.path)),
        "vnc" => {
            if let Some(Address::Unix(path)) = &mut options.vnc {
                join(path);
            }
        }
        "vnc-password-file" => drop(options.vnc_password_file.as_mut().map(join)),
        "novnc" => drop(options.novnc.as_mut().map(join)),
        "share" => command.shares.iter_mut().for_each(|share| join(&mut share.folder)),
        "root" => {
            if let Some(RootSpec::Folder(path)) = &mut command.root {
                join(path);
            }
        }
        "image" => {
            if let Some(reference) = &mut command.image {
                ImageSpec::rebase(reference, folder);
            }
        }
        "junit" => drop(command.junit.as_mut().map(join)),
        "kernel-log" => drop(command.kernel_log.as_mut().map(join)),
        "stats" => drop(measure.stats.as_mut().and_then(Option::as_mut).map(join)),
        "trace" => drop(measure.trace.as_mut().map(join)),
        "screenshot-on-failure" => drop(measure.screenshot_on_failure.as_mut().map(join)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::command::VariableSpec;

    fn of(text: &str, is_project: bool, arguments: &str) -> Result<Box<RunOptions>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PROJECT);
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(&path, text).unwrap();
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
        let given = Cli::command().try_get_matches_from(&arguments).unwrap();
        let given = given.subcommand_matches("run").unwrap();
        let settings = settings(&Source { path, is_project }, run)
            .map_err(|why| why.replace(&format!("{}/", folder.path().display()), ""))?;
        let chosen = settings.into_iter().filter(|setting| !is_given(&setting.name, run, given)).collect();
        merge(&arguments, chosen)
    }

    #[test]
    fn every_option_may_be_set_by_its_long_name() {
        let text = "cpus = 3\nmemory = '2G'\nno-rng = true\nno-balloon = false\nmodule = ['a', 'b']\n\
                    append = 'quiet x=1'\nstats = true\nstats-interval = '5s'\nenv = ['A=b']\ntimeout = '5m'\n";
        let options = of(text, true, "kite run --cpus 2 -- true").unwrap();
        assert_eq!((options.cpus, options.memory), (2, Some(2 << 30)));
        assert!(options.no_rng && !options.no_balloon);
        assert_eq!(options.more_modules, ["a", "b"]);
        assert_eq!(options.append.as_deref(), Some("quiet x=1"));
        assert_eq!((&options.measure.stats, options.measure.stats_interval.is_some()), (&Some(None), true));
        assert_eq!(options.command.env, [VariableSpec::parse("A=b").unwrap()]);
        assert!(options.command.timeout.is_some());
    }

    #[test]
    fn what_is_for_a_command_is_nothing_to_a_boot() {
        let options = of("timeout = '5m'\nshare = '.'\nmemory = '2G'\n", true, "kite run").unwrap();
        assert!(options.command.timeout.is_none() && options.command.shares.is_empty());
        assert_eq!(options.memory, Some(2 << 30));
    }

    #[test]
    fn the_command_line_rules_out_what_does_not_go_with_it() {
        let options = of("modules = 'm'\n", false, "kite run --initrd x").unwrap();
        assert!(options.modules.is_none());
        let error = of("initrd = 'x'\nmodules = 'm'\n", false, "kite run").unwrap_err();
        assert!(error.contains("kite.toml:2: ") && error.contains("--initrd"), "{error}");
    }

    #[test]
    fn paths_are_from_the_file_s_folder() {
        let text =
            "kernel = 'a/b'\nshare = ['data:/mnt:rw']\njunit = 'x.xml'\ndisk = 'path=/dev/x,ephemeral'\n";
        let options = of(text, false, "kite run -- true").unwrap();
        assert!(options.kernel.unwrap().is_absolute());
        assert!(options.command.shares[0].folder.is_absolute() && options.command.shares[0].writable);
        assert!(options.command.junit.unwrap().is_absolute());
        assert_eq!(options.disks[0].path, Path::new("/dev/x"));
        assert_eq!(of("kernel = '6.12'\n", false, "kite run").unwrap().kernel, Some("6.12".into()));
    }

    #[test]
    fn another_user_s_file_is_not_read_whatever_it_was_when_it_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PROJECT);
        std::fs::write(&path, "memory = '2G'\n").unwrap();
        if !geteuid().is_root() {
            return println!("skipped: another_user_s_file_is_not_read: it takes root to give a file away");
        }
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        assert!(!is_ours(&path));
        let source = |is_project| Source { path: path.clone(), is_project };
        assert_eq!(read(&source(true)), Err("it is another user's".to_owned()));
        assert!(read(&source(false)).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() {
        for (text, expected) in [
            ("memroy = '1G'\n", "kite.toml:1: there is no option '--memroy'; do you mean '--memory'?"),
            ("\n\nmemory = '512'\n", "kite.toml:3: invalid value '512' for '--memory <SIZE>'"),
            (
                "cpus = 0\n",
                "kite.toml:1: invalid value '0' for '--cpus <N>': it is a whole number, at least 1",
            ),
            ("cpus = true\n", "kite.toml:1: cpus is a string or a whole number"),
            ("no-rng = 'yes'\n", "kite.toml:1: no-rng is true or false"),
            ("module = [1.5]\n", "kite.toml:1: module is a string, or a list of strings"),
            ("memory = ['1G']\n", "kite.toml:1: memory is a string or a whole number"),
            ("timeout = 'soon'\n", "kite.toml:1: invalid value 'soon' for '--timeout"),
            ("[run]\nmemory = '1G'\n", "kite.toml:1: there is no option '--run'"),
            ("no-config = true\n", "kite.toml:1: there is no option 'no-config' to set"),
            ("help = true\n", "there is no option 'help' to set"),
            ("print-spec = true\n", "there is no option 'print-spec' to set"),
            ("spec = 'x'\n", "there is no option 'spec' to set"),
            ("command = ['true']\n", "kite.toml:1: there is no option '--command'"),
            ("'memory=1G' = true\n", "there is no option 'memory=1G' to set"),
            ("a = 1\n= 2\n", "kite.toml:2: "),
            ("cpus = 1\ncpus = 2\n", "kite.toml:2: duplicate key"),
        ] {
            for is_project in [true, false] {
                let error = of(text, is_project, "kite run").unwrap_err();
                assert!(error.starts_with(expected) || error.contains(expected), "{text}: {error}");
                assert!(error.starts_with("kite.toml:"), "{error}");
            }
        }
    }
}
