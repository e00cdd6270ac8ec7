//! What developers do in guests: a kernel tree's own tests, and the tools that work on files.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::command::{AS_ROOT, ended, kite};
use super::{Fixture, kernel};
use crate::setup::selftests_folder;

/// A kernel tree builds and runs its own tests, and they are told one by one.
pub fn selftests(fixture: &Fixture, name: &str) -> Result<String> {
    let junit = fixture.file("selftests.xml");
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(AS_ROOT).args(["--memory", "2G", "--junit"]).arg(&junit).current_dir(selftests_folder()?);
    // kcmp_test prints none of the three results that it plans, and an emulator is slow enough for others to time out.
    command.arg("--fail-on-ktap=never");
    command.args(["--", "make", "-s", "-C", "tools/testing/selftests", SELFTESTS, "run_tests"]);
    let ended = ended(command, b"")?;
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let passed = SELFTESTS_PASS
        .iter()
        .all(|test| stdout.lines().any(|line| line.starts_with("ok ") && line.ends_with(test)));
    ensure!(ended.code == Some(0) && passed, "{ended:#?}");
    let results = fs::read_to_string(&junit).context("reading the results")?;
    let cases = results.matches("<testcase ").count();
    ensure!(cases >= SELFTESTS_PASS.len(), "{cases} cases: {results}");
    let plan = "3 of 3 planned tests did not run: 1-3";
    ensure!(results.contains(plan), "kcmp_test's plan counts for nothing: {results}");
    Ok(format!("{cases} cases"))
}

const SELFTESTS: &str = "TARGETS=size membarrier kcmp openat2";
/// Those that need nothing but a kernel and its usual file systems.
const SELFTESTS_PASS: [&str; 4] = [
    "size: get_size",
    "membarrier: membarrier_test_single_thread",
    "kcmp: kcmp_test",
    "openat2: openat2_test",
];

/// What developers do with files, on a share that is written.
pub fn tools(fixture: &Fixture, name: &str) -> Result<String> {
    let folder = fixture.file("tools");
    fs::create_dir_all(&folder).context("making a folder")?;
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--cpus", "2", "--share", ".:rw", "--", "sh", "-c", TOOLS]).current_dir(&folder);
    let ended = ended(command, b"")?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    let written = fs::read_to_string(folder.join("result")).context("reading the result")?;
    ensure!(written == "42\n", "the host reads {written:?}");
    Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
}

const TOOLS: &str = r##"set -ex
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
git init -q repo; cd repo
git config user.email a@b; git config user.name a
printf 'all: result\nresult: result.in\n\tcp $< $@\n' >Makefile; echo 42 >result.in
git add .; git commit -qm first; test -z "$(git status --short)"
echo 43 >>result.in; test "$(git status --short)" = ' M result.in'; git checkout -q .
make -s; cmp result result.in; make -s -q
cd ..; tar cf repo.tar repo; mkdir copy; tar xf repo.tar -C copy; diff -r repo copy/repo
python3 - <<'END'
import fcntl, mmap, os, sqlite3
db = sqlite3.connect("db"); db.execute("pragma journal_mode=wal"); db.execute("create table t (a)")
db.executemany("insert into t values (?)", [(i,) for i in range(1000)]); db.commit()
assert db.execute("select sum(a) from t").fetchone() == (499500,)
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
f = open("file", "w+b"); f.truncate(8192); m = mmap.mmap(f.fileno(), 8192); m[4096:4101] = b"hello"; m.flush()
assert open("file", "rb").read()[4096:4101] == b"hello"
os.unlink("file"); f.seek(4096); assert f.read(5) == b"hello"
fcntl.lockf(f, fcntl.LOCK_EX); fcntl.flock(f, fcntl.LOCK_EX)
os.mkdir("a"); os.rename("a", "b"); os.symlink("b", "c"); os.link("db", "d"); assert os.stat("db").st_nlink == 2
open("b/x", "w").close()
try: os.setxattr("b/x", "user.k", b"v"); assert os.getxattr("b/x", "user.k") == b"v"
except OSError as error: assert error.errno == 95; print("without xattrs, which the host's file system lacks")
END
cp repo/result .
"##;
