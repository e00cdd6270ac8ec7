//! Random operations on a share and on a plain folder: what each answers, and what is there in the end, is the same.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::bridge::mounted;
use super::client::share;
use crate::testing::Random;

/// Operations in one run.
const OPERATIONS: usize = 4000;
/// Files that are open at a time.
const OPEN: usize = 6;

/// A folder, and files of it that are open.
struct World {
    root: PathBuf,
    open: VecDeque<File>,
}

/// What an operation answers: a few words, or an error number.
type Answer = Result<String, i32>;

fn answer<T>(result: io::Result<T>, show: impl FnOnce(T) -> String) -> Answer {
    result.map(show).map_err(|error| error.raw_os_error().unwrap_or(0))
}

fn describe(stat: &fs::Metadata) -> String {
    let size = if stat.is_dir() { 0 } else { stat.size() };
    // How many links a folder has is the file system's own affair.
    let links = if stat.is_dir() { 0 } else { stat.nlink() };
    format!("{:o} {links} {size} {} {}", stat.mode(), stat.uid(), stat.mtime() / 1_000_000)
}

/// One operation: what it is, and the numbers that say on what.
struct Operation {
    kind: u64,
    paths: [String; 2],
    numbers: [u64; 3],
}

impl Operation {
    fn new(random: &mut Random) -> Self {
        let mut path = || {
            let depth = 1 + random.below(3);
            let names = (0..depth).map(|_| ["a", "b", "c", "d"][random.below(4) as usize]);
            names.collect::<Vec<_>>().join("/")
        };
        let paths = [path(), path()];
        Self { kind: random.below(24), paths, numbers: [(); 3].map(|()| random.below(1 << 16)) }
    }

    fn run(&self, world: &mut World) -> Answer {
        let [path, other] = [&self.paths[0], &self.paths[1]].map(|it| world.root.join(it));
        let [one, two, three] = self.numbers;
        let ok = |()| String::new();
        match self.kind {
            0..3 => answer(fs::create_dir(&path), ok),
            3..6 => answer(self.open(&path), |file| {
                world.open.push_back(file);
                world.open.truncate(OPEN);
                String::new()
            }),
            6 => answer(fs::remove_file(&path), ok),
            7 => answer(fs::remove_dir(&path), ok),
            8..10 => {
                let flags =
                    [RenameFlags::empty(), RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE];
                let flags = flags[one as usize % 3];
                answer(renameat2(AT_FDCWD, &path, AT_FDCWD, &other, flags).map_err(io::Error::from), ok)
            }
            10 => answer(fs::hard_link(&path, &other), ok),
            11 => answer(symlink(&self.paths[1], &path), ok),
            12 => answer(fs::read_link(&path), |target| format!("{target:?}")),
            13 => answer(fs::set_permissions(&path, Permissions::from_mode((one & 0o7777) as u32)), ok),
            14 => {
                let kind = if one % 2 == 0 { SFlag::S_IFIFO } else { SFlag::S_IFREG };
                let mode = Mode::from_bits_truncate(two as u32 & 0o777);
                answer(mknod(&path, kind, mode, 0).map_err(io::Error::from), ok)
            }
            15 => answer(fs::symlink_metadata(&path), |stat| describe(&stat)),
            16 => answer(fs::read_dir(&path).map(Iterator::count), |count| count.to_string()),
            17 => answer(fs::read(&path), |bytes| format!("{bytes:?}")),
            _ => self.run_open(world, one, two, three),
        }
    }

    /// Opens in one of the ways there are, but no FIFO, which would wait.
    fn open(&self, path: &Path) -> io::Result<File> {
        let [how, mode, _] = self.numbers;
        if fs::metadata(path).is_ok_and(|stat| stat.file_type().is_fifo()) {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        let mut options = OpenOptions::new();
        options.read(how & 1 != 0).write(how & 6 != 0).append(how & 24 == 24);
        if how & 6 != 0 {
            options.create(how & 32 != 0).truncate(how & 192 == 192 && how & 24 != 24);
            options.create_new(how & 768 == 768);
        }
        options.mode((mode & 0o777) as u32 | 0o600).open(path)
    }

    /// Something with a file that is open, whether it still has a name or not.
    fn run_open(&self, world: &World, which: u64, at: u64, len: u64) -> Answer {
        let Some(file) = world.open.get(which as usize % OPEN) else { return Ok("none".to_owned()) };
        let data = vec![at as u8; len as usize % 9000];
        match self.kind {
            18 => answer(file.write_at(&data, at), |done| done.to_string()),
            19 => {
                let mut read = data;
                answer(file.read_at(&mut read, at), |done| format!("{:?}", &read[..done]))
            }
            20 => answer(file.set_len(at), |()| String::new()),
            21 => answer(file.metadata(), |stat| describe(&stat)),
            22 => {
                answer(file.set_permissions(Permissions::from_mode((at & 0o777) as u32)), |()| String::new())
            }
            _ => answer(file.sync_all(), |()| String::new()),
        }
    }
}

/// All there is below a folder.
fn picture(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            lines.push(format!("{:?} {} {content:?}", path.strip_prefix(folder).unwrap(), describe(&stat)));
            if stat.is_dir() {
                folders.push(path);
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_share_answers_as_a_plain_folder_does() {
    (1..=3).for_each(compare);
}

/// Compares the two with the random numbers of `seed`.
fn compare(seed: u64) {
    let [shared, plain] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut few = share(shared.path(), true);
    // So few that what is kept changes all the time.
    few.limits.descriptors = 40;
    mounted(few, |mounted| {
        let mut worlds =
            [mounted, plain.path()].map(|root| World { root: root.to_owned(), open: VecDeque::new() });
        let mut random = Random::new(seed);
        let mut done = 0;
        for number in 0..OPERATIONS {
            let operation = Operation::new(&mut random);
            // A FIFO has nobody at its other end.
            let fifo = fs::metadata(plain.path().join(&operation.paths[0]));
            if operation.kind == 17 && fifo.is_ok_and(|stat| stat.file_type().is_fifo()) {
                continue;
            }
            let [shared, plain] = worlds.each_mut().map(|world| operation.run(world));
            done += usize::from(plain.is_ok());
            let Operation { kind, paths, numbers } = &operation;
            assert!(
                shared == plain,
                "{seed}, {number}: {kind} {paths:?} {numbers:?}: {shared:?}, and not {plain:?}"
            );
        }
        assert!(done > OPERATIONS / 4, "only {done} succeeded");
        drop(worlds);
        assert_eq!(picture(mounted), picture(plain.path()));
    });
    let ran = fs::read_dir(shared.path()).unwrap().count() > 0;
    assert!(
        !ran || picture(shared.path()) == picture(plain.path()),
        "it is not on the host as it was in the guest"
    );
}
