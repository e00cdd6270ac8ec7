//! Programs on a share that this machine's own kernel has mounted: what a guest's would do over virtio.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::bridge::mounted;
use super::client::share;

/// Runs a script of sh in `folder`; panics with what it told if it fails.
fn run(folder: &Path, script: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-euc", script]).current_dir(folder).env("HOME", "/nonexistent").env("LC_ALL", "C");
    // Git asks whose folder it is, and who commits.
    for (name, value) in
        [("KEY_0", "safe.directory"), ("VALUE_0", "*"), ("KEY_1", "user.name"), ("VALUE_1", "k")]
    {
        shell.env(format!("GIT_CONFIG_{name}"), value);
    }
    shell.env("GIT_CONFIG_COUNT", "3").env("GIT_CONFIG_KEY_2", "user.email").env("GIT_CONFIG_VALUE_2", "k@k");
    let output = shell.output().expect("there is a shell");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// Whether this machine has these programs; says so if it has not.
fn have(programs: &[&str]) -> bool {
    let found = |program: &&&str| {
        let search = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output();
        !search.is_ok_and(|it| it.status.success())
    };
    let missing = programs.iter().find(found);
    if let Some(missing) = missing {
        eprintln!("NOT RUN: this machine has no {missing}");
    }
    missing.is_none()
}

/// A tree of 20 folders with 20 files each.
fn tree() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for dir in 0..20 {
        let dir = folder.path().join(format!("dir-{dir}/sub"));
        fs::create_dir_all(&dir).unwrap();
        (0..20).for_each(|n| fs::write(dir.join(format!("file-{n}.c")), format!("int x{n};\n")).unwrap());
    }
    folder
}

#[test]
fn git_commits_and_finds_what_has_changed() {
    if !have(&["git"]) {
        return;
    }
    let folder = tree();
    let ran = mounted(share(folder.path(), true), |share| {
        let status = run(
            share,
            "git init -q . && git add -A && git commit -qm all && git status --porcelain
            echo more >> dir-3/sub/file-7.c; rm dir-4/sub/file-1.c; echo new > new
            git status --porcelain; git stash -q; git gc -q; git fsck --strict; git status --porcelain",
        );
        assert_eq!(status, " M dir-3/sub/file-7.c\n D dir-4/sub/file-1.c\n?? new\n?? new\n");
    });
    if ran {
        assert_eq!(
            run(folder.path(), "git status --porcelain"),
            "?? new\n",
            "it is the same from the other side"
        );
    }
}

#[test]
fn tar_packs_and_unpacks_links_modes_times_and_holes() {
    if !have(&["tar"]) {
        return;
    }
    let folder = tree();
    mounted(share(folder.path(), true), |share| {
        run(
            share,
            "ln dir-1/sub/file-1.c hard; ln -s ../dir-1 dir-2/soft; mkfifo pipe; chmod 4711 dir-1/sub/file-2.c
            truncate -s 3M holes; printf end >> holes; touch -d @12345 dir-5
            tar cSf packed.tar --exclude=packed.tar . && mkdir out && tar xSpf packed.tar -C out
            diff -r --no-dereference dir-1 out/dir-1 && diff -r dir-7 out/dir-7 && cmp holes out/holes
            test $(stat -c %h out/hard) = 2 && test -p out/pipe && test $(stat -c %a out/dir-1/sub/file-2.c) = 4711
            test $(readlink out/dir-2/soft) = ../dir-1 && test $(stat -c %Y out/dir-5) = 12345
            test $(stat -c %b out/holes) -lt 1000",
        );
    });
}

