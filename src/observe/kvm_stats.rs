//! KVM's own counters of a vCPU (KVM API, KVM_GET_STATS_FD): how often it exited and why, in kite or in the kernel. Linux
//! has had them since 5.14.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVM_STATS_TYPE_MASK, KVM_STATS_TYPE_PEAK};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

/// What kvm-ioctls does not have.
mod request {
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

/// Bytes of `struct kvm_stats_header`.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` without the name.
const DESCRIPTOR: usize = 16;
/// No KVM has descriptors or values of so many bytes.
const MOST: usize = 1 << 20;

/// Where a vCPU's counters are. Any thread may read them while the vCPU runs; not after its virtual machine is gone,
/// which some kernels then look at all the same.
pub struct KvmStats {
    file: File,
    /// Where the values begin in the file, in bytes.
    start: u64,
    /// How many bytes from there hold all values.
    len: usize,
    /// Each counter's name, and its place in bytes from the start of the values.
    places: Vec<(String, usize)>,
}

impl KvmStats {
    /// The counters of `vcpu`; nothing if this KVM has none, or the process has no descriptor left.
    pub fn of_vcpu(vcpu: &VcpuFd) -> Option<Self> {
        Self::of_file(open(vcpu)?)
    }

    /// Understands the file, which describes itself.
    fn of_file(file: File) -> Option<Self> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let field = |index: usize| u32_at(&header, index * 4);
        let (name_len, count, descriptors_at, start) = (field(1)?, field(2)?, field(4)?, field(5)?);
        let each = DESCRIPTOR.checked_add(name_len as usize)?;
        let mut descriptors = vec![0; each.checked_mul(count as usize).filter(|len| *len <= MOST)?];
        file.read_exact_at(&mut descriptors, descriptors_at.into()).ok()?;
        let places: Vec<_> = descriptors.chunks_exact(each).filter_map(place).collect();
        let len = places.iter().map(|(_, at)| at + 8).max()?;
        Some(Self { file, start: start.into(), len, places })
    }

    /// All counters and their values now, in KVM's order; nothing if they cannot be read. They are read one after
    /// another: of a vCPU that runs, a later one may count an exit that an earlier one does not.
    pub fn read(&self) -> Vec<(String, u64)> {
        let mut values = vec![0; self.len];
        if self.file.read_exact_at(&mut values, self.start).is_err() {
            return Vec::new();
        }
        let value = |at: usize| Some(u64::from_ne_bytes(values.get(at..at + 8)?.try_into().ok()?));
        self.places.iter().filter_map(|(name, at)| Some((name.clone(), value(*at)?))).collect()
    }
}

/// The name and the place of what a descriptor describes; nothing for a histogram, which is more than one number.
fn place(descriptor: &[u8]) -> Option<(String, usize)> {
    let kind = u32_at(descriptor, 0)? & KVM_STATS_TYPE_MASK;
    let size = u16::from_ne_bytes(descriptor.get(6..8)?.try_into().ok()?);
    let at = u32_at(descriptor, 8)? as usize;
    let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
    let single = kind <= KVM_STATS_TYPE_PEAK && size == 1 && at < MOST;
    single.then(|| (String::from_utf8_lossy(name).into_owned(), at))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[expect(unsafe_code, reason = "kvm-ioctls does not have this request")]
fn open(vcpu: &VcpuFd) -> Option<File> {
    // SAFETY: the descriptor is a vCPU's, and this request has no argument.
    let fd = unsafe { ioctl(vcpu, request::KVM_GET_STATS_FD()) };
    // SAFETY: the descriptor is new, and owned here alone.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const NAME_LEN: usize = 16;

    /// A file as KVM has it, of these descriptors (flags, size, offset, name) and values.
    fn file(descriptors: &[(u32, u16, u32, &str)], values: &[u64]) -> File {
        let descriptors_at = HEADER as u32;
        let start = descriptors_at + (descriptors.len() * (DESCRIPTOR + NAME_LEN)) as u32;
        let header = [0, NAME_LEN as u32, descriptors.len() as u32, 0, descriptors_at, start];
        let mut bytes: Vec<u8> = header.iter().flat_map(|field| field.to_ne_bytes()).collect();
        for (flags, size, offset, name) in descriptors {
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(0i16.to_ne_bytes());
            bytes.extend(size.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            let mut field = name.as_bytes().to_vec();
            field.resize(NAME_LEN, 0);
            bytes.extend(field);
        }
        bytes.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn counters_come_with_their_names_and_histograms_are_left_out() {
        let descriptors =
            [(0x00, 1, 8, "exits"), (0x14, 2, 16, "halt_wait_hist"), (0x01, 1, 32, "guest_mode")];
        let stats = KvmStats::of_file(file(&descriptors, &[1, 22, 3, 4, 5])).unwrap();
        assert_eq!(stats.read(), [("exits".to_owned(), 22), ("guest_mode".to_owned(), 5)]);
    }

    #[test]
    fn a_file_that_makes_no_sense_has_no_counters() {
        assert!(KvmStats::of_file(file(&[], &[])).is_none());
        let mut short = tempfile::tempfile().unwrap();
        short.write_all(&[0xff; HEADER]).unwrap();
        assert!(KvmStats::of_file(short).is_none());
        let beyond = KvmStats::of_file(file(&[(0, 1, 800, "exits")], &[1])).unwrap();
        assert_eq!(beyond.read(), []);
    }
}
