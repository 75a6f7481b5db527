//! The `networks.yaml` that is written where there is none.

use crate::identifier;
use crate::platform::{Os, Platform};

/// The default `networks.yaml` of this platform.
pub fn default_networks(platform: &Platform) -> String {
    let head = match platform.os {
        Os::Linux => linux(&platform.group),
        Os::Macos => macos(&platform.group, &platform.socket_vmnet.to_string_lossy()),
    };
    format!("{head}\n{}", networks(&platform.interface))
}

fn linux(group: &str) -> String {
    format!(
        "\
# Networks for virtual machines. Networks of mode user-v2 need no root; the others do, and this is
# what they use.
#
# varRun has the files by which root's part is stopped again, so nobody but root may be able to
# write there, nor into any directory above it. None of these paths may go through a symbolic link.
paths:
  varRun: /run/lima
  sudoers: /etc/sudoers.d/lima

# Members of this group may start the networks that need root.
group: {group}
"
    )
}

fn macos(group: &str, socket_vmnet: &str) -> String {
    let socket_vmnet = serde_json::Value::from(socket_vmnet);
    format!(
        "\
# Networks for virtual machines. Networks of mode user-v2 need no root; the others do, and this is
# what they use.
#
# socketVMNet is run as root, so nobody but root may be able to replace it: neither the program nor
# any directory above it. varRun has the files by which root's part is stopped again, so nobody but
# root may be able to write there either, except for the daemon user, who must.
#
# None of these paths may go through a symbolic link: that is why they start with /private.
paths:
  socketVMNet: {socket_vmnet}
  varRun: /private/var/run/lima
  sudoers: /private/etc/sudoers.d/lima

# Members of this group may start the networks that need root.
group: {group}
"
    )
}

fn networks(interface: &str) -> String {
    // Systems allow names of interfaces that this file does not.
    let interface = if identifier::check(interface).is_ok() { interface } else { "eth0" };
    format!(
        "\
# Where nothing is said, netmask is 255.255.255.0, and dhcpEnd the gateway with 254 at its end.
networks:
  user-v2:
    # Guests reach each other, also as lima-NAME.internal, and the outside by way of the host.
    mode: user-v2
    gateway: 192.168.104.1
    netmask: 255.255.255.0
  shared:
    # The host reaches the guests too.
    mode: shared
    gateway: 192.168.105.1
    dhcpEnd: 192.168.105.254
    netmask: 255.255.255.0
  bridged:
    # Other hosts reach the guests too. There is no gateway: addresses come from that network.
    mode: bridged
    interface: {interface}
  host:
    # Guests and host reach each other, but not the outside.
    mode: host
    gateway: 192.168.106.1
    dhcpEnd: 192.168.106.254
    netmask: 255.255.255.0
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::Networks;
    use crate::source::Source;
    use crate::testing;

    #[test]
    fn the_default_reads_without_a_word() {
        for os in [Os::Linux, Os::Macos] {
            let platform = Platform { os, ..testing::platform() };
            let text = default_networks(&platform);
            let read = Networks::parse(&Source::new("networks.yaml", &*text), &platform).unwrap();
            assert!(read.warnings.is_none());
            assert_eq!(
                read.networks.names().collect::<Vec<_>>(),
                ["bridged", "host", "shared", "user-v2"]
            );
            assert_eq!(read.networks.group, "sudo");
            assert_eq!(read.networks.paths.socket_vmnet.is_some(), os == Os::Macos);
        }
    }

    #[test]
    fn what_is_written() {
        insta::assert_snapshot!("linux", default_networks(&testing::platform()));
        let macos = Platform { os: Os::Macos, group: "admin".into(), ..testing::platform() };
        insta::assert_snapshot!("macos", default_networks(&macos));
    }

    #[test]
    fn strange_names_of_the_machine_stay_sound() {
        let platform = Platform {
            os: Os::Macos,
            interface: "eth0: {".into(),
            socket_vmnet: "/a: b/#c".into(),
            ..testing::platform()
        };
        let text = default_networks(&platform);
        let read = Networks::parse(&Source::new("networks.yaml", text), &platform).unwrap();
        assert_eq!(read.networks.get("bridged").unwrap().interface(), Some("eth0"));
        let path = read.networks.paths.socket_vmnet.unwrap().value;
        assert_eq!(path, std::path::Path::new("/a: b/#c"));
    }
}
