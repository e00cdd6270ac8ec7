//! The control socket: commands that find machines that run, and what they do to them.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::Kite;
use crate::support::{KITE, kvm, until};

guest!(
    // Each pixel is its number; then it waits for ever.
    SHOWS_NUMBERS,
    map_apics!(),
    "mov ebx, 0x201800
     mov dword ptr [rbx], 0xe0000083
     mov edi, 0xe0000000
     xor eax, eax
     2: mov [rdi + rax * 4], eax
     inc eax
     cmp eax, 4096
     jb 2b",
    say!("'D'"),
    "3: pause
     jmp 3b"
);
guest!(ENDS_AT_ONCE, power_off!());

/// A name that no other test's machine has.
fn name(of: &str) -> String {
    format!("tiny-{}-{of}", std::process::id())
}

/// A command of kite's.
fn command(arguments: &[&str]) -> Output {
    Command::new(KITE).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `kite list` says of a machine.
fn listed(id: &str) -> Option<Value> {
    let output = command(&["list", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["schema"], "list/1");
    list["machines"].as_array().unwrap().iter().find(|machine| machine["id"] == id).cloned()
}

/// A machine that draws, once it has drawn.
fn drawing(id: &str, options: &[&str]) -> Kite {
    let id = format!("--id={id}");
    let options: Vec<_> = ["--screen=64x64", &id].into_iter().chain(options.iter().copied()).collect();
    let mut kite = Kite::run(&SHOWS_NUMBERS, &options);
    kite.expect(b"D");
    kite
}

/// The pixels of a picture of 64x64 pixels.
fn pixels(path: &Path) -> Vec<u32> {
    let png = fs::read(path).unwrap();
    assert_eq!(png[12..26], *b"IHDR\0\0\0\x40\0\0\0\x40\x08\x02");
    let len = u32::from_be_bytes(png[33..37].try_into().unwrap()) as usize;
    let mut rows = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(&png[41..41 + len]), &mut rows).unwrap();
    let rows = rows.chunks(1 + 64 * 3).flat_map(|row| row[1..].chunks(3));
    rows.map(|pixel| u32::from_be_bytes([0, pixel[0], pixel[1], pixel[2]])).collect()
}

#[test]
fn a_machine_is_found_while_it_runs_and_shows_its_screen() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("screen.png");
    let file = path.to_str().unwrap();
    for sandbox in ["--sandbox=auto", "--sandbox=none"] {
        let id = name("found");
        let kite = drawing(&id, &[sandbox]);
        let machine = listed(&id).unwrap();
        assert_eq!((&machine["pid"], &machine["screen"]), (&kite.child_id().into(), &true.into()));
        for _ in 0..2 {
            let output = command(&["screenshot", &id, file]);
            assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
            assert!(pixels(&path).into_iter().eq(0..4096));
            fs::remove_file(&path).unwrap();
        }
        kite.signal(Signal::SIGTERM);
        kite.end();
        assert_eq!(listed(&id), None);
        let output = command(&["screenshot", &id, file]);
        assert_eq!(output.status.code(), Some(125));
        let said = text(&output.stderr);
        assert_eq!(said, format!("kite: no machine named {id} runs: `kite list` shows those that do\n"));
        assert!(!path.exists());
    }
}

#[test]
fn a_machine_with_a_screen_and_no_name_is_found_by_its_number() {
    needs!(kvm());
    let mut kite = Kite::run(&SHOWS_NUMBERS, &["--screen=64x64"]);
    kite.expect(b"D");
    let id = kite.child_id().to_string();
    assert!(listed(&id).is_some());
    kite.signal(Signal::SIGTERM);
    kite.end();
    assert_eq!(listed(&id), None);
}

#[test]
fn a_name_is_one_machine_s_at_a_time_and_taken_over_from_one_that_was_killed() {
    needs!(kvm());
    let id = name("taken");
    let option = format!("--id={id}");
    let mut first = drawing(&id, &[]);
    let second = Kite::run(&ENDS_AT_ONCE, &[&option]).end();
    assert_eq!(second.status.code(), Some(125));
    let why = format!("a machine named {id} runs already: choose another --id");
    assert!(second.stderr.contains(&why) && second.stderr.lines().count() == 1, "{}", second.stderr);
    assert!(listed(&id).is_some());
    first.kill();
    first.end();
    assert_eq!(listed(&id), None);
    Kite::run(&ENDS_AT_ONCE, &[&option]).end().assert(0, "", "");
}

#[test]
fn a_machine_without_a_screen_says_so() {
    needs!(kvm());
    let id = name("blind");
    let option = format!("--id={id}");
    let kite = Kite::run(&SHOWS_NOTHING, &[&option]);
    until("the machine to be found", || listed(&id).is_some());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("screen.png");
    let output = command(&["screenshot", &id, path.to_str().unwrap()]);
    let why = format!("kite: machine {id} has no screen: it was started without --screen\n");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(125), why));
    kite.signal(Signal::SIGTERM);
    kite.end();
}

guest!(
    SHOWS_NOTHING,
    "3: pause
     jmp 3b"
);

guest!(
    // It counts, in the first pixel.
    SHOWS_A_COUNT,
    map_apics!(),
    "mov ebx, 0x201800
     mov dword ptr [rbx], 0xe0000083
     mov edi, 0xe0000000",
    say!("'C'"),
    "mov edi, 0xe0000000
     2: inc dword ptr [rdi]
     and dword ptr [rdi], 0xffffff
     jmp 2b"
);

/// A machine that counts in its first pixel.
fn counting(id: &str) -> Kite {
    let id = format!("--id={id}");
    let mut kite = Kite::run(&SHOWS_A_COUNT, &["--screen=64x64", &id]);
    kite.expect(b"C");
    kite
}

#[track_caller]
fn done(arguments: &[&str]) {
    let output = command(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {}", text(&output.stderr));
}

#[test]
fn a_paused_machine_stays_where_it_is_and_goes_on_there() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("screen.png");
    let id = name("paused");
    let kite = counting(&id);
    let count = || {
        done(&["screenshot", &id, path.to_str().unwrap()]);
        pixels(&path)[0]
    };
    let first = count();
    until("the guest to count", || count() != first);
    for _ in 0..3 {
        // Twice is once.
        done(&["pause", &id]);
        done(&["pause", &id]);
        assert_eq!(listed(&id).unwrap()["state"], "paused");
        let paused = count();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(count(), paused);
        done(&["resume", &id]);
        assert_eq!(listed(&id).unwrap()["state"], "running");
        until("the guest to go on", || count() != paused);
    }
    done(&["resume", &id]);
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}

#[test]
fn a_machine_is_stopped_whether_it_runs_or_is_paused() {
    needs!(kvm());
    for is_paused in [false, true] {
        let id = name("stopped");
        let kite = counting(&id);
        if is_paused {
            done(&["pause", &id]);
        }
        done(&["stop", &id]);
        assert_eq!(listed(&id), None);
        kite.end().assert_killed_by(Signal::SIGTERM);
    }
}

#[test]
fn a_machine_that_does_not_end_is_killed() {
    needs!(kvm());
    let id = name("stuck");
    let kite = counting(&id);
    // A process that is stopped takes no signal but the last one.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(kite.id() as i32), Signal::SIGSTOP).unwrap();
    done(&["stop", &id, "--timeout=1s"]);
    assert_eq!(listed(&id), None);
    let end = kite.end();
    assert_eq!(end.status.signal(), Some(Signal::SIGTERM as i32));
    assert_eq!(end.stderr, "kite: the machine did not end within 1 s of SIGTERM, and was killed\n");
}
