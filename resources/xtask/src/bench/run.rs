//! `kite run -- COMMAND` beside virtme-ng, which runs commands in QEMU: the same kernel, the same files, the same KVM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::quartiles;
use crate::host;
use crate::setup::{Kernel, LAB, Setup};
use crate::step::{output, step};

/// The packages that virtme-ng and what it boots need, each by a program of its own.
const PROGRAMS: [(&str, &str); 4] =
    [("busybox", "busybox-static"), ("udevadm", "udev"), ("git", "git"), ("python3", "python3-venv")];
/// Files of the tree that git looks at, in folders of so many.
const FILES: usize = 50_000;
const IN_A_FOLDER: usize = 100;
/// The tree's folder.
const TREE: &str = "tree";
/// What a run may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// Says how many nanoseconds git takes, cold and warm.
const GIT: &str = r#"for time in cold warm; do
start=$(date +%s%N); git status --short >/dev/null || exit 1; end=$(date +%s%N)
echo "took $((end - start))."
done"#;

/// Installs virtme-ng from PyPI into a folder of its own; answers its program.
///
/// # Errors
/// It cannot be had.
pub fn virtme(setup: &mut Setup) -> Result<PathBuf> {
    setup.programs(&PROGRAMS)?;
    let folder = host::target("bench")?.join("virtme-ng");
    let program = folder.join("bin/vng");
    if !program.exists() {
        step("installing virtme-ng", || {
            output(Command::new("python3").args(["-m", "venv"]).arg(&folder))
                .or_else(|_| {
                    // The interpreter is there without the module that makes such folders.
                    setup.install("python3-venv")?;
                    output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
                })
                .and_then(|_| {
                    output(Command::new(folder.join("bin/pip")).args(["install", "-q", "virtme-ng"]))
                })
        })?;
    }
    Ok(program)
}

/// What is compared.
struct Subject<'a> {
    name: &'static str,
    command: Box<dyn Fn(&str) -> Command + 'a>,
    /// Seconds: `true` from exec to exit, git's first look, its second.
    figures: [Vec<f64>; 3],
}

/// Measures and prints.
///
/// # Errors
/// A guest fails.
pub fn run(kite: &Path, virtme: &Path, tree: &Path, rounds: u32) -> Result<()> {
    let kernel = Kernel::open(LAB)?.context("the lab's kernel is missing")?;
    // virtme-ng looks for a kernel's modules where they are installed.
    let installed = Path::new("/lib/modules").join(&kernel.release);
    fs::create_dir_all("/lib/modules").context("making /lib/modules")?;
    output(Command::new("cp").arg("-aT").arg(kernel.modules()).arg(&installed))?;
    let image = Path::new("/boot").join(format!("vmlinuz-{}", kernel.release));
    fs::copy(kernel.bz_image(), &image).context("installing the kernel")?;
    let folder = tempfile::tempdir().context("making a folder")?;
    output(Command::new("tar").arg("-xf").arg(tree).arg("-C").arg(folder.path()))?;
    let tree = folder.path().join(TREE);
    // What an archive does not keep, git would have to look at again.
    output(git(&tree).arg("status"))?;
    let mut subjects = [
        Subject {
            name: "kite",
            command: Box::new(|script| of_kite(kite, &image, script)),
            figures: Default::default(),
        },
        Subject {
            name: "virtme-ng",
            command: Box::new(|script| of_virtme(virtme, &image, script)),
            figures: Default::default(),
        },
    ];
    for round in 1..=rounds {
        for subject in &mut subjects {
            eprintln!("xtask: round {round} of {rounds}, {}", subject.name);
            let start = Instant::now();
            said((subject.command)("true").current_dir("/"))?;
            subject.figures[0].push(start.elapsed().as_secs_f64());
            eprintln!("xtask:   true: {:.2} s", start.elapsed().as_secs_f64());
            let text = said((subject.command)(GIT).current_dir(&tree))?;
            let mut times = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("took ")?.strip_suffix('.')?.parse::<f64>().ok());
            for figures in &mut subject.figures[1..] {
                let time = times.next().with_context(|| format!("git told no time:\n{text}"))? / 1e9;
                eprintln!("xtask:   git status: {time:.2} s");
                figures.push(time);
            }
        }
    }
    print(&mut subjects);
    Ok(())
}

