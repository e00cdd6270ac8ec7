# A program that uses KVM, as the first process of a machine that QEMU emulates with SVM. Sourced by findings.
# shellcheck source=findings/lib/debian.bash
. "$(dirname "${BASH_SOURCE[0]}")/debian.bash"
# shellcheck source=findings/lib/crate.bash
. "$(dirname "${BASH_SOURCE[0]}")/crate.bash"

debian "$root" trixie qemu-system-x86=1:10.0.13+ds-0+deb13u1 linux-image-6.12.117+deb13-amd64=6.12.117-1
dependencies 'kvm-ioctls = "=0.25.1"' 'kvm-bindings = { version = "=0.14.2", features = ["fam-wrappers"] }' 'libc = "=0.2.177"'
cp "$PYTHONPATH/kvm.rs" "$folder/src/machine.rs"
cp "$root"/boot/vmlinuz-* "$root/data/vmlinuz"

# emulate: builds the crate and runs it with kvm_amd loaded; shows what it prints, which is in `$folder/output` too, and ends
# with 2 if it does not come to its end.
emulate() {
  local target=x86_64-unknown-linux-gnu
  (cd "$folder" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --target "$target")
  python3 "$PYTHONPATH/initrd.py" "$root" "$folder/target/$target/release/finding" "$root/data/initrd"
  inside "$root" qemu-system-x86_64 -version | sed 1q
  # A busy machine's clock is uneven: the kernel need not check its timer against it.
  inside "$root" qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 512 -display none -serial stdio -monitor none -no-reboot \
    -kernel /data/vmlinuz -initrd /data/initrd -append 'console=ttyS0 quiet panic=-1 no_timer_check' </dev/null |
    tr -d '\r' >"$folder/serial" || exit 2
  # The kernel's own lines begin with a time.
  sed -n '/^Linux /,/^done$/{/^\[ /d;/^done$/d;p}' "$folder/serial" >"$folder/output"
  grep -qx "done" "$folder/serial" || { cat "$folder/serial" && exit 2; }
  cat "$folder/output"
}
