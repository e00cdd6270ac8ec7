//! From options to a spec: what those of `kite run` ask for, or the file that says it all.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{RunOptions, SANDBOX_VARIABLE};
use crate::spec::RunSpec;
use crate::spec::device::DeviceSpec;
use crate::spec::limits::Limits;
use crate::spec::machine::{BootSpec, MachineSpec, default_kernel, default_memory};
use crate::spec::sandbox::{self, SandboxSpec};
use crate::spec::vnc::VncSpec;

/// What does not go with `--spec`: every option that says something of the run.
pub(super) const EXCLUDED: [&str; 48] = [
    "append",
    "cgroup",
    "clear_env",
    "cmdline",
    "command",
    "console",
    "cpus",
    "cwd",
    "disks",
    "entrypoint",
    "env",
    "fail_on_ktap",
    "force",
    "id",
    "idle_timeout",
    "image",
    "initrd",
    "insecure_registry",
    "junit",
    "kernel",
    "kernel_log",
    "limits",
    "memory",
    "modules",
    "more_modules",
    "networks",
    "no_acpi",
    "no_balloon",
    "no_rng",
    "novnc",
    "on_reboot",
    "ports",
    "pull",
    "root",
    "sandbox",
    "screen",
    "screenshot_on_failure",
    "shares",
    "stats",
    "stats_interval",
    "test_devices",
    "timeout",
    "trace",
    "transport",
    "user",
    "verbose",
    "vnc",
    "vnc_password_file",
];
/// Standard input, as the name of a file.
const STDIN: &str = "-";
/// How long a spec may be, in bytes.
const LONGEST: u64 = 1 << 20;

impl RunOptions {
    /// What they ask for, with what the environment says where they do not; checked.
    ///
    /// # Errors
    /// They do not go together, or the environment's make no sense, in one line.
    pub fn spec(&self) -> Result<RunSpec, String> {
        let Some(path) = &self.spec else {
            let spec = self.described()?;
            return spec.validate().map(|()| spec);
        };
        let spec = read(path).and_then(|spec| spec.validate().map(|()| spec));
        spec.map_err(|why| format!("--spec {}: {why}", path.display()))
    }

    fn described(&self) -> Result<RunSpec, String> {
        let command = self.command.spec();
        let memory = self.memory.unwrap_or(default_memory(command.is_some()));
        let machine = MachineSpec {
            id: self.id.clone(),
            cpus: self.cpus,
            memory,
            boot: self.boot(),
            acpi: !self.no_acpi,
            transport: self.transport,
            console: self.console.unwrap_or_default(),
            devices: self.devices(),
            vnc: self.vnc(),
            test_devices: self.test_devices,
            on_reboot: self.on_reboot,
            sandbox: self.sandbox()?,
            cgroup: self.cgroup.clone(),
            limits: self.limits()?,
        };
        Ok(RunSpec::new(machine, command, self.measure.spec(), self.command.verbose))
    }

    fn boot(&self) -> BootSpec {
        BootSpec {
            kernel: self.kernel.clone().or_else(default_kernel),
            initrd: self.initrd.clone(),
            modules: self.modules.clone(),
            extra_modules: self.more_modules.clone(),
            append: self.append.clone(),
            cmdline: self.cmdline.clone(),
            force: self.force,
        }
    }

    fn devices(&self) -> Vec<DeviceSpec> {
        let disks = self.disks.iter().cloned().map(DeviceSpec::Disk);
        let networks = self.networks.iter().cloned().map(DeviceSpec::Net);
        let shares = self.command.shares.iter().cloned().map(DeviceSpec::Share);
        let ports = self.ports.iter().cloned().map(DeviceSpec::Port);
        let balloon = (!self.no_balloon).then_some(DeviceSpec::Balloon {});
        let rng = (!self.no_rng).then_some(DeviceSpec::Rng {});
        let screen = self.screen.map(DeviceSpec::Screen);
        let named = disks.chain(networks).chain(shares).chain(ports);
        named.chain(balloon).chain(rng).chain(screen).collect()
    }

    fn vnc(&self) -> Option<VncSpec> {
        let (password_file, novnc) = (self.vnc_password_file.clone(), self.novnc.clone());
        self.vnc.clone().map(|listen| VncSpec { listen, password_file, novnc })
    }

