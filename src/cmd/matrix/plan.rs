//! The matrix file: read, checked, and made into the runs that it stands for.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer};

use crate::observe::results::FailOnKtap;
use crate::spec::command::ImageSpec;
use crate::spec::duration;
use crate::spec::text::{OneOrList, one_or_list};

/// How long a matrix file may be, in bytes.
const LONGEST: u64 = 1 << 20;
/// How long a name may be, in bytes.
const LONGEST_NAME: usize = 64;

/// The options of `kite run` that a matrix gives it itself.
mod options {
    pub(super) const COMMAND: &str = "run";
    pub(super) const KERNEL: &str = "--kernel";
    pub(super) const MODULES: &str = "--modules";
    pub(super) const TIMEOUT: &str = "--timeout";
    pub(super) const CPUS: &str = "--cpus";
    pub(super) const IMAGE: &str = "--image";
    /// What else a list of options must not hold: every run would write the one file.
    pub(super) const JUNIT: &str = "--junit";
    /// See [`JUNIT`].
    pub(super) const SCREENSHOT: &str = "--screenshot-on-failure";
    pub(super) const SCREEN: &str = "--screen";
    /// A matrix says all there is to say of its runs.
    pub(super) const NO_CONFIG: &str = "--no-config";
    /// What the matrix decides itself.
    pub(super) const FAIL_ON_KTAP: &str = "--fail-on-ktap";
    pub(super) const END: &str = "--";
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    jobs: Option<u16>,
    timeout: Option<String>,
    #[serde(default, rename = "fail-on-ktap")]
    fail_on_ktap: FailOnKtap,
    /// What commands run in that name no image themselves.
    image: Option<String>,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default)]
    kernel: Vec<Kernel>,
    #[serde(default)]
    command: Vec<Command>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kernel {
    name: String,
    path: PathBuf,
    modules: Option<PathBuf>,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    name: String,
    /// With an image it may be the image's own.
    #[serde(default)]
    run: Words,
    image: Option<String>,
    timeout: Option<String>,
    #[serde(rename = "fail-on-ktap")]
    fail_on_ktap: Option<FailOnKtap>,
    #[serde(default)]
    options: Vec<String>,
}

/// A command and its arguments; from a string, what makes a shell run that.
#[derive(Default)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match one_or_list(deserializer, "a list of strings, or a string for sh -c")? {
            // No words at all are an error of their own, found later.
            OneOrList::One(script) if script.trim().is_empty() => Vec::new(),
            OneOrList::One(script) => vec!["sh".to_owned(), "-c".to_owned(), script],
            OneOrList::List(words) => words,
        }))
    }
}

/// Whether kite takes these arguments, or in one line why not.
pub type Check = fn(&[OsString]) -> Result<(), String>;

/// The runs of a matrix.
#[derive(Debug)]
pub(super) struct Plan {
    /// How many guests run at a time.
    pub jobs: u16,
    pub kernels: Vec<String>,
    pub commands: Vec<String>,
    /// All commands on the first kernel, then on the next.
    pub cells: Vec<Cell>,
}

/// One run.
#[derive(Debug)]
pub(super) struct Cell {
    pub kernel: String,
    pub command: String,
    /// kite's arguments.
    pub arguments: Vec<OsString>,
    /// When kite stops it.
    pub timeout: Option<Duration>,
    /// Whether failed cases make it fail.
    pub fail_on_ktap: FailOnKtap,
    /// Where what was on its screen goes if it fails.
    pub picture: Option<PathBuf>,
}

impl Cell {
    /// What people know it by.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.kernel, self.command)
    }
}

impl Plan {
    /// Reads and checks a file, its options by `check`. Its commands run in `image`, if there is one, unless they name
    /// another.
    pub(super) fn read(path: &Path, image: Option<&str>, check: Check) -> anyhow::Result<Self> {
        let text = read_text(path)?;
        let mut matrix: Matrix = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let at =
                line.map_or_else(|| path.display().to_string(), |line| format!("{}:{line}", path.display()));
            let what: Vec<_> = error.message().split_whitespace().collect();
            anyhow::anyhow!("{at}: {}", what.join(" "))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let of_commands = matrix.command.iter_mut().filter_map(|command| command.image.as_mut());
        of_commands.chain(&mut matrix.image).for_each(|image| ImageSpec::rebase(image, folder));
        matrix.image = image.map(str::to_owned).or(matrix.image);
        Self::of(&matrix, folder, check).with_context(|| path.display().to_string())
    }

