//! Which network is best: the documents' flowchart.

use schemars::JsonSchema;
use serde::Serialize;

use crate::networks::{Mode, Networks};

/// From where a VM is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// From the host, through forwarded ports of localhost.
    Localhost,
    /// From the host, by the VM's IP address.
    Host,
    /// From other VMs.
    Vms,
    /// From other hosts.
    Hosts,
}

/// How a VM is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmType {
    Qemu,
    Vz,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The network's name; `default` and `vzNAT` are there without `networks.yaml`.
    pub network: String,
    /// For the command line; nothing is to be given for the default network.
    pub flag: Option<String>,
    /// For `lima.yaml`.
    pub yaml: Option<String>,
    /// What must be so first.
    pub notes: Vec<String>,
}

impl From {
    pub const ALL: [Self; 4] = [Self::Localhost, Self::Host, Self::Vms, Self::Hosts];

    /// Whether the type of the VM makes a difference.
    pub fn depends_on_vm_type(self) -> bool {
        self == Self::Host
    }
}

/// Answers with a network of `networks`, as far as it has one of the right mode. The type of the VM
/// counts where [`From::depends_on_vm_type`].
pub fn choose(from: From, vm_type: VmType, networks: &Networks) -> Choice {
    match (from, vm_type) {
        (From::Localhost, _) => {
            Choice { network: "default".into(), flag: None, yaml: None, notes: Vec::new() }
        }
        (From::Host, VmType::Vz) => Choice {
            network: "vzNAT".into(),
            flag: Some("--network=vzNAT".into()),
            yaml: Some("networks:\n- vzNAT: true\n".into()),
            notes: vec!["needs macOS 13 or later, and a VM of type vz".into()],
        },
        (From::Host, VmType::Qemu) => managed(Mode::Shared, networks),
        (From::Vms, _) => managed(Mode::UserV2, networks),
        (From::Hosts, _) => managed(Mode::Bridged, networks),
    }
}

/// The network of `networks.yaml` that has this mode: the one of the mode's name, or the first.
fn managed(mode: Mode, networks: &Networks) -> Choice {
    let fits = |name: &str| networks.get(name).is_some_and(|network| network.mode == mode);
    let named = Some(mode.name()).filter(|name| fits(name));
    let found = named.or_else(|| networks.names().find(|name| fits(name)));
    let mut notes = Vec::new();
    if mode != Mode::UserV2 {
        notes.push("needs root once, to let the network be started".into());
    }
    if mode == Mode::Bridged {
        let interface = found.and_then(|name| networks.get(name)?.interface());
        notes.extend(interface.map(|i| format!("joins the network that {i} is on")));
    }
    if found.is_none() {
        let what = if mode == Mode::Bridged { "--interface NAME" } else { "--gateway ADDRESS" };
        notes.push(format!("first: vmlan network create {mode} --mode {mode} {what}"));
    }
    let network = found.unwrap_or_else(|| mode.name()).to_owned();
    Choice {
        flag: Some(format!("--network=lima:{network}")),
        yaml: Some(format!("networks:\n- lima: {network}\n")),
        network,
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{networks, platform};

    #[test]
    fn the_flowchart() {
        let networks = networks(&crate::default_networks(&platform()));
        let table = [
            (From::Localhost, VmType::Qemu, "default"),
            (From::Localhost, VmType::Vz, "default"),
            (From::Host, VmType::Vz, "vzNAT"),
            (From::Host, VmType::Qemu, "shared"),
            (From::Vms, VmType::Qemu, "user-v2"),
            (From::Vms, VmType::Vz, "user-v2"),
            (From::Hosts, VmType::Qemu, "bridged"),
            (From::Hosts, VmType::Vz, "bridged"),
        ];
        for (from, vm_type, want) in table {
            assert_eq!(choose(from, vm_type, &networks).network, want);
        }
        let shared = choose(From::Host, VmType::Qemu, &networks);
        assert_eq!(shared.flag.as_deref(), Some("--network=lima:shared"));
        assert_eq!(shared.yaml.as_deref(), Some("networks:\n- lima: shared\n"));
        let bridged = choose(From::Hosts, VmType::Qemu, &networks);
        assert!(bridged.notes.contains(&"joins the network that eth0 is on".into()));
    }

    #[test]
    fn a_network_of_another_name_will_do() {
        let networks = networks("networks: {lan: {mode: bridged, interface: br0}}");
        assert_eq!(choose(From::Hosts, VmType::Qemu, &networks).network, "lan");
        let shared = choose(From::Host, VmType::Qemu, &networks);
        assert_eq!(shared.network, "shared");
        let note = "first: vmlan network create shared --mode shared --gateway ADDRESS";
        assert_eq!(shared.notes.last().unwrap(), note);
    }
}