#[test]
fn make_builds_what_is_out_of_date() {
    if !have(&["make"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rules =
        "all: $(patsubst %.in,%.out,$(wildcard *.in))\n%.out: %.in\n\tcat $< > $@.tmp && mv $@.tmp $@\n";
    fs::write(folder.path().join("Makefile"), rules).unwrap();
    (0..50).for_each(|n| fs::write(folder.path().join(format!("{n}.in")), n.to_string()).unwrap());
    mounted(share(folder.path(), true), |share| {
        assert_eq!(run(share, "make -j8").lines().count(), 50);
        run(share, "make -q");
        run(share, "sleep 0.01; touch 7.in; if make -q; then exit 1; fi; make; make -q; cmp 7.in 7.out");
    });
}

#[test]
fn a_database_is_whole_after_writers_of_both_kinds() {
    if !have(&["python3"]) {
        return;
    }
    const SCRIPT: &str = r#"
import sqlite3, multiprocessing
def write(who):
    db = sqlite3.connect("db", timeout=60)
    for n in range(20):
        with db: db.execute("insert into t values (?, ?)", (who, n))
    db.close()
for mode in ("delete", "truncate", "persist", "wal"):
    db = sqlite3.connect("db", timeout=60)
    db.execute("pragma journal_mode=" + mode)
    db.execute("create table if not exists t (who, n)")
    db.commit()
    several = [multiprocessing.Process(target=write, args=(w,)) for w in range(3)]
    [it.start() for it in several]; [it.join() for it in several]
    assert all(it.exitcode == 0 for it in several)
print(db.execute("select count(*) from t").fetchone()[0], db.execute("pragma integrity_check").fetchone()[0])
"#;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("script.py"), SCRIPT).unwrap();
    mounted(share(folder.path(), true), |share| {
        if Command::new("python3").args(["-c", "import sqlite3"]).status().is_ok_and(|it| it.success()) {
            assert_eq!(run(share, "python3 script.py"), "240 ok\n");
        } else {
            eprintln!("NOT RUN: this machine's python3 has no sqlite3");
        }
    });
}

#[test]
fn mapped_files_and_locks_are_what_they_are_elsewhere() {
    if !have(&["python3"]) {
        return;
    }
    const SCRIPT: &str = r#"
import mmap, os, fcntl, subprocess, sys
with open("mapped", "w+b") as f:
    f.truncate(1 << 20)
    shared = mmap.mmap(f.fileno(), 1 << 20)
    private = mmap.mmap(f.fileno(), 1 << 20, flags=mmap.MAP_PRIVATE)
    shared[4090:4100] = b"0123456789"
    assert os.pread(f.fileno(), 10, 4090) == b"0123456789"
    os.pwrite(f.fileno(), b"abc", 500000)
    assert shared[500000:500003] == b"abc"
    private[0:4] = b"mine"
    assert os.pread(f.fileno(), 4, 0) == bytes(4)
    os.unlink("mapped")
    shared[700000:700004] = b"gone"
    shared.flush()
    assert os.pread(f.fileno(), 4, 700000) == b"gone"
    os.link("/proc/self/fd/%d" % f.fileno(), "x") if False else None
with open("kept", "w+b") as f:
    f.write(b"x" * 9000); f.flush()
    m = mmap.mmap(f.fileno(), 9000); m[8990:9000] = b"y" * 10; m.flush()
other = "import fcntl,sys; f=open('kept','r+b'); fcntl.%s(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
for lock in ("flock", "lockf"):
    with open("kept", "r+b") as f:
        getattr(fcntl, lock)(f, fcntl.LOCK_EX)
        assert subprocess.run([sys.executable, "-c", other % lock], stderr=subprocess.DEVNULL).returncode
        getattr(fcntl, lock)(f, fcntl.LOCK_UN)
        assert subprocess.run([sys.executable, "-c", other % lock]).returncode == 0
with open("direct", "wb") as f: f.write(b"z" * 8192)
fd = os.open("direct", os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096); assert os.preadv(fd, [page], 4096) == 4096 and page[:3] == b"zzz"
page[:3] = b"new"; assert os.pwritev(fd, [page], 0) == 4096
fd = os.open("held", os.O_CREAT | os.O_RDWR); os.mkdir("cwd"); os.chdir("cwd"); os.rmdir("../cwd")
assert os.stat(".").st_nlink == 0 and os.listdir() == []
os.chdir("..")
os.rename("held", "moved"); os.write(fd, b"moved"); assert open("moved").read() == "moved"
"#;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("script.py"), SCRIPT).unwrap();
    let ran = mounted(share(folder.path(), true), |share| _ = run(share, "python3 script.py"));
    if ran {
        let kept = fs::read(folder.path().join("kept")).unwrap();
        assert_eq!(&kept[8988..], b"xxyyyyyyyyyy");
        assert_eq!(&fs::read(folder.path().join("direct")).unwrap()[..4], b"newz");
    }
}

#[test]
fn a_guest_writes_anywhere_over_a_share_that_never_changes() {
    if !have(&["git"]) {
        return;
    }
    let folder = tree();
    run(folder.path(), "git init -q . && git add -A && git commit -qm all");
    let before = run(folder.path(), "find . -printf '%p %m %s %T@ %i\\n' | sort");
    mounted(share(folder.path(), false), |share| {
        run(
            share,
            "if touch new 2>/dev/null; then exit 1; fi
            if echo x >> dir-1/sub/file-1.c 2>/dev/null; then exit 1; fi
            over=$(mktemp -d) && mount -t tmpfs over $over && mkdir $over/up $over/work $over/all
            mount -t overlay over -o lowerdir=.,upperdir=$over/up,workdir=$over/work $over/all
            cd $over/all && git status --porcelain && echo more >> dir-1/sub/file-1.c && rm -r dir-2
            mv dir-3/sub/file-1.c dir-4 && ln dir-5/sub/file-5.c hard && chmod 600 dir-6/sub/file-6.c
            test \"$(git status --porcelain | wc -l)\" = 25 && git commit -qam changed && git fsck
            cd / && umount $over/all && umount $over && rmdir $over",
        );
    });
    assert_eq!(run(folder.path(), "find . -printf '%p %m %s %T@ %i\\n' | sort"), before);
}

#[test]
fn what_the_host_writes_is_read_and_what_the_guest_writes_too() {
    let folder = tempfile::tempdir().unwrap();
    let host = |name: &str| folder.path().join(name);
    fs::write(host("file"), vec![1; 300_000]).unwrap();
    mounted(share(folder.path(), true), |share| {
        assert!(fs::read(share.join("file")).unwrap() == vec![1; 300_000]);
        fs::File::options().write(true).open(host("file")).unwrap().write_at(&[2; 10], 100_000).unwrap();
        // Opened anew it is read anew.
        assert_eq!(
            fs::read(share.join("file")).unwrap()[99_999..100_011],
            [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]
        );
        fs::write(share.join("guests"), vec![3; 3_000_000]).unwrap();
        assert!(fs::read(host("guests")).unwrap() == vec![3; 3_000_000]);
    });
}
