# A crate in the script's `$folder`: its source goes to `$folder/src/main.rs`. Sourced by findings.

export CARGO_HOME=$folder/cargo CARGO_TARGET_DIR=$folder/target
unset RUSTFLAGS
mkdir "$folder/src"

# dependencies 'NAME = "=VERSION"'...: makes the crate's manifest.
dependencies() {
  printf '[package]\nname = "finding"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\n' >"$folder/Cargo.toml"
  printf '%s\n' "$@" >>"$folder/Cargo.toml"
}
