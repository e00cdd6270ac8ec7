#!/usr/bin/env bash
# One would guess that ruzstd's `StreamingDecoder`, read to its end, gives what zstd(1) gives: all that a .zst file holds.
# It gives the first frame and then its end, without an error: what stands behind is lost silently. A zstd stream may have
# any number of frames (RFC 8878 §3), as `cat a.zst b.zst`, pzstd and seekable formats make them. The rest stays in the reader, and a
# caller has to make a decoder again for each frame until nothing is there.
# Versions: ruzstd 0.9.1.
# Hurt: those who unpack kernel modules, firmware or image layers with it: a file that is short looks whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/crate.bash
. "$(dirname "$0")/lib/crate.bash"
dependencies 'ruzstd = "=0.9.1"'
cat >"$folder/src/main.rs" <<'RUST'
use std::io::Read;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{compress_to_vec, CompressionLevel};

fn main() {
    let frames: Vec<u8> = ["one, ", "two"]
        .iter()
        .flat_map(|text| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest))
        .collect();
    let mut rest = frames.as_slice();
    let mut text = String::new();
    let mut decoder = StreamingDecoder::new(&mut rest).expect("a frame begins");
    let read = decoder.read_to_string(&mut text);
    drop(decoder);
    println!("two frames, read to the end: {text:?}, {read:?}; {} bytes are not read", rest.len());
    assert!(matches!(read, Ok(5)) && text == "one, " && !rest.is_empty(), "this has changed");
}
RUST
cd "$folder"
cargo run --quiet
