//! The file that lets a group start networks as root: which commands, word for word, and nothing
//! else (sudoers(5)).
//!
//! On macOS the commands are socket_vmnet's, and the text is that of Lima, byte for byte, so that
//! one file serves both. On Linux they are the helper's, pinned by its digest.

use std::path::Path;

use crate::networks::Networks;
use crate::socket_vmnet::{self, Commands};
use crate::vmnet;

/// The text on Linux, for a helper with this digest.
pub fn linux(networks: &Networks, helper: &Path, digest: &str) -> String {
    let command = |args: Vec<String>| {
        format!("sha256:{digest} {} {}", helper.display(), escaped(&args.join(" ")))
    };
    let mut sections = Vec::new();
    for network in networks.iter() {
        let Some(start) = vmnet::start(network) else { continue };
        let commands = [start, vmnet::attach(network), vmnet::stop(network)].map(command);
        sections.push(section(&network.name, &networks.group, "root", &commands));
    }
    sections.join("\n")
}

/// The text on macOS.
pub fn macos(networks: &Networks, program: &Path, var_run: &Path) -> String {
    let group = &networks.group;
    let mkdir = socket_vmnet::mkdir(var_run).join(" ");
    let mut text = format!("%{group} ALL=(root:wheel) NOPASSWD:NOSETENV: {mkdir}\n");
    for network in networks.iter() {
        let Some(commands) = Commands::new(network, group, program, var_run) else { continue };
        let commands = [commands.start, commands.stop].map(|words| words.join(" "));
        text.push('\n');
        text.push_str(&section(&network.name, group, "wheel", &commands));
    }
    text
}

fn section(name: &str, group: &str, root_group: &str, commands: &[String]) -> String {
    let commands = commands.join(", \\\n    ");
    format!(
        "# Manage \"{name}\" network daemons\n\n\
         %{group} ALL=(root:{root_group}) NOPASSWD:NOSETENV: \\\n    {commands}\n"
    )
}

