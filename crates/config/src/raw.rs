//! What files say, before it means anything: every value as it was written, and where.

use crate::networks::Mode;
use crate::yaml::raw;
pub use crate::yaml::{At, Entries};

raw! {
    /// `networks.yaml`: the networks that guests can join.
    #[schemars(rename = "Networks")]
    pub struct RawNetworks {
        /// Where the programs and files of the networks that need root are.
        "paths" => paths: RawPaths,
        /// The group whose members may start the networks that need root.
        "group" => group: At<String>,
        /// The networks by name.
        "networks" => networks: Entries<RawNetwork>,
    }
}

raw! {
    /// Where the programs and files of the networks that need root are. No part of a path may be a
    /// symbolic link or writable for anybody but root.
    #[schemars(rename = "Paths")]
    pub struct RawPaths {
        /// The socket_vmnet program (macOS).
        "socketVMNet" => socket_vmnet: At<String>,
        /// The directory for the daemons' pid files and sockets.
        "varRun" => var_run: At<String>,
        /// The sudoers file.
        "sudoers" => sudoers: At<String>,
    }
}

raw! {
    /// A network.
    #[schemars(rename = "Network")]
    pub struct RawNetwork {
        /// How guests are connected.
        #[schemars(with = "Option<Mode>")]
        "mode" => mode: At<String>,
        /// The host's interface that a bridged network joins.
        "interface" => interface: At<String>,
        /// The IPv4 address of the gateway, for every mode but bridged.
        #[schemars(extend("format" = "ipv4"))]
        "gateway" => gateway: At<String>,
        /// The last address that DHCP gives; by default the gateway's with 254 at its end.
        #[schemars(extend("format" = "ipv4"))]
        "dhcpEnd" => dhcp_end: At<String>,
        /// The netmask, 255.255.255.0 by default.
        #[schemars(extend("format" = "ipv4"))]
        "netmask" => netmask: At<String>,
        /// Addresses and names that are kept for guests, in mode user-v2. vmlan's own: Lima takes no
        /// notice of it.
        "reservations" => reservations: Vec<At<RawReservation>>,
    }
}

raw! {
    /// An address that is kept for a guest, which is known by its MAC address or by its name.
    #[schemars(rename = "Reservation")]
    pub struct RawReservation {
        /// The guest's MAC address.
        "mac" => mac: At<String>,
        /// The guest's name; with `mac`, the name that is given to it.
        "name" => name: At<String>,
        /// The IPv4 address. With `mac` and `name` it may be left out.
        #[schemars(extend("format" = "ipv4"))]
        "ip" => ip: At<String>,
    }
}

raw! {
    /// `lima.yaml`, as far as it is about networks.
    #[schemars(rename = "Instance")]
    pub struct RawInstance {
        /// The networks of the instance beside the default one.
        "networks" => networks: Vec<At<RawEntry>>,
        /// What names mean to the instance.
        "hostResolver" => host_resolver: RawHostResolver,
        /// Nameservers for the instance, in place of the host's.
        "dns" => dns: Vec<At<String>>,
    }
}

raw! {
    /// What names mean to an instance.
    #[schemars(rename = "HostResolver")]
    pub struct RawHostResolver {
        /// Whether names are resolved as the host does, true by default.
        "enabled" => enabled: At<bool>,
        /// Whether outside names have IPv6 addresses; by default as the host has one.
        "ipv6" => ipv6: At<bool>,
        /// Names of its own: each an address, or another name.
        "hosts" => hosts: Entries<At<String>>,
    }
}

raw! {
    /// A network of an instance: exactly one of `lima`, `socket` and `vzNAT`.
    #[schemars(rename = "Entry")]
    pub struct RawEntry {
        /// The name of a network in networks.yaml.
        "lima" => lima: At<String>,
        /// The socket of a daemon that somebody else runs.
        "socket" => socket: At<String>,
        /// Apple's own NAT, for VZ machines on macOS.
        "vzNAT" => vz_nat: At<bool>,
        /// The MAC address; by default made of the machine's identity and the instance's.
        "macAddress" => mac_address: At<String>,
        /// The interface's name in the guest, lima0 and so on by default.
        "interface" => interface: At<String>,
        /// The metric of the interface's routes, 100 by default.
        "metric" => metric: At<u32>,
    }
}
