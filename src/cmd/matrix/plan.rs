//! The matrix file: read, checked, and made into the runs that it stands for.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Error, anyhow, bail, ensure};
use serde::{Deserialize, Deserializer};

use crate::observe::results::FailOnKtap;
use crate::spec::RunSpec;
use crate::spec::command::ImageSpec;
use crate::spec::duration;
use crate::spec::machine::default_kernel;
use crate::spec::text::{OneOrList, one_or_list};

/// How long a matrix file may be, in bytes.
const LONGEST: u64 = 1 << 20;
/// How long a name may be, in bytes.
const LONGEST_NAME: usize = 64;

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

/// Makes a spec of the words behind `kite run`, or says in one line what is wrong with them.
pub type Convert = fn(&[OsString]) -> Result<RunSpec, String>;

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
    /// Whether failed cases make it fail. The matrix decides, so the spec has nothing of it.
    pub fail_on_ktap: FailOnKtap,
    pub spec: RunSpec,
}

impl Cell {
    /// What people know it by.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.kernel, self.command)
    }

    /// When kite stops it.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.spec.command.as_ref()?.timeout
    }

    /// Where what was on its screen goes if it fails.
    pub(super) fn picture(&self) -> Option<&Path> {
        self.spec.measure.screenshot_on_failure.as_deref()
    }
}

impl Plan {
    /// Reads and checks a file, whose options `convert` takes. Its commands run in `image`, if there is one, unless they
    /// name another.
    pub(super) fn read(path: &Path, image: Option<&str>, convert: Convert) -> anyhow::Result<Self> {
        let text = read_text(path)?;
        let mut matrix: Matrix = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let at =
                line.map_or_else(|| path.display().to_string(), |line| format!("{}:{line}", path.display()));
            let what: Vec<_> = error.message().split_whitespace().collect();
            anyhow!("{at}: {}", what.join(" "))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let of_commands = matrix.command.iter_mut().filter_map(|command| command.image.as_mut());
        of_commands.chain(&mut matrix.image).for_each(|image| ImageSpec::rebase(image, folder));
        matrix.image = image.map(str::to_owned).or(matrix.image);
        Self::of(&mut matrix, folder, convert).with_context(|| path.display().to_string())
    }

    fn of(matrix: &mut Matrix, folder: &Path, convert: Convert) -> anyhow::Result<Self> {
        matrix.check(folder)?;
        let mut cells = Vec::new();
        for kernel in &matrix.kernel {
            for command in &matrix.command {
                let fail_on_ktap = command.fail_on_ktap.unwrap_or(matrix.fail_on_ktap);
                let spec = matrix.spec(kernel, command, convert);
                let (kernel, command) = (kernel.name.clone(), command.name.clone());
                let spec =
                    spec.map_err(|why| anyhow!("kernel {kernel}, command {command}: options: {why}"))?;
                cells.push(Cell { kernel, command, fail_on_ktap, spec });
            }
        }
        let kernels = matrix.kernel.iter().map(|kernel| kernel.name.clone()).collect();
        let commands = matrix.command.iter().map(|command| command.name.clone()).collect();
        Ok(Self { jobs: matrix.jobs(&cells)?, kernels, commands, cells })
    }

