//! The interrupt controllers of a PC, two 8259As, as its firmware leaves them.

use boot::layout::PIC_VECTORS;
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state};
use kvm_ioctls::VmFd;

/// Each controller's masked lines: all but the timer's and that of the second controller.
const MASKS: [u8; 2] = [!0b101, 0xff];
/// The lines of each that may be level-triggered (EISA's ELCR).
const MAY_BE_LEVEL: [u8; 2] = [0xf8, 0xde];

/// Gives both controllers their vectors, and lets only the timer through.
///
/// # Errors
/// The host's KVM refuses it.
pub fn set_up(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for (index, chip_id) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].into_iter().enumerate() {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        chip.chip.pic = kvm_pic_state {
            imr: MASKS[index],
            irq_base: PIC_VECTORS[index],
            elcr_mask: MAY_BE_LEVEL[index],
            ..Default::default()
        };
        vm.set_irqchip(&chip)?;
    }
    Ok(())
}
