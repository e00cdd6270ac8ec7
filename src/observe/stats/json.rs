//! The numbers for programs. `resources/doc/json.md` describes the fields; a change that breaks a reader gets a new version.

use serde_json::{Map, Value, json};

use super::report::{Cost, Report, Row, Total, Vcpu};
use crate::vcpu::counters::{Kind, Space};

/// What the file calls itself.
pub const SCHEMA: &str = "kite-stats";
/// The version of its fields.
pub const VERSION: u32 = 1;

impl Report {
    /// As JSON; `finished` if the guest has ended.
    pub fn to_json(&self, finished: bool) -> Value {
        json!({
            "schema": SCHEMA,
            "version": VERSION,
            "kite": env!("CARGO_PKG_VERSION"),
            "finished": finished,
            "seconds": self.elapsed.as_secs_f64(),
            "exits": self.exits(),
            "totals": {
                "port": total(&self.ports, Space::Port),
                "memory": total(&self.memory, Space::Memory),
            },
            "accesses": rows(&self.rows),
            "ring": rows(&self.ring),
            "vcpus": self.vcpus.iter().enumerate().map(vcpu).collect::<Vec<_>>(),
            "words": self.words,
        })
    }
}

fn total(total: &Total, space: Space) -> Value {
    json!({
        "exits": total.exits,
        "ring": total.ring,
        "kvm_exits": total.kvm,
        "kvm_beyond": total.beyond(space),
    })
}

fn vcpu((index, vcpu): (usize, &Vcpu)) -> Value {
    let reasons = vcpu.reasons.iter().map(|(kind, it)| {
        let mut row = cost(it);
        row.insert("reason".to_owned(), kind.name().into());
        Value::Object(row)
    });
    let kvm: Map<_, _> = vcpu.kvm.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
    json!({
        "index": index,
        "exits": vcpu.exits(),
        "reasons": reasons.collect::<Vec<_>>(),
        "accesses": rows(&vcpu.rows),
        "kvm": if kvm.is_empty() { Value::Null } else { kvm.into() },
    })
}

fn rows(rows: &[Row]) -> Vec<Value> {
    let row = |row: &Row| {
        let mut fields = cost(&row.cost);
        let space = if row.kind.space() == Some(Space::Memory) { "memory" } else { "port" };
        let write = matches!(row.kind, Kind::PortWrite | Kind::MemoryWrite);
        let width = row.access.map(|access| access.width).filter(|width| *width > 0);
        fields.extend([
            ("space".to_owned(), space.into()),
            ("address".to_owned(), row.access.map(|access| access.address).into()),
            ("access".to_owned(), if write { "write" } else { "read" }.into()),
            ("bytes".to_owned(), width.into()),
            ("device".to_owned(), row.device.clone().into()),
        ]);
        Value::Object(fields)
    };
    rows.iter().map(row).collect()
}

fn cost(cost: &Cost) -> Map<String, Value> {
    let fields = [
        ("count", cost.count),
        ("total_ns", cost.total_ns),
        ("p50_ns", cost.p50_ns),
        ("p90_ns", cost.p90_ns),
        ("p99_ns", cost.p99_ns),
        ("max_ns", cost.max_ns),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}
