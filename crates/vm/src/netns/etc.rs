//! What the guest's own resolv.conf, hosts and nsswitch.conf say: the host's files, with the
//! resolver replaced. Texts only; [`files`](super::files) puts them in place.

use std::fmt::Write;
use std::net::IpAddr;

/// The name by which guests reach the host's loopback. It is the resolver's to answer, whatever
/// the host's own file says.
const HOST_ALIAS: &str = "host.lima.internal";

/// resolv.conf(5): `servers` instead of the host's, search list and options as they are.
pub(super) fn resolv_conf(host: &str, servers: &[IpAddr]) -> String {
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for line in host.lines() {
        if matches!(line.split_ascii_whitespace().next(), Some("search" | "domain" | "options")) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// hosts(5): the host's, completed by `localhost` and the host's own name.
pub(super) fn hosts(host: &str, hostname: &str) -> String {
    let mut text = String::new();
    let mut names: Vec<(IpAddr, &str)> = Vec::new();
    for line in host.lines() {
        let content = line.split('#').next().unwrap_or("");
        let mut fields = content.split_ascii_whitespace();
        let addr = fields.next().and_then(|a| a.parse().ok());
        let (kept, ours): (Vec<&str>, Vec<&str>) =
            fields.partition(|name| !name.eq_ignore_ascii_case(HOST_ALIAS));
        match addr {
            Some(addr) if !ours.is_empty() => {
                if !kept.is_empty() {
                    let _ = writeln!(text, "{addr}\t{}", kept.join(" "));
                }
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
        if let Some(addr) = addr {
            names.extend(kept.into_iter().map(|name| (addr, name)));
        }
    }
    let has = |name: &str, v6: Option<bool>| {
        names
            .iter()
            .any(|(a, n)| n.eq_ignore_ascii_case(name) && v6.is_none_or(|v6| a.is_ipv6() == v6))
    };
    if !has("localhost", Some(false)) {
        text.push_str("127.0.0.1\tlocalhost\n");
    }
    if !has("localhost", Some(true)) {
        text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    if !hostname.is_empty() && !has(hostname, None) {
        // What nss-myhostname or the host's DNS would have said.
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    text
}

/// nsswitch.conf(5): names come from the files and from DNS, nothing else; the other databases as
/// they are.
pub(super) fn nsswitch(host: &str) -> String {
    let mut text = String::from("hosts: files dns\n");
    for line in host.lines() {
        if line.split(':').next().is_none_or(|database| database.trim() != "hosts") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_keeps_search_and_options() {
        let host =
            "# by hand\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n";
        assert_eq!(
            resolv_conf(host, &["192.168.5.3".parse().unwrap(), "fd00::3".parse().unwrap()]),
            "nameserver 192.168.5.3\nnameserver fd00::3\noptions edns0 trust-ad\nsearch corp.example\n"
        );
        assert_eq!(resolv_conf("", &["192.168.5.3".parse().unwrap()]), "nameserver 192.168.5.3\n");
    }

    #[test]
    fn hosts_keeps_what_is_there() {
        let host = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 box\n10.1.2.3 nas # attic\n";
        assert_eq!(hosts(host, "box"), host);
    }

    #[test]
    fn hosts_is_completed() {
        assert_eq!(
            hosts("", "box"),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n"
        );
        assert!(!hosts("", "").contains("127.0.1.1"));
    }

    #[test]
    fn the_host_alias_is_left_to_the_resolver() {
        let host = "127.0.0.1 localhost Host.Lima.Internal\n::1 localhost\n192.168.9.2 host.lima.internal\n";
        assert_eq!(hosts(host, ""), "127.0.0.1\tlocalhost\n::1 localhost\n");
    }

    #[test]
    fn nsswitch_replaces_one_line() {
        let host = "passwd:  files systemd\nhosts:   files resolve [!UNAVAIL=return] dns\n# end\n";
        assert_eq!(nsswitch(host), "hosts: files dns\npasswd:  files systemd\n# end\n");
    }
}
