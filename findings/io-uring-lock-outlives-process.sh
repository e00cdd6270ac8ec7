#!/usr/bin/env bash
# One would guess that a process's file locks are gone once wait(2) has returned for it, as close(2) at its end gives them back.
# An open-file-description lock on a file that is registered with an io_uring stays for a while: the kernel takes rings down
# behind the process's end, on a worker thread, and their files with them. The next process that wants the lock is refused
# for a holder that does not exist any more. Unregistering the files before the end, or waiting for the lock, helps.
# Versions: io-uring 0.7.12 (the crate) on Linux 6.18; any kernel that runs this is named in the output.
# Hurt: programs that lock disk images and use rings for them: `run; run` fails now and then with "in use".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/crate.bash
. "$(dirname "$0")/lib/crate.bash"
dependencies 'io-uring = "=0.7.12"' 'libc = "=0.2.177"'
cat >"$folder/src/main.rs" <<'RUST'
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{exit, Command};
use std::time::Instant;

fn lock(file: &File) -> bool {
    // SAFETY: a structure of plain numbers; the call reads it.
    unsafe {
        let mut whole: libc::flock = std::mem::zeroed();
        whole.l_type = libc::F_WRLCK as _;
        libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) == 0
    }
}

fn open(path: &str) -> File {
    File::options().read(true).write(true).open(path).expect("the file opens")
}

/// Locks the file, registers it with a ring if that is wanted, and ends.
fn holder(path: &str, registers: bool) -> ! {
    let file = open(path);
    if !lock(&file) {
        exit(3);
    }
    let Ok(ring) = io_uring::IoUring::new(8) else { exit(2) };
    if registers && ring.submitter().register_files(&[file.as_raw_fd()]).is_err() {
        exit(2);
    }
    exit(0)
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, path, how] = &words[..] {
        holder(path, how == "registered");
    }
    let mut refused = [0, 0];
    let mut longest = 0;
    for _ in 0..20 {
        for (index, how) in ["open", "registered"].into_iter().enumerate() {
            let path = format!("{}.{index}", words[1]);
            File::create(&path).expect("the file is made");
            let status = Command::new(&words[0]).args([&path, how]).status().expect("it runs");
            if status.code() != Some(0) {
                println!("io_uring cannot be used here");
                exit(2);
            }
            let since = Instant::now();
            let file = open(&path);
            if !lock(&file) {
                refused[index] += 1;
                while !lock(&file) {
                    std::thread::yield_now();
                }
                longest = longest.max(since.elapsed().as_millis());
            }
        }
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("Linux {}", kernel.trim());
    println!("lock refused after the holder's end, file only open: {} of 20", refused[0]);
    println!("lock refused after the holder's end, file registered: {} of 20, {longest} ms at most", refused[1]);
    exit(i32::from(!(refused[0] == 0 && refused[1] > 0)));
}
RUST
cd "$folder"
cargo build --quiet
"$(find "$folder/target" -name finding -type f -perm -100 | sed 1q)" "$folder/file"
