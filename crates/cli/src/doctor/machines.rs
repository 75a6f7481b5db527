//! What machines need: QEMU, and a processor that helps.

use std::io;
use std::process::Command;

use vmlan_vm::agent;

use super::{Finding, Machine};

/// From this one on, QEMU connects again when a network's daemon was replaced.
const RECONNECTS: u32 = 8;

/// Whether there is a QEMU for this machine's kind of processor, and which.
pub(super) fn qemu(_: &Machine) -> Vec<Finding> {
    const CHECK: &str = "qemu";
    let program = format!("qemu-system-{}", std::env::consts::ARCH);
    let output = match Command::new(&program).arg("--version").output() {
        Ok(output) => output,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return vec![
                Finding::warning(CHECK, "machines of QEMU cannot be run")
                    .why(format!("there is no {program} in PATH"))
                    .mend(imp::install_qemu()),
            ];
        }
        Err(e) => {
            let text = "machines of QEMU cannot be run";
            return vec![Finding::warning(CHECK, text).why(format!("{program}: {e}"))];
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = version(&text);
    let finding = match version.and_then(|version| version.split('.').next()?.parse().ok()) {
        Some(RECONNECTS..) => {
            Finding::ok(CHECK, format!("{program} is {}", version.unwrap_or_default()))
        }
        Some(0..RECONNECTS) => {
            let text = format!("{program} is {}", version.unwrap_or_default());
            Finding::warning(CHECK, text)
                .why("below 8.0, its machines do not connect again to a daemon that was replaced")
                .mend("give them a socket that needs no connection: -netdev dgram, or a newer QEMU")
        }
        None => Finding::warning(CHECK, format!("{program} does not say its version"))
            .why(text.lines().next().unwrap_or("it says nothing")),
    };
    vec![finding]
}

/// Whether the processor helps, or has to be emulated.
pub(super) fn acceleration(_: &Machine) -> Vec<Finding> {
    imp::acceleration()
}

/// For which machines there is an agent.
pub(super) fn agents(_: &Machine) -> Vec<Finding> {
    let all = ["x86_64", "aarch64"];
    vec![agents_for(std::env::consts::ARCH, &all, |arch| agent::binary(arch).is_some())]
}

fn agents_for(own: &str, all: &[&str], has: impl Fn(&str) -> bool) -> Finding {
    const CHECK: &str = "agent";
    let (with, without): (Vec<_>, Vec<_>) = all.iter().copied().partition(|arch| has(arch));
    let (with, without) = (with.join(" and "), without.join(" and "));
    if !has(own) {
        return Finding::warning(CHECK, "ports of machines are forwarded by ssh, and UDP is not")
            .why(format!("this vmlan was built where no agent for {own} machines can be"))
            .mend(format!("rustup target add {own}-unknown-linux-musl, then build vmlan again"));
    }
    Finding::ok(
        CHECK,
        match without.as_str() {
            "" => format!("machines of {with} get vmlan's agent"),
            _ => format!(
                "machines of {with} get vmlan's agent, those of {without} do not: ssh forwards their \
             ports, but no UDP"
            ),
        },
    )
}

/// `QEMU emulator version 8.2.1 (Debian ...)`
fn version(text: &str) -> Option<&str> {
    text.split_once("version ")?.1.split_whitespace().next()
}

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::OpenOptions;

    use super::{Finding, io};

    pub(super) fn install_qemu() -> String {
        let package = if std::env::consts::ARCH == "aarch64" { "arm" } else { "x86" };
        format!("sudo apt-get install qemu-system-{package}")
    }

    pub(super) fn acceleration() -> Vec<Finding> {
        const CHECK: &str = "acceleration";
        const KVM: &str = "/dev/kvm";
        let slow = Finding::warning(CHECK, "machines are emulated, and slow");
        let finding = match OpenOptions::new().read(true).write(true).open(KVM) {
            Ok(_) => Finding::ok(CHECK, "machines run on the processor itself, by KVM"),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => slow
                .why(format!("{KVM} may not be opened"))
                .mend("sudo usermod -a -G kvm \"$USER\", then log in again"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                slow.why(format!("there is no {KVM}")).mend(
                    "sudo modprobe kvm_intel || sudo modprobe kvm_amd, after switching \
                     virtualization on in the firmware",
                )
            }
            Err(e) => slow.why(format!("{KVM}: {e}")),
        };
        vec![finding]
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{Command, Finding};

    pub(super) fn install_qemu() -> String {
        "brew install qemu".into()
    }

    pub(super) fn acceleration() -> Vec<Finding> {
        const CHECK: &str = "acceleration";
        let output = Command::new("sysctl").args(["-n", "kern.hv_support"]).output();
        let there = output.is_ok_and(|output| output.stdout.trim_ascii() == b"1");
        vec![if there {
            Finding::ok(CHECK, "machines run on the processor itself")
        } else {
            Finding::warning(CHECK, "machines are emulated, and slow")
                .why("this machine has no Hypervisor framework (kern.hv_support is not 1)")
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(version(text), Some("7.2.22"));
        assert_eq!(version("nothing"), None);
    }

    #[test]
    fn an_agent_that_is_not_there_is_said() {
        let all = ["x86_64", "aarch64"];
        let found = |have: &'static [&str]| agents_for("x86_64", &all, |arch| have.contains(&arch));
        let text = found(&["x86_64", "aarch64"]).text;
        assert_eq!(text, "machines of x86_64 and aarch64 get vmlan's agent");
        let text = found(&["x86_64"]).text;
        assert!(text.contains("those of aarch64 do not"), "{text}");
        let mend = found(&["aarch64"]).mend;
        assert!(mend.is_some_and(|mend| mend.contains("x86_64-unknown-linux-musl")));
    }
}
