//! `--sandbox`: which layers of the sandbox are wanted.

use serde::{Deserialize, Serialize};

/// What is done where the host does not allow all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What is allowed is used.
    #[default]
    Auto,
    /// kite ends.
    Require,
    /// There is no sandbox.
    None,
}

/// One of the sandbox's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// User, mount, PID, network, IPC and UTS namespaces (namespaces(7)).
    Namespaces,
    /// An empty root folder, and shares that lead nowhere else (pivot_root(2), open_tree(2)).
    Root,
    /// No capability, nor a way to one (capabilities(7)).
    Capabilities,
    /// No program can give any right (prctl(2), PR_SET_NO_NEW_PRIVS).
    NoNewPrivs,
    /// Limits of files, processes and core dumps (setrlimit(2)).
    Rlimits,
    /// No file but those in shares (landlock(7)).
    Landlock,
    /// No system call but those that a thread makes (seccomp(2)).
    Seccomp,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Namespaces,
        Self::Root,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::Rlimits,
        Self::Landlock,
        Self::Seccomp,
    ];

    /// What the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Root => "root",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivs => "no-new-privs",
            Self::Rlimits => "rlimits",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        }
    }

    /// The layer without which this one cannot be.
    pub fn needs(self) -> Option<Self> {
        match self {
            Self::Root => Some(Self::Namespaces),
            Self::Landlock | Self::Seccomp => Some(Self::NoNewPrivs),
            Self::Namespaces | Self::Capabilities | Self::NoNewPrivs | Self::Rlimits => None,
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Which layers of the sandbox are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SandboxFields", into = "SandboxFields")]
pub struct SandboxSpec {
    /// Whether it may be incomplete.
    pub mode: Mode,
    /// The layers to leave out, a bit each.
    left_out: u8,
}

/// The same as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxFields {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    without: Vec<Layer>,
}

impl From<SandboxSpec> for SandboxFields {
    fn from(spec: SandboxSpec) -> Self {
        let without = Layer::ALL.into_iter().filter(|layer| spec.left_out & layer.bit() != 0).collect();
        Self { mode: spec.mode, without }
    }
}

impl TryFrom<SandboxFields> for SandboxSpec {
    type Error = String;

    fn try_from(fields: SandboxFields) -> Result<Self, String> {
        Self::new(fields.mode, &fields.without)
    }
}

impl SandboxSpec {
    /// A sandbox without some layers.
    fn new(mode: Mode, left_out: &[Layer]) -> Result<Self, String> {
        if let Some(layer) = left_out.first().filter(|_| mode == Mode::None) {
            return Err(format!("none leaves out all there is, {} too", without(&[*layer])));
        }
        let spec = Self { mode, left_out: left_out.iter().fold(0, |bits, layer| bits | layer.bit()) };
        for layer in Layer::ALL.into_iter().filter(|layer| !spec.wants(*layer)) {
            let needy = |it: &Layer| spec.wants(*it) && it.needs() == Some(layer);
            let needy: Vec<_> = Layer::ALL.into_iter().filter(needy).collect();
            if !needy.is_empty() {
                let names: Vec<_> = needy.iter().map(|it| it.name()).collect();
                let (layer, names) = (layer.name(), names.join(" and "));
                return Err(format!("without {layer} there is no {names}: add {}", without(&needy)));
            }
        }
        Ok(spec)
    }

    /// Whether the machine gets a process of its own.
    pub fn splits(&self) -> bool {
        self.mode != Mode::None
    }

    /// Whether this layer is wanted.
    pub fn wants(&self, layer: Layer) -> bool {
        self.mode != Mode::None && self.left_out & layer.bit() == 0
    }
}

/// Reads `MODE[,no-LAYER]…`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<SandboxSpec, String> {
    let mut words = text.split(',');
    let mode = match words.next() {
        Some("auto") => Mode::Auto,
        Some("require") => Mode::Require,
        Some("none") => Mode::None,
        _ => return Err("it is auto, require or none, such as require or auto,no-landlock".to_owned()),
    };
    let mut left_out = Vec::new();
    for word in words {
        let layer = Layer::ALL.into_iter().find(|layer| word.strip_prefix("no-") == Some(layer.name()));
        let Some(layer) = layer else {
            return Err(format!("'{word}' is no layer to leave out, as are {}", without(&Layer::ALL)));
        };
        left_out.push(layer);
    }
    SandboxSpec::new(mode, &left_out)
}

/// How the command line leaves these layers out.
pub fn without(layers: &[Layer]) -> String {
    let names: Vec<_> = layers.iter().map(|layer| format!("no-{}", layer.name())).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::assert_refused_in_one_line;

    #[test]
    fn a_layer_can_be_left_out_by_name() {
        let options = parse("require,no-landlock,no-seccomp").unwrap();
        assert_eq!(options.mode, Mode::Require);
        let wanted: Vec<_> = Layer::ALL.into_iter().filter(|layer| options.wants(*layer)).collect();
        assert_eq!(wanted, Layer::ALL[..5]);
        assert!(Layer::ALL.into_iter().all(|layer| parse("auto").unwrap().wants(layer)));
        assert!(!Layer::ALL.into_iter().any(|layer| parse("none").unwrap().wants(layer)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_one_line() {
        assert_refused_in_one_line(
            parse,
            &[
                "",
                "no-root",
                "yes",
                "auto,",
                "auto,root",
                "auto,no-",
                "none,no-root",
                "require,no-no-new-privs",
                "auto,no-namespaces",
            ],
        );
        let both = "without no-new-privs there is no landlock and seccomp: add no-landlock,no-seccomp";
        assert_eq!(parse("require,no-no-new-privs").unwrap_err(), both);
    }
}
