//! What libFuzzer drives: the target that `KITE_FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn named() -> fn(&[u8]) {
    let name = std::env::var("KITE_FUZZ_TARGET").unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| {
        let names: Vec<&str> = fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("no fuzz target {name:?}; there are: {}", names.join(", "));
        std::process::exit(2);
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET.get_or_init(named)(data));