    /// Has each run that has a screen and fails write what was on it to the file that `place` names.
    ///
    /// # Errors
    /// No run has a screen.
    pub(super) fn take_pictures(&mut self, place: impl Fn(&str, &str) -> PathBuf) -> anyhow::Result<()> {
        let with_screen = self.cells.iter_mut().filter(|cell| cell.spec.machine.screen().is_some());
        let mut any = false;
        for cell in with_screen {
            cell.spec.measure.screenshot_on_failure = Some(place(&cell.kernel, &cell.command));
            any = true;
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
    /// Whether it makes sense as far as it goes without options; has its paths begin at `folder`.
    fn check(&mut self, folder: &Path) -> anyhow::Result<()> {
        ensure!(!self.kernel.is_empty(), "there is no [[kernel]]");
        ensure!(!self.command.is_empty(), "there is no [[command]]");
        check_names("kernel", self.kernel.iter().map(|kernel| &*kernel.name))?;
        check_names("command", self.command.iter().map(|command| &*command.name))?;
        check_options(&self.options).context("options")?;
        timeout(self.timeout.as_deref()).map_err(Error::msg)?;
        for kernel in &mut self.kernel {
            kernel.check(folder).with_context(|| format!("kernel {}", kernel.name))?;
        }
        for command in &self.command {
            let has_image = command.image.is_some() || self.image.is_some();
            command.check(has_image).with_context(|| format!("command {}", command.name))?;
        }
        Ok(())
    }

    /// What a `kite run` of this command on this kernel does.
    fn spec(&self, kernel: &Kernel, command: &Command, convert: Convert) -> Result<RunSpec, String> {
        let options = [&self.options, &kernel.options, &command.options].into_iter().flatten().cloned();
        let image = command.image.as_ref().or(self.image.as_ref()).map(|image| format!("--image={image}"));
        let run = ["--".to_owned()].into_iter().chain(command.run.0.iter().cloned());
        let words: Vec<_> = options.chain(image).chain(run).map(OsString::from).collect();
        let mut spec = convert(&words)?;
        let boot = &mut spec.machine.boot;
        if boot.kernel != default_kernel() {
            return Err("-k does not belong here; the kernel has a key of its own".to_owned());
        }
        (boot.kernel, boot.modules) = (Some(kernel.path.clone()), kernel.modules.clone());
        let timeout = timeout(command.timeout.as_deref().or(self.timeout.as_deref()))?;
        spec.command.iter_mut().for_each(|command| command.timeout = timeout);
        spec.validate().map(|()| spec)
    }

    fn jobs(&self, cells: &[Cell]) -> anyhow::Result<u16> {
        if let Some(jobs) = self.jobs {
            ensure!(jobs > 0, "jobs is 0; nothing would run");
            return Ok(jobs);
        }
        let widest = cells.iter().map(|cell| cell.spec.machine.cpus).max().unwrap_or(1);
        let host = available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
        Ok(u16::try_from(host / widest).unwrap_or(u16::MAX).max(1))
    }
}

impl Kernel {
    fn check(&mut self, folder: &Path) -> anyhow::Result<()> {
        check_options(&self.options).context("options")?;
        self.path = existing(folder, &self.path, "path")?;
        if let Some(modules) = &mut self.modules {
            *modules = existing(folder, modules, "modules")?;
            ensure!(modules.is_dir(), "modules: {} is not a folder", modules.display());
        }
        ensure!(!self.path.is_dir(), "path: {} is a folder", self.path.display());
        Ok(())
    }
}

impl Command {
    fn check(&self, has_image: bool) -> anyhow::Result<()> {
        check_options(&self.options).context("options")?;
        ensure!(self.run.0.first().map_or(has_image, |program| !program.is_empty()), "run is empty");
        ensure!(!self.run.0.iter().any(|word| word.contains('\0')), "run: no argument can hold a NUL");
        timeout(self.timeout.as_deref()).map(drop).map_err(Error::msg)
    }
}

fn existing(folder: &Path, path: &Path, key: &str) -> anyhow::Result<PathBuf> {
    ensure!(!path.as_os_str().is_empty(), "{key} is empty");
    let path = folder.join(path);
    match path.metadata() {
        Ok(_) => Ok(path),
        Err(error) => Err(error).with_context(|| format!("{key}: cannot look at {}", path.display())),
    }
}

fn timeout(text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(|text| duration::parse(text).map_err(|why| format!("timeout {text:?}: {why}"))).transpose()
}

/// Names are columns, rows, and names of files.
fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    let mut known = HashSet::new();
    for name in names {
        let allowed = |char: char| char.is_alphanumeric() || "._+-@:=".contains(char);
        ensure!(
            !name.is_empty() && name.chars().all(allowed) && !name.starts_with(['.', '-']),
            "{what} {name:?}: a name is letters, digits and ._+-@:= and starts with none of .-"
        );
        ensure!(name.len() <= LONGEST_NAME, "{what} {name}: a name has at most {LONGEST_NAME} bytes");
        ensure!(known.insert(name), "{what} {name}: there are two of this name");
    }
    Ok(())
}

/// Whether they say nothing that has another place.
fn check_options(list: &[String]) -> anyhow::Result<()> {
    for option in list {
        let name = option.split('=').next().unwrap_or_default();
        match name {
            "--" => bail!("-- does not belong here; the command is in run"),
            "--kernel" | "--modules" | "--timeout" | "--fail-on-ktap" => {
                bail!("{name} does not belong here; it has a key of its own")
            }
            "--junit" | "--screenshot-on-failure" => {
                bail!("{name} does not belong here; give it to kite matrix")
            }
            "--print-spec" => bail!("{name} does not belong here; nothing would run"),
            _ => ensure!(!option.contains('\0'), "no option can hold a NUL"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MeasureSpec;
    use crate::spec::command::CommandSpec;
    use crate::spec::device::{DeviceSpec, ScreenSpec};
    use crate::spec::machine::{BootSpec, MachineSpec};

    /// A run of the words themselves, with a screen if one of the options is for it, and as many CPUs as the last says.
    #[expect(clippy::unnecessary_wraps, reason = "it is a `Convert`")]
    fn convert(words: &[OsString]) -> Result<RunSpec, String> {
        let boot = BootSpec { kernel: default_kernel(), ..BootSpec::default() };
        let mut machine = MachineSpec { boot, ..MachineSpec::default() };
        for word in words.iter().map(|word| word.to_str().unwrap()).take_while(|word| *word != "--") {
            if let Some(cpus) = word.strip_prefix("--cpus=") {
                machine.cpus = cpus.parse().unwrap();
            } else if word == "--screen" {
                machine.devices.push(DeviceSpec::Screen(ScreenSpec { width: 64, height: 64 }));
            }
        }
        let command = CommandSpec { argv: words.to_vec(), ..CommandSpec::default() };
        Ok(RunSpec::new(machine, Some(command), MeasureSpec::default(), false))
    }

    fn plan(text: &str) -> anyhow::Result<Plan> {
        plan_in(None, text)
    }

    fn plan_in(image: Option<&str>, text: &str) -> anyhow::Result<Plan> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("k"), "").unwrap();
        std::fs::create_dir(folder.path().join("m")).unwrap();
        std::fs::write(folder.path().join("matrix.toml"), text).unwrap();
        Plan::read(&folder.path().join("matrix.toml"), image, convert)
    }

    fn words(cell: &Cell) -> Vec<&str> {
        let words = &cell.spec.command.as_ref().unwrap().argv;
        words.iter().map(|word| word.to_str().unwrap()).collect()
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
        let [first, .., last] = &plan.cells[..] else { panic!("{names:?}") };
        assert_eq!(words(first), ["--memory", "1G", "--no-rng", "--cpus=2", "--", "echo", "a b", "--", ""]);
        assert_eq!(words(last), ["--memory", "1G", "--", "sh", "-c", "echo $HOME"]);
        let seconds = |cell: &Cell| cell.timeout().map(|timeout| timeout.as_secs());
        assert_eq!((seconds(first), seconds(last)), (Some(300), Some(30)));
        let [with, without] = [first, last].map(|cell| &cell.spec.machine.boot);
        let (kernel, modules) = (with.kernel.as_ref().unwrap(), with.modules.as_ref().unwrap());
        assert!(kernel.is_absolute() && kernel.ends_with("k") && modules.ends_with("m"));
        assert_eq!((&without.kernel, &without.modules), (&with.kernel, &None));
    }

    #[test]
    fn commands_run_in_their_own_image_or_in_the_one_for_all() {
        let text = "image = 'debian:12'\n[[kernel]]\nname = 'a'\npath = 'k'\n\
            [[command]]\nname = 'c'\nrun = ['true']\n\
            [[command]]\nname = 'd'\nimage = 'm:tag'\n";
        let of_file = plan(text).unwrap();
        assert_eq!(words(&of_file.cells[0]), ["--image=debian:12", "--", "true"]);
        let own = words(&of_file.cells[1]);
        assert!(
            own[0].starts_with("--image=/") && own[0].ends_with("/m:tag") && own[1..] == ["--"],
            "{own:?}"
        );
        let of_option = plan_in(Some("x"), text).unwrap();
        assert_eq!(words(&of_option.cells[0]), ["--image=x", "--", "true"]);
        assert!(words(&of_option.cells[1])[0].ends_with("/m:tag"));
        let none = "[[kernel]]\nname = 'a'\npath = 'k'\n[[command]]\nname = 'c'\n";
        assert!(format!("{:#}", plan(none).unwrap_err()).contains("run is empty"));
        assert!(plan_in(Some("x"), none).is_ok());
    }

    #[test]
    fn runs_with_a_screen_have_a_file_each_for_its_picture() {
        let text = "[[kernel]]\nname = 'a'\npath = 'k'\noptions = ['--screen']\n\
            [[kernel]]\nname = 'b'\npath = 'k'\n\
            [[command]]\nname = 'c'\nrun = ['echo', '--screen']\n";
        let mut pictured = plan(text).unwrap();
        pictured.take_pictures(|kernel, command| format!("{kernel}/{command}.png").into()).unwrap();
        let pictures: Vec<_> = pictured.cells.iter().map(Cell::picture).collect();
        assert_eq!(pictures, [Some(Path::new("a/c.png")), None]);
        let none = plan(SMALL).unwrap().take_pictures(|_, _| PathBuf::new()).unwrap_err();
        assert!(none.to_string().contains("add --screen"));
        let named = format!("options = ['--screenshot-on-failure=a.png']\n{SMALL}");
        assert!(format!("{:#}", plan(&named).unwrap_err()).ends_with("give it to kite matrix"));
    }

    #[test]
    fn the_default_number_of_jobs_counts_the_cpus_of_the_widest_guest() {
        let text = SMALL.replace("path = 'k'\n", "path = 'k'\noptions = ['--cpus=100000']\n");
        assert_eq!(plan(&text).unwrap().jobs, 1);
        let host = available_parallelism().map_or(1, usize::from);
        assert_eq!(usize::from(plan(SMALL).unwrap().jobs), host);
        assert_eq!(plan(&format!("jobs = 7\n{text}")).unwrap().jobs, 7);
    }
}
