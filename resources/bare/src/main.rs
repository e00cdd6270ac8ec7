//! The least that runs a guest: `bare KERNEL BYTES` makes kite's virtual machine (memory, interrupt controllers, COM1's
//! line, one vCPU with KVM's CPUID) in the quickest order, maps the kernel privately from its file, enters it, and
//! passes on what it writes to COM1. No options, no devices, no boot parameters, no thread, no tidy errors.
//!
//! `cargo xtask bench start` measures kite against it. A kernel that looks at its boot parameters does not get far.
#![expect(unsafe_code, reason = "maps memory and hands it to KVM")]

mod image;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::image::{Image, Segment};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PAGE: u64 = 4096;
/// The addresses that kite uses (`boot::layout`).
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;
const PAGE_TABLES: usize = 0x9000;
const COM1: u16 = 0x3f8;
const COM1_GSI: u32 = 4;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kernel, bytes] = arguments.as_slice() else { return Err("usage: bare KERNEL BYTES".into()) };
    let file = File::open(kernel)?;
    let image = Image::read(&file)?;
    let ram = map_ram(bytes.parse()?)?;
    for segment in &image.segments {
        load(ram, &file, segment)?;
    }
    // Memory slots come first: with interrupt controllers or a vCPU there, KVM waits for their readers.
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        memory_size: ram.len() as u64,
        userspace_addr: ram.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the memory stays mapped until the process ends.
    unsafe { vm.set_user_memory_region(region)? };
    let _line = interrupts(&vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    set_registers(&vcpu, &image, ram)?;
    run(&mut vcpu)
}

/// Passes on what the guest writes to COM1, for ever.
fn run(vcpu: &mut VcpuFd) -> Result<()> {
    let mut out = std::io::stdout().lock();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(COM1, data) => {
                out.write_all(data)?;
                out.flush()?;
            }
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
            exit => return Err(format!("{exit:?}").into()),
        }
    }
}

/// The interrupt controllers, and COM1's line into them.
fn interrupts(vm: &VmFd) -> Result<EventFd> {
    vm.set_identity_map_address(IDENTITY_MAP)?;
    vm.set_tss_address(TSS)?;
    vm.create_irq_chip()?;
    let line = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&line, COM1_GSI)?;
    Ok(line)
}

fn map_ram(len: usize) -> Result<&'static mut [u8]> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: a new mapping, which no other memory is in the way of.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, PROT_READ | PROT_WRITE, flags, -1, 0) };
    if at == MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the mapping is `len` readable and writable bytes, and is never unmapped.
    Ok(unsafe { std::slice::from_raw_parts_mut(at.cast(), len) })
}

/// Maps the whole pages of a segment and reads the rest.
fn load(ram: &mut [u8], file: &File, segment: &Segment) -> Result<()> {
    let start = usize::try_from(segment.address)?;
    let len = usize::try_from(segment.len)?;
    let to = start
        .checked_add(len)
        .and_then(|end| ram.get_mut(start..end))
        .ok_or("a segment is outside memory")?;
    let aligned = segment.address.is_multiple_of(PAGE) && segment.offset.is_multiple_of(PAGE);
    let mapped = if aligned { len - len % PAGE as usize } else { 0 };
    if mapped > 0 {
        let flags = MAP_PRIVATE | MAP_FIXED;
        let offset = segment.offset as libc::off_t;
        // SAFETY: replaces pages of `ram` that nothing refers to by others of the same kind.
        let at = unsafe {
            libc::mmap(
                to.as_mut_ptr().cast(),
                mapped,
                PROT_READ | PROT_WRITE,
                flags,
                file.as_raw_fd(),
                offset,
            )
        };
        if at == MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    Ok(image::read_at(file, &mut to[mapped..], segment.offset + mapped as u64)?)
}

/// Flat protected mode, or long mode with the first GiB mapped to itself.
fn set_registers(vcpu: &VcpuFd, image: &Image, ram: &mut [u8]) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let (l, db) = if image.long_mode { (1, 0) } else { (0, 1) };
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        type_: 3,
        selector: 0x18,
        ..Default::default()
    };
    sregs.cs = kvm_segment { type_: 0xb, selector: 0x10, l, db, ..flat };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat;
    }
    sregs.cr0 = 1; // PE
    if image.long_mode {
        let tables = ram.get_mut(PAGE_TABLES..PAGE_TABLES + 3 * PAGE as usize).ok_or("too little memory")?;
        let mut entry = |at: usize, value: u64| tables[at..at + 8].copy_from_slice(&value.to_le_bytes());
        entry(0, PAGE_TABLES as u64 + 0x1003);
        entry(0x1000, PAGE_TABLES as u64 + 0x2003);
        for page in 0..512 {
            entry(0x2000 + page * 8, (page as u64) << 21 | 0x83);
        }
        sregs.cr3 = PAGE_TABLES as u64;
        sregs.cr4 = 1 << 5; // PAE
        sregs.cr0 |= 1 << 31; // PG
        sregs.efer = 1 << 8 | 1 << 10; // LME, LMA
    }
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_bindings::kvm_regs { rip: image.entry, rflags: 2, ..Default::default() };
    Ok(vcpu.set_regs(&regs)?)
}