/// What separates words of the file does not separate arguments.
fn escaped(args: &str) -> String {
    let special = |c: char| matches!(c, ',' | ':' | '=' | '\\');
    args.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// What differs between what is there and what should be, a line for each. Lines that sudo does not
/// care about are left out.
pub fn differences(there: &str, wanted: &str) -> Vec<String> {
    fn lines(text: &str) -> Vec<&str> {
        let said = |line: &&str| !line.is_empty() && !line.starts_with('#');
        text.lines().map(str::trim_end).filter(said).collect()
    }
    let (there, wanted) = (lines(there), lines(wanted));
    let only = |a: &[&str], b: &[&str], sign| {
        let lines = a.iter().filter(|line| !b.contains(line)).map(|line| format!("{sign} {line}"));
        lines.collect::<Vec<_>>()
    };
    let found = [only(&there, &wanted, '-'), only(&wanted, &there, '+')].concat();
    match found.is_empty() && there != wanted {
        true => vec!["the lines are in another order".into()],
        false => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::networks;

    const NETWORKS: &str = "\
group: admin
networks:
  user-v2: {mode: user-v2, gateway: 192.168.104.1}
  shared: {mode: shared, gateway: 192.168.105.1, dhcpEnd: 192.168.105.254}
  bridged: {mode: bridged, interface: en0}
  host: {mode: host, gateway: 192.168.106.1}
";

    #[test]
    fn macos_text_is_that_of_lima() {
        let text = macos(
            &networks(NETWORKS),
            Path::new("/opt/socket_vmnet/bin/socket_vmnet"),
            Path::new("/private/var/run/lima"),
        );
        let want = r#"%admin ALL=(root:wheel) NOPASSWD:NOSETENV: /bin/mkdir -m 775 -p /private/var/run/lima

# Manage "bridged" network daemons

%admin ALL=(root:wheel) NOPASSWD:NOSETENV: \
    /opt/socket_vmnet/bin/socket_vmnet --pidfile=/private/var/run/lima/bridged_socket_vmnet.pid --socket-group=admin --vmnet-mode=bridged --vmnet-interface=en0 /private/var/run/lima/socket_vmnet.bridged, \
    /usr/bin/pkill -F /private/var/run/lima/bridged_socket_vmnet.pid

# Manage "host" network daemons

%admin ALL=(root:wheel) NOPASSWD:NOSETENV: \
    /opt/socket_vmnet/bin/socket_vmnet --pidfile=/private/var/run/lima/host_socket_vmnet.pid --socket-group=admin --vmnet-mode=host --vmnet-gateway=192.168.106.1 --vmnet-dhcp-end=192.168.106.254 --vmnet-mask=255.255.255.0 /private/var/run/lima/socket_vmnet.host, \
    /usr/bin/pkill -F /private/var/run/lima/host_socket_vmnet.pid

# Manage "shared" network daemons

%admin ALL=(root:wheel) NOPASSWD:NOSETENV: \
    /opt/socket_vmnet/bin/socket_vmnet --pidfile=/private/var/run/lima/shared_socket_vmnet.pid --socket-group=admin --vmnet-mode=shared --vmnet-gateway=192.168.105.1 --vmnet-dhcp-end=192.168.105.254 --vmnet-mask=255.255.255.0 /private/var/run/lima/socket_vmnet.shared, \
    /usr/bin/pkill -F /private/var/run/lima/shared_socket_vmnet.pid
"#;
        assert_eq!(text, want);
    }

    #[test]
    fn linux_text_pins_the_helper() {
        let one = "group: sudo\nnetworks:\n  shared: {mode: shared, gateway: 192.168.105.1}\n  \
                   lan: {mode: bridged, interface: br0}\n  \
                   lab: {mode: host, gateway: 10.9.0.1, netmask: 255.255.0.0}\n";
        let text = linux(&networks(one), Path::new("/usr/local/libexec/vmlan-helper"), "00ff");
        let want = r#"# Manage "lab" network daemons

%sudo ALL=(root:root) NOPASSWD:NOSETENV: \
    sha256:00ff /usr/local/libexec/vmlan-helper start --bridge\=vmlan-lab --mode\=host --gateway\=10.9.0.1/16 --gateway6\=fd76\:6d6c\:a09\:\:1/64, \
    sha256:00ff /usr/local/libexec/vmlan-helper attach --bridge\=vmlan-lab, \
    sha256:00ff /usr/local/libexec/vmlan-helper stop --bridge\=vmlan-lab

# Manage "lan" network daemons

%sudo ALL=(root:root) NOPASSWD:NOSETENV: \
    sha256:00ff /usr/local/libexec/vmlan-helper start --bridge\=vmlan-lan --mode\=bridged --interface\=br0, \
    sha256:00ff /usr/local/libexec/vmlan-helper attach --bridge\=vmlan-lan, \
    sha256:00ff /usr/local/libexec/vmlan-helper stop --bridge\=vmlan-lan

# Manage "shared" network daemons

%sudo ALL=(root:root) NOPASSWD:NOSETENV: \
    sha256:00ff /usr/local/libexec/vmlan-helper start --bridge\=vmlan-shared --mode\=shared --gateway\=192.168.105.1/24 --gateway6\=fd76\:6d6c\:c0a8\:6900\:\:1/64, \
    sha256:00ff /usr/local/libexec/vmlan-helper attach --bridge\=vmlan-shared, \
    sha256:00ff /usr/local/libexec/vmlan-helper stop --bridge\=vmlan-shared
"#;
        assert_eq!(text, want);
    }

    #[test]
    fn differences_are_told() {
        assert_eq!(differences("a\n# x\n", "a\n"), Vec::<String>::new());
        assert_eq!(differences("a\nb\n", "b\nc\n"), ["- a", "+ c"]);
        assert_eq!(differences("", "c\n"), ["+ c"]);
        assert_eq!(differences("b\na\n", "a\nb\n"), ["the lines are in another order"]);
    }
}