    fn of(matrix: &Matrix, folder: &Path, check: Check) -> anyhow::Result<Self> {
        ensure!(!matrix.kernel.is_empty(), "there is no [[kernel]]");
        ensure!(!matrix.command.is_empty(), "there is no [[command]]");
        let kernels: Vec<_> = matrix.kernel.iter().map(|kernel| kernel.name.clone()).collect();
        let commands: Vec<_> = matrix.command.iter().map(|command| command.name.clone()).collect();
        check_names("kernel", &kernels)?;
        check_names("command", &commands)?;
        check_options(&matrix.options).context("options")?;
        let timeout = timeout(matrix.timeout.as_deref())?;
        let mut cells = Vec::new();
        for kernel in &matrix.kernel {
            let of_kernel = kernel.arguments(folder).with_context(|| format!("kernel {}", kernel.name))?;
            for command in &matrix.command {
                let of_command = command
                    .cell(kernel, timeout, matrix.fail_on_ktap)
                    .with_context(|| format!("command {}", command.name))?;
                let (mut cell, text) = of_command;
                let mut arguments = of_kernel.clone();
                arguments.push(options::NO_CONFIG.into());
                let text = text.or(matrix.timeout.as_deref());
                arguments.extend(text.map(|text| format!("{}={text}", options::TIMEOUT).into()));
                let lists = [&matrix.options, &kernel.options, &command.options];
                arguments.extend(lists.into_iter().flatten().map(OsString::from));
                let image = command.image.as_ref().or(matrix.image.as_ref());
                arguments.extend(image.map(|image| format!("{}={image}", options::IMAGE).into()));
                let has_command = !command.run.0.is_empty();
                ensure!(has_command || image.is_some(), "command {}: run is empty", command.name);
                arguments.extend(has_command.then(|| options::END.into()));
                arguments.extend(command.run.0.iter().map(OsString::from));
                cell.arguments = arguments;
                cells.push(cell);
            }
        }
        for cell in &cells {
            let refused =
                |why| anyhow::anyhow!("kernel {}, command {}: options: {why}", cell.kernel, cell.command);
            check(&cell.arguments).map_err(refused)?;
        }
        Ok(Self { jobs: matrix.jobs()?, kernels, commands, cells })
    }
}

