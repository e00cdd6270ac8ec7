//! What kite's own build needs beside Cargo: an executable that is static whatever flags reach the compiler, and the name
//! of the commit.
//!
//! kite runs in every guest as `/init`, where there is no dynamic loader. `.cargo/config.toml` asks the compiler for a
//! static executable; `cargo install --git` does not read it, and any `RUSTFLAGS` takes its place. Then the linker is
//! asked instead: each library that the standard library names is given the archive of that name.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// The libraries that Rust's standard library links with glibc, and the archive that each is found in.
const LIBRARIES: [(&str, &str); 7] = [
    ("gcc_s", "gcc_eh"),
    ("c", "c"),
    ("m", "m"),
    ("dl", "dl"),
    ("rt", "rt"),
    ("util", "util"),
    ("pthread", "pthread"),
];
/// How many digits of a commit's name are shown.
const DIGITS: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=resources/build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        return Err("kite runs on Linux on x86-64 only; build it there, or with --target".into());
    }
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !features.split(',').any(|feature| feature == "crt-static") {
        link_statically(&out)?;
    }
    // Tests give what is built for them to guests of 64 MiB as `/init`, where it has to fit beside a kernel.
    println!("cargo::rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib");
    let commit = commit().map(|name| format!(" ({name})")).unwrap_or_default();
    println!("cargo::rustc-env=KITE_COMMIT={commit}");
    Ok(())
}

/// Has the linker make a static executable of code that was compiled for a dynamic one.
fn link_statically(out: &Path) -> Result<(), Box<dyn Error>> {
    for (library, archive) in LIBRARIES {
        fs::write(out.join(format!("lib{library}.so")), format!("INPUT(-l:lib{archive}.a)\n"))?;
    }
    for argument in [&format!("-L{}", out.display()), "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    Ok(())
}

/// The commit's name: KITE_COMMIT, which a packager sets, or that of the repository whose root this is.
fn commit() -> Option<String> {
    println!("cargo::rerun-if-env-changed=KITE_COMMIT");
    let named = env::var("KITE_COMMIT").ok().or_else(|| head(Path::new(".git")))?;
    let name = named.trim();
    let is_name = name.len() >= DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_name.then(|| name[..DIGITS].to_owned())
}

/// What a repository's HEAD is, read as gitrepository-layout(5) describes it: git itself may not be here.
fn head(git: &Path) -> Option<String> {
    // A worktree has a file that names its folder, and that folder the repository's.
    let folder = match fs::read_to_string(git) {
        Ok(text) => PathBuf::from(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => git.to_owned(),
    };
    let common = match read(&folder.join("commondir")) {
        Some(path) => folder.join(path.trim()),
        None => folder.clone(),
    };
    let head = read(&folder.join("HEAD"))?;
    let Some(reference) = head.strip_prefix("ref:") else { return Some(head) };
    let reference = reference.trim();
    read(&common.join(reference)).or_else(|| {
        let packed = read(&common.join("packed-refs"))?;
        let line = packed.lines().find(|line| line.split(' ').nth(1) == Some(reference))?;
        line.split(' ').next().map(str::to_owned)
    })
}

/// A file's text; when it changes, the commit may be another.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text)
}
