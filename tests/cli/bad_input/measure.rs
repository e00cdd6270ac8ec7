//! `--stats` and `--trace` with what cannot be.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::attempt::Attempt;
use crate::support::image::elf;
use crate::support::root;

#[test]
fn options_for_measuring_are_looked_at() {
    let attempt = Attempt::new();
    for (options, expected) in [
        (&["--stats="][..], "names no file"),
        (&["--trace="], "names no file"),
        (&["--trace"], "--trace"),
        (&["--stats", "--stats"], "--stats"),
        (&["--stats-interval", "5"], "--stats"),
        (&["--stats", "--stats-interval", "0"], "over at once"),
        (&["--stats", "--stats-interval", "often"], "5m"),
        (&["--stats", "file"], "--stats=file"),
        (&["--stats=a.json", "--trace=./a.json"], "one file"),
    ] {
        attempt.refused([&["run"], options].concat(), expected);
        attempt.refused([&["run"], options, &["--", "true"]].concat(), expected);
    }
}

#[test]
fn files_that_cannot_be_written_are_refused_before_the_guest_starts() {
    let (attempt, kernel) = Attempt::with(&elf());
    let file = attempt.file("file", b"");
    let link = attempt.path("link");
    symlink(&file, &link).unwrap();
    let hard = attempt.path("hard");
    fs::hard_link(attempt.file("precious", b"kept"), &hard).unwrap();
    let pipe = attempt.pipe("pipe");
    let inside = file.join("stats.json");
    for (path, expected) in [
        ("/dev/null", "is not a regular file"),
        ("/", "is not a regular file"),
        ("..", "is not a regular file"),
        ("none/stats.json", ": cannot write none/stats.json: there is no folder none"),
        (link.to_str().unwrap(), "is a symbolic link"),
        (hard.to_str().unwrap(), "has another name"),
        (pipe.to_str().unwrap(), "is not a regular file"),
        (inside.to_str().unwrap(), "is not a folder"),
    ] {
        for option in ["--stats", "--trace"] {
            attempt.kernel_refused(&kernel, &[&format!("{option}={path}")], expected);
        }
    }
}

#[test]
fn a_folder_that_kite_may_not_write_to_is_told_of() {
    needs!(root());
    let (attempt, kernel) = Attempt::with(&elf());
    let kite = attempt.kite();
    let folder = attempt.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let option = format!("--stats={}", folder.join("stats.json").display());
    attempt.refused_to_nobody(&kite, &kernel, &[&option], "stats.json: no file can be made in its folder");
}
