#!/usr/bin/env bash
# The steps of the action: install, kvm, run. All input is in the environment (see action.yml), and each of it stays one
# argument: nothing is split, expanded or evaluated here.
set -euo pipefail

fail() {
    printf 'kite action: %s\n' "$1" >&2
    # Named as kite names its own failures.
    exit 125
}

# Puts kite where the next steps find it.
install_kite() {
    local folder="${RUNNER_TEMP:?is set by the runner}/kite-action/bin"
    mkdir -p "$folder"
    if [ -n "${KITE_URL:-}" ]; then
        fetch "$KITE_URL" "$folder/kite"
    else
        build "$folder/kite"
    fi
    chmod 0755 "$folder/kite"
    "$folder/kite" --version
    printf '%s\n' "$folder" >>"${GITHUB_PATH:?is set by the runner}"
}

# Whole or not at all: what was fetched gets its name once it is what was asked for.
fetch() {
    local url="$1" binary="$2" sum
    case "$url" in
    https://*) ;;
    *) fail "url: only https is fetched" ;;
    esac
    curl --fail --silent --show-error --location --proto '=https' --retry 3 --output "$binary.part" -- "$url" ||
        fail "the url cannot be fetched"
    if [ -n "${KITE_SHA256:-}" ]; then
        sum=$(sha256sum <"$binary.part")
        [ "${sum%% *}" = "${KITE_SHA256,,}" ] || fail "sha256: what was fetched has ${sum%% *}"
    fi
    mv -- "$binary.part" "$binary"
}

build() {
    local binary="$1" checkout target="${RUNNER_TEMP}/kite-action/target"
    command -v cargo >/dev/null || fail "there is no cargo to build kite with; give a url"
    checkout=$(cd -- "${GITHUB_ACTION_PATH:?is set by the runner}/../.." && pwd)
    # In the checkout, whose configuration cargo then reads; into a folder for each target, or none.
    (cd -- "$checkout" && CARGO_TARGET_DIR="$target" cargo build --release --locked --package kite)
    local built
    for built in "$target"/*/release/kite "$target"/release/kite; do
        if [ -f "$built" ]; then
            cp -- "$built" "$binary"
            return
        fi
    done
    fail "cargo has built no kite"
}

# Hosted runners have /dev/kvm, for root only.
make_kvm_accessible() {
    [ -e /dev/kvm ] || fail "this runner has no /dev/kvm; GitHub's hosted Linux runners for x86-64 have it"
    if is_accessible; then
        return
    fi
    local rule='KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"'
    printf '%s\n' "$rule" | sudo tee /etc/udev/rules.d/99-kite-kvm.rules >/dev/null
    sudo udevadm control --reload-rules
    sudo udevadm trigger --name-match=kvm
    sudo udevadm settle
    is_accessible || fail "/dev/kvm is still not accessible"
}

is_accessible() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ]
}

# One argument a line; lines that are empty or begin with # are none. What is around them in a workflow's text is cut.
read_options() {
    local line
    while IFS= read -r line || [ -n "$line" ]; do
        line="${line#"${line%%[![:space:]]*}"}"
        line="${line%"${line##*[![:space:]]}"}"
        case "$line" in
        '' | '#'*) ;;
        *) options+=("$line") ;;
        esac
    done <<<"${INPUT_OPTIONS:-}"
}

run_kite() {
    [ -n "${INPUT_COMMAND:-}" ] || fail "command is empty"
    local options=() status=0
    if [ -n "${INPUT_KERNEL:-}" ]; then options+=("--kernel=$INPUT_KERNEL"); fi
    if [ -n "${INPUT_JUNIT:-}" ]; then options+=("--junit=$INPUT_JUNIT"); fi
    if [ -n "${INPUT_SCREENSHOT:-}" ]; then options+=("--screenshot-on-failure=$INPUT_SCREENSHOT"); fi
    read_options
    # The inputs are kite's, not its guest's.
    local script="$INPUT_COMMAND"
    unset INPUT_COMMAND INPUT_KERNEL INPUT_OPTIONS INPUT_JUNIT INPUT_SCREENSHOT
    kite run "${options[@]}" -- sh -c "$script" </dev/null || status=$?
    printf 'status=%d\n' "$status" >>"${GITHUB_OUTPUT:?is set by the runner}"
    exit "$status"
}

case "${1:-}" in
install) install_kite ;;
kvm) make_kvm_accessible ;;
run) run_kite ;;
*) fail "usage: run.sh install|kvm|run" ;;
esac
