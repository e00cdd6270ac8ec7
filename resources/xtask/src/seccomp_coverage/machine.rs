//! What a kite's command line says of its machine, as far as the sandbox's rules differ by it.

/// A machine, by its command line.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    words: Vec<String>,
}

impl Machine {
    /// Of a command line.
    pub fn of(words: Vec<String>) -> Self {
        Self { words }
    }

    /// Whether a group of rules for this is in force.
    pub fn has(&self, when: &str) -> bool {
        let command = self.words.iter().position(|word| word == "--");
        let words = &self.words[..command.unwrap_or(self.words.len())];
        // `--option value` or `--option=value`.
        let options = |name: &'static str| {
            words.iter().enumerate().filter_map(move |(index, word)| match word.strip_prefix(name)? {
                "" => Some(words.get(index + 1).map_or("", String::as_str)),
                value => value.strip_prefix('='),
            })
        };
        let has = |names: &[&'static str]| names.iter().any(|name| options(name).next().is_some());
        match when {
            "always" => true,
            "disks" => has(&["--disk"]),
            "networks" => has(&["--net"]),
            "ports" => has(&["--port"]),
            "names" => has(&["--port", "--vnc", "--id", "--screen"]),
            "control" => has(&["--id", "--screen"]),
            "vnc" => has(&["--vnc"]),
            "files" => has(&["--stats", "--trace", "--junit", "--screenshot-on-failure"]),
            "groups" => has(&["--cgroup", "--limit"]),
            "shares" | "streams" => command.is_some(),
            "writable-shares" => options("--share")
                .any(|share| [":rw", ":rw,suid", ":rw,nosuid"].iter().any(|end| share.ends_with(end))),
            "pci" => options("--transport").any(|what| what == "pci"),
            "test-devices" => has(&["--test-devices"]),
            "stats" => has(&["--stats"]),
            "restart" => options("--on-reboot").any(|what| what == "restart"),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_count_in_either_form_and_only_before_the_command() {
        let machine = |line: &str| Machine::of(line.split(' ').map(str::to_owned).collect());
        let one = machine("kite run --disk=x --on-reboot restart --stats");
        assert!(one.has("disks") && one.has("restart") && one.has("stats") && one.has("always"));
        assert!(!one.has("networks") && !one.has("streams"));
        let two = machine("kite run --share x:rw -- true --net user");
        assert!(two.has("writable-shares") && two.has("shares") && !two.has("networks"));
        assert!(machine("kite run --share x:rw,suid -- true").has("writable-shares"));
        assert!(!machine("kite run --share x -- y").has("writable-shares"));
    }
}
