//! The environment variables of a guest: those of `env:`, and over them the host's proxies.

use std::collections::BTreeMap;

/// Variables, and what is to be said about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env {
    pub variables: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

/// The variables of a guest. `host` is the host's own environment, empty unless that is to be
/// propagated. Both spellings of a proxy's variable say the same, and a proxy on the host's loopback
/// is one at `host.lima.internal`. An empty value takes a variable away.
pub fn guest(env: &[(String, String)], host: impl Fn(&str) -> Option<String>) -> Env {
    let mut warnings = Vec::new();
    let mut all: BTreeMap<String, String> = env.iter().cloned().collect();
    for name in PROXIES.iter().flat_map(|name| [(*name).to_owned(), name.to_uppercase()]) {
        let Some(new) = host(&name) else { continue };
        if let Some(old) = all.get(&name).filter(|old| **old != new) {
            warnings.push(format!("`{name}` is `{new}` from the environment, and not `{old}`"));
        }
        all.insert(name, new);
    }
    for name in PROXIES {
        let upper = name.to_uppercase();
        let Some(value) = all.get(*name).or_else(|| all.get(&upper)).cloned() else { continue };
        let value = match *name {
            "no_proxy" => Some(value),
            _ if value.is_empty() => Some(value),
            _ => from_guest(&value),
        };
        match value {
            Some(value) => {
                if let Some(other) = all
                    .get(&upper)
                    .filter(|other| all.contains_key(*name) && all.get(*name) != Some(other))
                {
                    warnings.push(format!("`{upper}` is what `{name}` is, and not `{other}`"));
                }
                all.insert((*name).to_owned(), value.clone());
                all.insert(upper, value);
            }
            None => {
                let value = all.remove(*name).or_else(|| all.remove(&upper)).unwrap_or_default();
                all.remove(&upper);
                warnings
                    .push(format!("`{name}` is left out: `{value}` is not the address of a proxy"));
            }
        }
    }
    all.retain(|_, value| !value.is_empty());
    Env { variables: all.into_iter().collect(), warnings }
}

/// The address of a proxy as the guest reaches it, if it is one: the host's loopback is the host.
fn from_guest(address: &str) -> Option<String> {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, address),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (login, place) = match authority.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, authority),
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    let number = port.strip_prefix(':');
    let port_is_one =
        port.is_empty() || number.is_some_and(|n| n.is_empty() || n.parse::<u16>().is_ok());
    let scheme_is_one = scheme.is_none_or(|text| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    if host.is_empty() || host.contains(char::is_whitespace) || !port_is_one || !scheme_is_one {
        return None;
    }
    if !is_loopback(host) {
        return Some(address.to_owned());
    }
    let scheme = scheme.map(|scheme| format!("{scheme}://")).unwrap_or_default();
    let login = login.map(|login| format!("{login}@")).unwrap_or_default();
    Some(format!("{scheme}{login}{HOST}{port}{path}"))
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = name.parse::<std::net::IpAddr>();
    let mapped = |ip: std::net::IpAddr| ip.to_canonical().is_loopback();
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(mapped)
}

const PROXIES: &[&str] = &["ftp_proxy", "http_proxy", "https_proxy", "all_proxy", "no_proxy"];
const HOST: &str = "host.lima.internal";

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_proxy_on_the_loopback_is_one_at_the_host() {
        for (of_host, of_guest) in [
            ("http://localhost:3128", Some("http://host.lima.internal:3128")),
            ("http://127.0.0.1:3128/", Some("http://host.lima.internal:3128/")),
            ("http://127.9.9.9", Some("http://host.lima.internal")),
            ("http://[::1]:8080", Some("http://host.lima.internal:8080")),
            ("http://[::ffff:127.0.0.1]:8080", Some("http://host.lima.internal:8080")),
            ("socks5h://me:p@ss@LocalHost.:1", Some("socks5h://me:p@ss@host.lima.internal:1")),
            ("localhost:3128", Some("host.lima.internal:3128")),
            ("http://proxy.example:3128", Some("http://proxy.example:3128")),
            ("http://localhost.example:1", Some("http://localhost.example:1")),
            ("http://[2001:db8::1]:1", Some("http://[2001:db8::1]:1")),
            ("http://localhost:99999", None),
            ("http://", None),
            ("://localhost", None),
            ("http://two words:1", None),
            ("http://[::1", None),
        ] {
            assert_eq!(from_guest(of_host).as_deref(), of_guest, "{of_host}");
        }
    }

    #[test]
    fn the_hosts_environment_counts_more_and_both_spellings_are_one() {
        let env = pairs(&[("http_proxy", "http://a:1"), ("FTP_PROXY", "http://f:1"), ("X", "y")]);
        let host = |name: &str| match name {
            "http_proxy" => Some("http://localhost:2".to_owned()),
            "HTTP_PROXY" => Some("http://c:3".to_owned()),
            "no_proxy" => Some("localhost,127.0.0.1".to_owned()),
            _ => None,
        };
        let got = guest(&env, host);
        let expected = [
            ("FTP_PROXY", "http://f:1"),
            ("HTTP_PROXY", "http://host.lima.internal:2"),
            ("NO_PROXY", "localhost,127.0.0.1"),
            ("X", "y"),
            ("ftp_proxy", "http://f:1"),
            ("http_proxy", "http://host.lima.internal:2"),
            ("no_proxy", "localhost,127.0.0.1"),
        ];
        assert_eq!(got.variables, pairs(&expected));
        assert_eq!(got.warnings.len(), 2, "{:?}", got.warnings);
        let without = guest(&env, |_| None);
        assert_eq!(without.variables.len(), 5);
        assert_eq!(without.warnings, Vec::<String>::new());
    }

    #[test]
    fn an_empty_or_bad_value_is_none() {
        let env = pairs(&[("https_proxy", "http://a:1"), ("http_proxy", "http://:x"), ("Y", "")]);
        let host = |name: &str| (name == "https_proxy").then(String::new);
        let got = guest(&env, host);
        assert_eq!(got.variables, Vec::new());
        assert!(got.warnings.iter().any(|text| text.contains("`http://:x` is not the address")));
    }
}
