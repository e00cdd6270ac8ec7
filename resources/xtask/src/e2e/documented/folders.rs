//! Folders that have what commands of the documentation name: kernels, disks, a kernel's tree, tests.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use boot::initramfs;
use tempfile::TempDir;

use crate::debian;
use crate::e2e::limits::LoopDevice;
use crate::e2e::wire::{PEER, Wire, ip};
use crate::e2e::{Fixture, Started};
use crate::guest::job;
use crate::machine::sandbox;
use crate::step::output;

/// Where the tap of an example is, and its own address.
const EXAMPLE: (&str, &str) = ("tap0", "192.0.2.1/24");

/// Goes into a mount namespace that has the kernels, and runs a line there.
pub const ENTER: &str = r#"
set -e
# A host without a kernel of its own has neither.
mkdir -p /boot /lib/modules
mount --bind "$HOME/boot" /boot
mount --bind "$HOME/modules" /lib/modules
mount --bind "$HOME/hosts" /etc/hosts
case $1 in
    *arch/x86/*|*tools/testing*) cd "$HOME/linux" ;;
    *) cd "$HOME/work" ;;
esac
# Has a machine of that name run until the line has ended.
machine() {
    local id=$1; shift
    kite run --id "$id" "$@" -- sleep 1000 < /dev/null > "$id.log" 2>&1 &
    machines+=($!)
    for _ in {1..100}; do
        kite list | grep -q "^$id " && return
        sleep 1
    done
    cat "$id.log"
    return 1
}
machines=()
trap 'test ${#machines[@]} = 0 || kill "${machines[@]}"; wait' EXIT
case $1 in *'git bisect'*) git bisect start HEAD HEAD~2 > /dev/null ;; esac
set +e
eval "$1"
"#;

/// Makes what has to be no file of this program's: $HOME is the folder.
const MAKE: &str = r#"
set -e
cd "$HOME"
mkdir -p .config .zfunc .config/fish/completions .local/share/bash-completion/completions
cat /etc/hosts > hosts; echo "$PEER example.org" >> hosts

cd work
mkdir -p data old new 6.1 out/lib/modules x86 logs rootfs
for name in vmlinuz bzImage old/bzImage new/bzImage 6.1/bzImage; do ln -s "$KERNEL" $name; done
ln -s "$VMLINUX" vmlinux
ln -s "$HOME/modules/$RELEASE" out/lib/modules/
ln -s "$RESOURCES" resources
truncate -s 1M data.img disk.img
printf '#!/bin/sh\necho tested\n' > test
printf '#!/bin/sh\nprintf "TAP version 13\\n1..2\\nok 1 a\\nok 2 b\\n"\n' > ktap-test
printf 'check:\n\techo checked\n' > Makefile
chmod +x test ktap-test
for file in /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*'); do cp -L --parents "$file" rootfs; done
mkdir -p rootfs/dev rootfs/proc rootfs/sys rootfs/run rootfs/tmp
cat > kernels.toml <<END
[[kernel]]
name = "one"
path = "bzImage"
[[kernel]]
name = "two"
path = "6.1/bzImage"
[[command]]
name = "boot"
run = ["true"]
END
cp x86.flat x86/vmexit.flat
mkdir -p "$HOME/kvm-unit-tests"
for name in apic ioapic; do
    cp x86.flat "$HOME/kvm-unit-tests/$name.flat"
    printf '[%s]\nfile = %s.flat\n' $name $name >> "$HOME/kvm-unit-tests/unittests.cfg"
done

cd "$HOME/linux"
mkdir -p arch/x86/boot tools/testing/selftests
cp "$KERNEL" arch/x86/boot/bzImage
ln -s "$HOME/modules" lib
printf 'run_tests:\n\t@echo "ok 1 selftests: all"\n' > tools/testing/selftests/Makefile
printf '#!/bin/sh\necho tested > written\n' > test
printf '#!/bin/sh\ngrep -q good state\n' > reproducer
chmod +x test reproducer
git init -q .
git config user.email a@b; git config user.name a; git config commit.gpgsign false
for state in good good bad; do
    echo $state > state; echo >> count
    git add state count reproducer; git commit -q -m $state
done
"#;

/// A Multiboot image that ends with a pass: port 0xf4 gets a 0 (Multiboot 0.6.96, "The address fields of Multiboot header").
fn passing() -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const HEADER: u32 = 32;
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
    let words = [magic, flags, 0u32.wrapping_sub(magic.wrapping_add(flags)), BASE, BASE, 0, 0, BASE + HEADER];
    let mut image: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    // mov dx, 0xf4; xor al, al; out dx, al; hlt
    image.extend(b"\x66\xba\xf4\x00\x30\xc0\xee\xf4");
    image
}

/// The folders, and the network and the device beside them.
pub struct Folders {
    home: TempDir,
    release: String,
    disk: LoopDevice,
    _wire: Wire,
    _server: Started,
}

impl Folders {
    /// Makes them.
    ///
    /// # Errors
    /// The host lacks a program, or a loop device.
    pub fn new(fixture: &Fixture) -> Result<Self> {
        let home = tempfile::tempdir().context("making a folder")?;
        let at = |path: &str| home.path().join(path);
        for folder in ["bin", "boot", "work", "linux"] {
            fs::create_dir(at(folder)).context("making a folder")?;
        }
        let kernel = &fixture.kernel;
        let link = |from: &Path, to: &str| symlink(from, at(to)).with_context(|| format!("linking {to}"));
        link(fixture.program()?, "bin/kite")?;
        fs::copy(kernel.bz_image(), at(&format!("boot/vmlinuz-{}", kernel.release)))
            .context("copying a kernel")?;
        link(kernel.modules().parent().context("modules are in a folder")?, "modules")?;
        debian::copy(&fixture.debian.disk(), &at("work/debian.img"))?;
        job::write_initrd(kernel, "test -b /dev/vda", "virtio_mmio", &at("work/initrd.img"))?;
        let init = Arc::new(File::open(fixture.program()?).context("opening kite")?);
        let mut root = File::create(at("work/rootfs.cpio.gz")).context("making an initrd")?;
        // Without modules: kite as init and nothing else.
        initramfs::standard(init, &[], &[])?.write_to(&mut root).context("writing an initrd")?;
        fs::write(at("work/x86.flat"), passing()).context("writing an image")?;
        let wire = Wire::new(None)?;
        let (tap, address) = EXAMPLE;
        ip(&format!("tuntap add {tap} mode tap"))?;
        ip(&format!("addr add {address} dev {tap}"))?;
        ip(&format!("link set {tap} up"))?;
        fs::write(at("index.html"), "served\n").context("writing a page")?;
        let mut server = wire.at_peer("python3");
        server.args(["-m", "http.server", "80", "--directory"]).arg(home.path());
        let server = Started::new(server.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let disk = LoopDevice::new(&at("limited.img"))?;
        let this = Self { home, release: kernel.release.clone(), disk, _wire: wire, _server: server };
        let mut make = Command::new("bash");
        make.args(["-c", MAKE]).env("HOME", this.home.path()).env("RELEASE", &this.release).env("PEER", PEER);
        make.env("KERNEL", kernel.bz_image()).env("VMLINUX", kernel.elf());
        make.env(
            "RESOURCES",
            crate::host::root().join("resources").canonicalize().context("finding the tree")?,
        );
        output(&mut make)?;
        Ok(this)
    }

    /// Gives a command these folders.
    pub fn describe(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.home.path().join("bin").display()));
        command.env("HOME", self.home.path()).env("RELEASE", &self.release).env("DISK", &self.disk.0);
        command.env("KITE_SANDBOX", sandbox()).env_remove("KITE_KERNEL").env_remove("XDG_CONFIG_HOME");
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        // It may be gone.
        let _ = ip(&format!("link delete {}", EXAMPLE.0));
    }
}