    /// The sandbox: the option's, else the environment's, else whatever the host allows.
    fn sandbox(&self) -> Result<SandboxSpec, String> {
        match (self.sandbox, variable(SANDBOX_VARIABLE)) {
            (Some(option), _) => Ok(option),
            (None, None) => Ok(SandboxSpec::default()),
            (None, Some(text)) => {
                let text = text.to_string_lossy();
                sandbox::parse(&text)
                    .map_err(|why| format!("invalid value '{text}' for ${SANDBOX_VARIABLE}: {why}"))
            }
        }
    }

    fn limits(&self) -> Result<Limits, String> {
        let mut limits = Limits::default();
        for more in &self.limits {
            limits.add(more.clone()).map_err(|why| format!("--limit: {why}"))?;
        }
        Ok(limits)
    }
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|text| !text.is_empty())
}

/// The spec in a file, or on standard input; its relative paths begin at the file's folder.
fn read(path: &Path) -> Result<RunSpec, String> {
    let mut json = Vec::new();
    let read = match path == Path::new(STDIN) {
        true => io::stdin().lock().take(LONGEST + 1).read_to_end(&mut json),
        false => File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut json)),
    };
    read.map_err(|error| format!("cannot read it: {error}"))?;
    if json.len() as u64 > LONGEST {
        return Err(format!("it is longer than {} KiB", LONGEST >> 10));
    }
    let mut spec = RunSpec::from_json(&json)?;
    if let Some(folder) = path.parent() {
        spec.rebase(folder);
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, Parser};

    use super::super::{Cli, Command};
    use super::*;

    /// The options that say nothing of the run itself.
    const ABOUT_SPECS: [&str; 4] = ["help", "no_config", "print_spec", "spec"];

    /// A command line for each option and argument of `kite run`, and what it is without.
    const EXAMPLES: &[(&str, &str, &str)] = &[
        ("append", "--append=quiet", ""),
        ("cgroup", "--cgroup=ci", ""),
        ("clear_env", "--clear-env -- true", "-- true"),
        ("cmdline", "--cmdline=console=ttyS0", ""),
        ("command", "-- sh -c true", ""),
        ("console", "--console=virtio", ""),
        ("console", "--console=none", ""),
        ("cpus", "--cpus=4", ""),
        ("cwd", "--cwd=/tmp -- true", "-- true"),
        ("disks", "--disk=disk.img", ""),
        ("disks", "--disk=path=a,,b,readonly,ephemeral,direct,raw,queues=3,id=x", ""),
        ("entrypoint", "--image=debian --entrypoint=sh", "--image=debian"),
        ("entrypoint", "--image=debian --entrypoint= -- true", "--image=debian -- true"),
        ("env", "--env=A=b=c --env=HOME --env=D= -- true", "-- true"),
        ("fail_on_ktap", "--fail-on-ktap=always -- true", "-- true"),
        ("force", "--force", ""),
        ("id", "--id=a", ""),
        ("idle_timeout", "--idle-timeout=1h -- true", "-- true"),
        ("image", "--image=debian:12", ""),
        ("image", "--image=quay.io/a/b -- true", "-- true"),
        ("initrd", "--initrd=initrd", ""),
        ("insecure_registry", "--image=debian --insecure-registry", "--image=debian"),
        ("junit", "--junit=a.xml -- true", "-- true"),
        ("kernel", "--kernel=bzImage", ""),
        ("kernel_log", "--kernel-log=a.log -- true", "-- true"),
        ("limits", "--limit=cpu=1.5,memory=600M --limit=pids=64,io=8:0:wiops=3:rbps=10M", ""),
        ("limits", "--limit=io=/dev/sda:wbps=1M", ""),
        ("memory", "--memory=2G", ""),
        ("modules", "--modules=lib/modules/6.12", ""),
        ("more_modules", "--module=virtio_net --module=ext4", ""),
        ("networks", "--net=tap=t0,mac=02:00:00:ab:cd:ef,mtu=9000,queues=4", ""),
        ("networks", "--net=user,forward=8080:80,forward=53:53/udp", ""),
        ("networks", "--net=tap=t0,ip=192.0.2.7/24,ip=fd00::7/64,gw=192.0.2.1,dns=::2 -- true", "-- true"),
        ("networks", "--net=tap=t0,ip=none -- true", "-- true"),
        ("no_acpi", "--no-acpi", ""),
        ("no_balloon", "--no-balloon", ""),
        ("no_rng", "--no-rng", ""),
        ("novnc", "--screen --vnc=unix:a --novnc=noVNC", "--screen --vnc=unix:a"),
        ("on_reboot", "--on-reboot=restart", ""),
        ("ports", "--port=agent=/tmp/agent.sock", ""),
        ("pull", "--image=debian --pull", "--image=debian"),
        ("root", "--root=rootfs -- true", "-- true"),
        ("root", "--root=disk --disk=a.img -- true", "--disk=a.img -- true"),
        ("sandbox", "--sandbox=require,no-landlock,no-seccomp", "--sandbox=require"),
        ("sandbox", "--sandbox=none", "--sandbox=auto"),
        ("screen", "--screen", ""),
        ("screen", "--screen=800x600", "--screen"),
        ("screenshot_on_failure", "--screen --screenshot-on-failure=a.png", "--screen"),
        ("shares", "--share=.:rw --share=a:/b:rw,suid -- true", "-- true"),
        ("stats", "--stats", ""),
        ("stats", "--stats=a.json", "--stats"),
        ("stats_interval", "--stats --stats-interval=1500ms", "--stats"),
        ("test_devices", "--test-devices", ""),
        ("timeout", "--timeout=1h30m -- true", "-- true"),
        ("trace", "--trace=a.json", ""),
        ("transport", "--transport=pci", ""),
        ("transport", "--transport=mmio", ""),
        ("user", "--user=ann:5 -- true", "-- true"),
        ("verbose", "--verbose", ""),
        ("vnc", "--screen --vnc=localhost:5901", "--screen"),
        ("vnc", "--screen --vnc", "--screen"),
        ("vnc_password_file", "--screen --vnc=[::]:5901 --vnc-password-file=a", "--screen --vnc=[::1]:5901"),
    ];

    fn words(line: &str) -> Vec<OsString> {
        ["kite", "run"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect()
    }

    fn spec_of(words: &[OsString]) -> RunSpec {
        let Command::Run(options) = Cli::parse_from(words).command else { panic!("{words:?}") };
        options.spec().unwrap()
    }

    #[test]
    fn every_option_is_in_the_spec_and_comes_back_from_json() {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        for id in run.get_arguments().map(|argument| argument.get_id().as_str()) {
            let examples: Vec<_> = EXAMPLES.iter().filter(|(it, ..)| *it == id).collect();
            assert_eq!(examples.is_empty(), ABOUT_SPECS.contains(&id), "{id} has an example");
            for (_, line, without) in examples {
                let spec = spec_of(&words(line));
                assert_ne!(spec, spec_of(&words(without)), "{line} is in the spec");
                let json = spec.to_json();
                assert_eq!(RunSpec::from_json(json.as_bytes()).as_ref(), Ok(&spec), "{json}");
            }
        }
    }

    #[test]
    fn nothing_that_says_something_of_a_run_goes_with_a_spec() {
        for (id, line, _) in EXAMPLES {
            let error = Cli::try_parse_from(words(&format!("--spec=x.json {line}"))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{id}: {error}");
        }
    }

    #[test]
    fn words_that_are_no_utf_8_come_back_from_json() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"a\xff\n\"".to_vec());
        let option = |name: &str| {
            let mut word = OsString::from(name);
            word.push(&odd);
            word
        };
        let mut line = words("");
        line.extend(["--kernel=", "--junit=", "--cwd="].map(option));
        line.extend(["--".into(), "cat".into(), odd.clone()]);
        let spec = spec_of(&line);
        assert_eq!(spec.command.as_ref().unwrap().argv[1], odd);
        assert_eq!(RunSpec::from_json(spec.to_json().as_bytes()), Ok(spec));
    }

    #[test]
    fn relative_paths_of_a_spec_begin_at_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec.json");
        let json = r#"{"version": 1, "machine": {"boot": {"kernel": "6.12", "initrd": "sub/initrd"},
            "devices": [{"disk": {"path": "/dev/x"}}, {"port": {"name": "a", "path": "a.sock"}}]},
            "measure": {"stats": {"file": "stats.json"}, "trace": "trace.json"}}"#;
        std::fs::write(&path, json).unwrap();
        let line = ["kite".into(), "run".into(), "--spec".into(), path.into_os_string()];
        let spec = spec_of(&line);
        let boot = &spec.machine.boot;
        assert_eq!(boot.kernel.as_deref(), Some(Path::new("6.12")), "it is a version");
        assert_eq!(boot.initrd, Some(folder.path().join("sub/initrd")));
        assert_eq!(spec.machine.disks().next().unwrap().path, Path::new("/dev/x"));
        assert_eq!(spec.machine.ports().next().unwrap().path, folder.path().join("a.sock"));
        assert_eq!(spec.measure.trace, Some(folder.path().join("trace.json")));
        assert_eq!(spec.measure.stats.unwrap().file, Some(folder.path().join("stats.json")));
    }
}
