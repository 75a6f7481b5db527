//! The flags that say what a machine is to be: each a change to its `lima.yaml`.

use serde_json::{Value, json};
use vmlan_config::instance::change::{Change, ChangeError};
use vmlan_config::raw::RawEntry;

use crate::Failure;

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Changes {
    /// Join this network, once or several times: lima:NAME for one of networks.yaml, socket:PATH for
    /// the socket of a daemon that somebody else runs, or vzNAT.
    ///
    /// A user-v2 network takes the place of the default one as eth0; the others are further cards.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    network: Vec<Value>,

    /// What runs the machine: qemu, or vz for macOS' Virtualization.framework, which is the default
    /// on macOS where it can run the machine.
    #[arg(long, value_name = "DRIVER")]
    vm_type: Option<String>,

    /// The number of processors [unless the file says: up to 4 of the host's].
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,

    /// The size of the memory: 4GiB, or a number of GiB [unless the file says: 4GiB, or half of the
    /// host's if that is less].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<String>,

    /// The size of the disk: 20GiB, or a number of GiB [unless the file says: 100GiB].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk: Option<String>,

    /// The machine's architecture: x86_64 or aarch64 [unless the file says: the host's].
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,

    /// The port of 127.0.0.1 that leads to the machine's ssh [unless the file says: a free one].
    #[arg(long, value_name = "PORT")]
    ssh_port: Option<u16>,

    /// What runs the machine's instructions: kvm, hvf, or tcg to emulate them [unless the file says:
    /// the fastest that works].
    #[arg(long, value_name = "ACCEL")]
    accel: Option<String>,

    /// Which default network: vmlan, or slirp for QEMU's own [unless the file says: vmlan].
    #[arg(long, value_name = "NETWORK")]
    user_network: Option<String>,

    /// No agent and no scripts in the machine, and so no automatic port forwards.
    #[arg(long)]
    plain: bool,

    /// Set any value of lima.yaml: cpus=2, ssh.localPort=60022, networks[]={lima: shared}.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn network(text: &str) -> Result<Value, String> {
    RawEntry::from_flag(text)?;
    Ok(match text.split_once(':') {
        Some((key, value)) => json!({ key: value }),
        None => json!({ text: true }),
    })
}

/// A number alone is one of GiB.
fn size(text: &str) -> Result<String, String> {
    let number = text.parse::<f64>().is_ok_and(|number| number > 0.0);
    Ok(if number { format!("{text}GiB") } else { text.to_owned() })
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_ok_and(|changes| changes.is_empty())
    }

    /// The text of a `lima.yaml` as the flags want it.
    pub(crate) fn apply(&self, text: &str) -> Result<String, Failure> {
        let changes = self.all().map_err(|e| Failure::Usage(format!("--set {e}")))?;
        if changes.is_empty() {
            return Ok(text.to_owned());
        }
        let changed = vmlan_config::instance::change::change(text, &changes);
        changed.map_err(|e| Failure::Failed(format!("lima.yaml cannot be changed: {e}")))
    }

    fn all(&self) -> Result<Vec<Change>, ChangeError> {
        let mut all = Vec::new();
        let text =
            |key, value: &Option<String>| value.as_ref().map(|v| Change::set(key, v.as_str()));
        all.extend(text("vmType", &self.vm_type));
        all.extend(self.cpus.map(|cpus| Change::set("cpus", cpus)));
        all.extend(text("memory", &self.memory));
        all.extend(text("disk", &self.disk));
        all.extend(text("arch", &self.arch));
        all.extend(self.ssh_port.map(|port| Change::set("ssh.localPort", port)));
        all.extend(text("vmOpts.qemu.accel", &self.accel));
        all.extend(text("vmOpts.qemu.userNetwork", &self.user_network));
        all.extend(self.plain.then(|| Change::set("plain", true)));
        all.extend(self.network.iter().map(|entry| Change::push("networks", entry.clone())));
        for flag in &self.set {
            all.push(Change::from_flag(flag)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        changes: Changes,
    }

    fn changed(flags: &[&str]) -> Result<String, String> {
        let line = Line::try_parse_from(["x"].iter().chain(flags)).map_err(|e| e.to_string())?;
        line.changes.apply("images: []\n").map_err(|e| e.to_string())
    }

    #[test]
    fn flags_are_changes() {
        let text = changed(&[
            "--network=lima:user-v2,vzNAT",
            "--cpus=2",
            "--memory=1.5",
            "--disk=20GiB",
            "--accel=tcg",
            "--set=ssh.localPort=60022",
        ]);
        let text = text.unwrap();
        for part in [
            "networks:\n- lima: user-v2\n- vzNAT: true\n",
            "cpus: 2\n",
            "memory: \"1.5GiB\"\n",
            "disk: \"20GiB\"\n",
            "vmOpts:\n  qemu:\n    accel: tcg\n",
            "ssh:\n  localPort: 60022\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(changed(&[]).unwrap(), "images: []\n");
        assert!(changed(&["--network=shared"]).unwrap_err().contains("lima:*"));
        assert!(changed(&["--set=x"]).unwrap_err().contains("KEY=VALUE"));
    }
}
