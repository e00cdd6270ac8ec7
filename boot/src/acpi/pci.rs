//! The PCI host bridge (PCI Firmware 3.3 §4): its bus, its window, and that its configuration space is no device's.

use acpi_tables::{Aml, aml};

use crate::layout;

/// What `_OSC` is asked about: a PCI host bridge (PCI Firmware 3.3 §4.5.1).
const HOST_BRIDGE: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// The bits in which `_OSC` says why it does not give what is asked for: an unknown UUID, an unknown revision, and that
/// it gives less (ACPI 6.5 §6.2.11).
const UNKNOWN_UUID: u8 = 1 << 2;
const UNKNOWN_REVISION: u8 = 1 << 3;
const LESS: u8 = 1 << 4;

/// Appends the host bridge, and what reserves its configuration space.
pub fn describe(body: &mut Vec<u8>) {
    bridge(body);
    let config = aml::Memory32Fixed::new(true, layout::PCI_CONFIG as u32, layout::PCI_CONFIG_LEN as u32);
    aml::Device::new(
        "_SB_.ECAM".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&config])),
        ],
    )
    .to_aml_bytes(body);
}

/// There are no interrupt pins, and so no `_PRT`.
fn bridge(body: &mut Vec<u8>) {
    let buses = aml::AddressSpace::new_bus_number(0u16, 0);
    let (first, last) = (layout::PCI_MEMORY, layout::PCI_MEMORY + layout::PCI_MEMORY_LEN - 1);
    let uncached = aml::AddressSpaceCacheable::NotCacheable;
    let memory = aml::AddressSpace::new_memory(uncached, true, first as u32, last as u32, None);
    aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&buses, &memory])),
            &Control,
        ],
    )
    .to_aml_bytes(body);
}

/// `_OSC`: the guest is given control of nothing, as there is nothing to control.
struct Control;

impl Aml for Control {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (uuid, revision, buffer) = (aml::Arg(0), aml::Arg(1), aml::Arg(3));
        let (status, control) = (aml::Path::new("CDW1"), aml::Path::new("CDW3"));
        let refuse = |bit: &'static u8| aml::Or::new(&status, &status, bit);
        let (unknown, revised, less) = (refuse(&UNKNOWN_UUID), refuse(&UNKNOWN_REVISION), refuse(&LESS));
        let known_uuid = aml::Uuid::new(HOST_BRIDGE);
        let is_known = aml::Equal::new(&uuid, &known_uuid);
        let is_revised = aml::NotEqual::new(&revision, &aml::ONE);
        let asks = aml::NotEqual::new(&control, &aml::ZERO);
        let give_nothing = aml::Store::new(&control, &aml::ZERO);
        let is_revised = aml::If::new(&is_revised, vec![&revised]);
        let asks = aml::If::new(&asks, vec![&less, &give_nothing]);
        aml::Method::new(
            "_OSC".into(),
            4,
            false,
            vec![
                &aml::CreateDWordField::new(&status, &buffer, &0u8),
                &aml::CreateDWordField::new(&control, &buffer, &8u8),
                &aml::If::new(&is_known, vec![&is_revised, &asks]),
                &aml::Else::new(vec![&unknown]),
                &aml::Return::new(&buffer),
            ],
        )
        .to_aml_bytes(sink);
    }
}