fn of_kite(kite: &Path, kernel: &Path, script: &str) -> Command {
    let mut command = Command::new(kite);
    command.args(["run", "--kernel"]).arg(kernel).args(["--memory", "1G", "--env", "GIT_OPTIONAL_LOCKS=0"]);
    command.args(["--env", "HOME=/tmp", "--", "sh", "-c", script]);
    command
}

fn of_virtme(virtme: &Path, kernel: &Path, script: &str) -> Command {
    let mut command = Command::new(virtme);
    command.arg("-r").arg(kernel).args(["--memory", "1G", "--cpus", "1", "--"]);
    command.arg(format!("export GIT_OPTIONAL_LOCKS=0 HOME=/tmp; {script}")).env("HOME", "/root");
    // It looks for its own programs in the path.
    let beside = virtme.parent().unwrap_or(Path::new("/")).display().to_string();
    command.env("PATH", format!("{beside}:{}", std::env::var("PATH").unwrap_or_default()));
    command
}

/// An archive of a repository of many files, all of them committed; it is made once.
///
/// # Errors
/// It cannot be made.
pub fn tree() -> Result<PathBuf> {
    let archive = host::target("bench")?.join("tree.tar");
    if !archive.exists() {
        step(format!("planting {FILES} files"), || {
            let folder = tempfile::tempdir().context("making a folder")?;
            plant(&folder.path().join(TREE))?;
            let part = archive.with_extension("part");
            output(Command::new("tar").arg("-cf").arg(&part).arg("-C").arg(folder.path()).arg(TREE))?;
            fs::rename(&part, &archive).context("naming the archive")
        })?;
    }
    Ok(archive)
}

/// git in this folder, whoever the user is and owns it.
fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder).env("HOME", folder).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
    git.args(["-c", "safe.directory=*"]);
    git
}

fn plant(folder: &Path) -> Result<()> {
    fs::create_dir(folder).context("making a folder")?;
    for file in 0..FILES {
        let parent = folder.join(format!("folder{:03}", file / IN_A_FOLDER));
        if file % IN_A_FOLDER == 0 {
            fs::create_dir(&parent).context("making a folder")?;
        }
        fs::write(parent.join(format!("file{file}.c")), format!("int f{file}(void);\n"))
            .context("writing a file")?;
    }
    let work: [&[&str]; 3] = [&["init", "-q"], &["add", "."], &["commit", "-q", "-m", "all"]];
    work.into_iter().try_for_each(|work| output(git(folder).args(work)).map(drop))
}

/// What a command says, which is to succeed within the limit.
fn said(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("starting {}", name.display()))?;
    let start = Instant::now();
    let ended = child.wait_with_output().context("waiting")?;
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    ensure!(start.elapsed() < LIMIT, "{} took too long", name.display());
    if !ended.status.success() {
        bail!(
            "{} ended with {}:\n{text}{}",
            name.display(),
            ended.status,
            String::from_utf8_lossy(&ended.stderr)
        );
    }
    Ok(text)
}

fn print(subjects: &mut [Subject<'_>]) {
    println!("seconds: medians, quartiles; kite's part of virtme-ng's time");
    for (index, work) in ["true, exec to exit", "git status, first", "git status, again"].iter().enumerate() {
        println!("\n{work}");
        let mut kite = None;
        for subject in subjects.iter_mut() {
            let figures = &mut subject.figures[index];
            figures.sort_unstable_by(f64::total_cmp);
            let [low, median, high] = quartiles(figures);
            let ratio = *kite.get_or_insert(median) / median;
            let spread = format!("{low:.2} to {high:.2}");
            println!("{:<12}{median:>10.2}{spread:>20}{ratio:>8.2}", subject.name);
        }
    }
}
