# Debian packages of pinned versions, unpacked into `$root` in the script's `$folder`. Sourced by findings.
#
# Nothing is installed on the machine: apt gets a configuration of its own, whose one source is the machine's first Debian
# entry under another suite's name, and the packages are unpacked, not configured. Needs root, apt and dpkg.

root=$folder/root
# What findings import.
PYTHONPATH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH PYTHONDONTWRITEBYTECODE=1

# The address of this machine's own Debian archive.
archive() {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' '
}

# debian FOLDER SUITE PACKAGE=VERSION...: FOLDER becomes a root folder that has these packages and what they need.
debian() {
  local root=$1 suite=$2 apt=$1.apt package
  shift 2
  mkdir -p "$root" "$apt/lists/partial" "$apt/archives/partial" "$apt/parts"
  : >"$apt/status"
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$(archive)" "$suite" \
    /usr/share/keyrings/debian-archive-keyring.gpg >"$apt/parts/finding.sources"
  cat >"$apt/conf" <<CONF
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$apt/parts";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
APT::Sandbox::User "root";
APT::Architecture "amd64";
Acquire::Languages "none";
CONF
  APT_CONFIG=$apt/conf apt-get -q update >"$apt/log" 2>&1 || { cat "$apt/log" >&2; exit 2; }
  APT_CONFIG=$apt/conf apt-get -q -y --no-install-recommends --download-only install libc6 "$@" >"$apt/log" 2>&1 || {
    echo "these versions cannot be had any more: $*" >&2
    exit 2
  }
  for package in "$apt"/archives/*.deb; do dpkg --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink; done
  rm -rf "$apt"
  for package in bin sbin lib lib64; do [ -e "$root/$package" ] || ln -s "usr/$package" "$root/$package"; done
  mkdir -p "$root"/{proc,dev,sys,run,tmp,root,data}
}

# inside ROOT COMMAND...: runs a command in such a root folder, in a mount namespace of its own.
inside() {
  local root=$1
  shift
  # shellcheck disable=SC2016 # The inner shell expands it.
  unshare --mount bash -euc 'root=$1; shift
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    cd /
    HOME=/root PATH=/usr/bin:/usr/sbin exec chroot "$root" "$@"' bash "$root" "$@"
}