impl Plan {
    /// Has each run that has a screen and fails write what was on it to the file that `place` names.
    ///
    /// # Errors
    /// No run has a screen.
    pub(super) fn take_pictures(&mut self, place: impl Fn(&str, &str) -> PathBuf) -> anyhow::Result<()> {
        let mut any = false;
        for cell in &mut self.cells {
            let end = cell.arguments.iter().position(|word| word == options::END);
            let own = &cell.arguments[..end.unwrap_or(cell.arguments.len())];
            let is_screen = |word: &OsString| {
                let rest = word.to_str().and_then(|word| word.strip_prefix(options::SCREEN));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            };
            if own.iter().any(is_screen) {
                let path = place(&cell.kernel, &cell.command);
                // The first word is the command.
                cell.arguments.insert(1, assigned(options::SCREENSHOT, &path));
                cell.picture = Some(path);
                any = true;
            }
        }
        ensure!(any, "no run has a screen: add --screen to options");
        Ok(())
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(what)?;
    file.take(LONGEST + 1).read_to_end(&mut bytes).with_context(what)?;
    ensure!(bytes.len() as u64 <= LONGEST, "{}: is longer than a matrix may be, 1 MiB", path.display());
    String::from_utf8(bytes).ok().with_context(|| format!("{}: is not UTF-8", path.display()))
}

impl Matrix {
    fn jobs(&self) -> anyhow::Result<u16> {
        if let Some(jobs) = self.jobs {
            ensure!(jobs > 0, "jobs is 0; nothing would run");
            return Ok(jobs);
        }
        let kernels = self.kernel.iter().filter_map(|kernel| cpus(&kernel.options));
        let commands = self.command.iter().filter_map(|command| cpus(&command.options));
        let most = kernels.chain(commands).chain(cpus(&self.options)).max().unwrap_or(1).max(1);
        let host = available_parallelism().map_or(1, usize::from);
        Ok(u16::try_from(host / most).unwrap_or(u16::MAX).max(1))
    }
}

impl Kernel {
    /// kite's arguments up to the timeout.
    fn arguments(&self, folder: &Path) -> anyhow::Result<Vec<OsString>> {
        check_options(&self.options).context("options")?;
        let path = existing(folder, &self.path, "path")?;
        let mut arguments = vec![options::COMMAND.into(), assigned(options::KERNEL, &path)];
        if let Some(modules) = &self.modules {
            let path = existing(folder, modules, "modules")?;
            ensure!(path.is_dir(), "modules: {} is not a folder", path.display());
            arguments.push(assigned(options::MODULES, &path));
        }
        ensure!(!path.is_dir(), "path: {} is a folder", path.display());
        Ok(arguments)
    }
}

impl Command {
    /// The run on this kernel, without its arguments; and its own timeout as it was written.
    fn cell(
        &self,
        kernel: &Kernel,
        otherwise: Option<Duration>,
        rule: FailOnKtap,
    ) -> anyhow::Result<(Cell, Option<&str>)> {
        check_options(&self.options).context("options")?;
        ensure!(self.run.0.first().is_none_or(|program| !program.is_empty()), "run is empty");
        ensure!(!self.run.0.iter().any(|word| word.contains('\0')), "run: no argument can hold a NUL");
        let own = timeout(self.timeout.as_deref())?;
        let (kernel, command) = (kernel.name.clone(), self.name.clone());
        let fail_on_ktap = self.fail_on_ktap.unwrap_or(rule);
        let (timeout, arguments) = (own.or(otherwise), Vec::new());
        let cell = Cell { kernel, command, arguments, timeout, fail_on_ktap, picture: None };
        Ok((cell, self.timeout.as_deref()))
    }
}

/// `OPTION=PATH`, which holds for every path.
fn assigned(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push("=");
    argument.push(path);
    argument
}

fn existing(folder: &Path, path: &Path, key: &str) -> anyhow::Result<PathBuf> {
    ensure!(!path.as_os_str().is_empty(), "{key} is empty");
    let path = folder.join(path);
    match path.metadata() {
        Ok(_) => Ok(path),
        Err(error) => Err(error).with_context(|| format!("{key}: cannot look at {}", path.display())),
    }
}

fn timeout(text: Option<&str>) -> anyhow::Result<Option<Duration>> {
    text.map(|text| duration::parse(text).map_err(|why| anyhow::anyhow!("timeout {text:?}: {why}")))
        .transpose()
}

/// Names are columns, rows, and names of files.
fn check_names(what: &str, names: &[String]) -> anyhow::Result<()> {
    for (index, name) in names.iter().enumerate() {
        let allowed = |char: char| char.is_alphanumeric() || "._+-@:=".contains(char);
        ensure!(
            !name.is_empty() && name.chars().all(allowed) && !name.starts_with(['.', '-']),
            "{what} {name:?}: a name is letters, digits and ._+-@:= and starts with none of .-"
        );
        ensure!(name.len() <= LONGEST_NAME, "{what} {name}: a name has at most {LONGEST_NAME} bytes");
        ensure!(!names[..index].contains(name), "{what} {name}: there are two of this name");
    }
    Ok(())
}

fn check_options(list: &[String]) -> anyhow::Result<()> {
    use options::{END, FAIL_ON_KTAP, JUNIT, KERNEL, MODULES, SCREENSHOT, TIMEOUT};
    for option in list {
        let name = option.split('=').next().unwrap_or_default();
        match name {
            END => bail!("-- does not belong here; the command is in run"),
            KERNEL | MODULES | TIMEOUT | FAIL_ON_KTAP => {
                bail!("{name} does not belong here; it has a key of its own")
            }
            JUNIT | SCREENSHOT => bail!("{name} does not belong here; give it to kite matrix"),
            _ => ensure!(!option.contains('\0'), "no option can hold a NUL"),
        }
    }
    Ok(())
}

/// How many CPUs these options give a guest, if they say so. What is no number, `kite run` refuses.
fn cpus(list: &[String]) -> Option<usize> {
    let value = list.iter().enumerate().rev().find_map(|(index, option)| {
        let rest = option.strip_prefix(options::CPUS)?;
        rest.strip_prefix('=').or_else(|| list.get(index + 1).filter(|_| rest.is_empty()).map(String::as_str))
    });
    value?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> anyhow::Result<Plan> {
        plan_in(None, text)
    }

    fn plan_in(image: Option<&str>, text: &str) -> anyhow::Result<Plan> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("k"), "").unwrap();
        std::fs::create_dir(folder.path().join("m")).unwrap();
        std::fs::write(folder.path().join("matrix.toml"), text).unwrap();
        Plan::read(&folder.path().join("matrix.toml"), image, |_| Ok(()))
    }

    const SMALL: &str = "[[kernel]]\nname = 'a'\npath = 'k'\n[[command]]\nname = 'c'\nrun = ['true']\n";

    #[test]
    fn every_command_runs_on_every_kernel_with_all_its_options() {
        let text = "timeout = '5m'\noptions = ['--memory', '1G']\n\
            [[kernel]]\nname = 'a'\npath = 'k'\nmodules = 'm'\noptions = ['--no-rng']\n\
            [[kernel]]\nname = 'b'\npath = 'k'\n\
            [[command]]\nname = 'c'\nrun = ['echo', 'a b', '--', '']\noptions = ['--cpus=2']\n\
            [[command]]\nname = 'd'\nrun = 'echo $HOME'\ntimeout = '30s'\n";
        let plan = plan(text).unwrap();
        let names: Vec<_> = plan.cells.iter().map(Cell::name).collect();
        assert_eq!(names, ["a/c", "a/d", "b/c", "b/d"]);
        let words = |cell: &Cell| {
            let words = cell.arguments.iter().map(|word| word.to_str().unwrap());
            words.map(|word| word.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            words(&plan.cells[0]),
            "run|k|m|--no-config|--timeout=5m|--memory|1G|--no-rng|--cpus=2|--|echo|a b|--|"
        );
        assert_eq!(words(&plan.cells[3]), "run|k|--no-config|--timeout=30s|--memory|1G|--|sh|-c|echo $HOME");
        assert_eq!(plan.cells[3].timeout, Some(Duration::from_secs(30)));
        assert!(plan.cells[0].arguments[1].to_str().unwrap().starts_with("--kernel=/"));
    }

    #[test]
    fn commands_run_in_their_own_image_or_in_the_one_for_all() {
        let text = "image = 'debian:12'\n[[kernel]]\nname = 'a'\npath = 'k'\n\
            [[command]]\nname = 'c'\nrun = ['true']\n\
            [[command]]\nname = 'd'\nimage = 'm:tag'\n";
        let last = |plan: &Plan, index: usize, count: usize| {
            let words = plan.cells[index].arguments.iter().map(|word| word.to_str().unwrap().to_owned());
            words.rev().take(count).collect::<Vec<_>>()
        };
        let of_file = plan(text).unwrap();
        assert_eq!(last(&of_file, 0, 3), ["true", "--", "--image=debian:12"]);
        let own = &last(&of_file, 1, 1)[0];
        assert!(own.starts_with("--image=/") && own.ends_with("/m:tag"), "{own}");
        let of_option = plan_in(Some("x"), text).unwrap();
        assert_eq!(last(&of_option, 0, 1 + 2), ["true", "--", "--image=x"]);
        assert_eq!(last(&of_option, 1, 1)[0].rsplit('/').next(), Some("m:tag"));
        let none = "[[kernel]]\nname = 'a'\npath = 'k'\n[[command]]\nname = 'c'\n";
        assert!(format!("{:#}", plan(none).unwrap_err()).contains("run is empty"));
        assert!(plan_in(Some("x"), none).is_ok());
    }

    #[test]
    fn runs_with_a_screen_have_a_file_each_for_its_picture() {
        let text = "[[kernel]]\nname = 'a'\npath = 'k'\noptions = ['--screen=64x64']\n\
            [[kernel]]\nname = 'b'\npath = 'k'\n\
            [[command]]\nname = 'c'\nrun = ['echo', '--screen']\n";
        let mut pictured = plan(text).unwrap();
        pictured.take_pictures(|kernel, command| format!("{kernel}/{command}.png").into()).unwrap();
        let pictures: Vec<_> = pictured.cells.iter().map(|cell| cell.picture.clone()).collect();
        assert_eq!(pictures, [Some("a/c.png".into()), None]);
        assert_eq!(pictured.cells[0].arguments[1], "--screenshot-on-failure=a/c.png");
        assert!(!pictured.cells[1].arguments.iter().any(|word| word == "--screenshot-on-failure=b/c.png"));
        let none = plan(SMALL).unwrap().take_pictures(|_, _| PathBuf::new()).unwrap_err();
        assert!(none.to_string().contains("add --screen"));
        let named = format!("options = ['--screenshot-on-failure=a.png']\n{SMALL}");
        assert!(format!("{:#}", plan(&named).unwrap_err()).ends_with("give it to kite matrix"));
    }

    #[test]
    fn the_default_number_of_jobs_counts_the_cpus_of_the_widest_guest() {
        for (options, expected) in [
            (vec!["--cpus", "3"], Some(3)),
            (vec!["--cpus=4", "--no-rng"], Some(4)),
            (vec!["--cpus", "1", "--cpus", "2"], Some(2)),
            (vec!["--cpus"], None),
            (vec!["--cpusx", "3"], None),
            (vec!["--cpus", "x"], None),
            (vec![], None),
        ] {
            let options: Vec<_> = options.into_iter().map(str::to_owned).collect();
            assert_eq!(cpus(&options), expected, "{options:?}");
        }
        assert_eq!(plan(&format!("options = ['--cpus=100000']\n{SMALL}")).unwrap().jobs, 1);
        assert_eq!(plan(&format!("jobs = 7\n{SMALL}")).unwrap().jobs, 7);
    }
}
