//! `hostResolver` and `dns` of an instance: what names mean to it.

use std::net::IpAddr;

use crate::networks::unknown_field;
use crate::raw::{RawHostResolver, RawInstance};
use crate::source::{Diagnostic, Severity};

/// What names mean to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostResolver {
    /// Names are resolved as the host does.
    pub enabled: bool,
    /// Whether outside names have IPv6 addresses; `None` as the host has one.
    pub ipv6: Option<bool>,
    /// Names, and the address or the other name that each stands for.
    pub hosts: Vec<(String, String)>,
    /// Nameservers in place of the host's.
    pub dns: Vec<IpAddr>,
}

impl Default for HostResolver {
    fn default() -> Self {
        Self { enabled: true, ipv6: None, hosts: Vec::new(), dns: Vec::new() }
    }
}

impl HostResolver {
    /// What an instance says about names, and what is to be said about that although it can be
    /// used. All errors are told at once, warnings with them.
    pub fn of(instance: &RawInstance) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let none = RawHostResolver::default();
        let raw = instance.host_resolver.as_ref().unwrap_or(&none);
        let mut found: Vec<Diagnostic> = raw
            .unknown
            .iter()
            .map(|key| unknown_field(key, RawHostResolver::KEYS, " of `hostResolver`"))
            .collect();
        let enabled = raw.enabled.as_ref().is_none_or(|at| at.value);
        let servers = instance.dns.as_deref().unwrap_or_default();
        if let Some(first) = servers.first().filter(|_| enabled) {
            let message = "field `dns` must be empty when field `HostResolver.Enabled` is true";
            let help = "set `hostResolver: {enabled: false}` to use these nameservers";
            found.push(Diagnostic::error(message.to_owned(), first.span).help(help));
        }
        let mut dns = Vec::new();
        for (i, server) in servers.iter().enumerate() {
            match server.value.parse() {
                Ok(address) => dns.push(address),
                Err(_) => {
                    let text = &server.value;
                    let message = format!("field `dns[{i}]` `{text}` is not an IP address");
                    found.push(Diagnostic::error(message, server.span));
                }
            }
        }
        let hosts = raw.hosts.iter().flat_map(|hosts| &hosts.0);
        let hosts =
            hosts.map(|(name, target)| (name.value.clone(), target.value.clone())).collect();
        if found.iter().any(|d| d.severity == Severity::Error) {
            return Err(found);
        }
        let ipv6 = raw.ipv6.as_ref().map(|at| at.value);
        Ok((Self { enabled, ipv6, hosts, dns }, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn of(text: &str) -> Result<HostResolver, Vec<String>> {
        let raw = RawInstance::parse(&Source::new("lima.yaml", text)).unwrap();
        let found = HostResolver::of(&raw);
        found.map(|(is, _)| is).map_err(|e| e.into_iter().map(|d| d.message).collect())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        assert_eq!(of(""), Ok(HostResolver::default()));
        let is = of(
            "hostResolver: {enabled: false, ipv6: true, hosts: {a.test: 10.0.0.1}}\ndns: [1.1.1.1, 'fd00::1']",
        );
        let is = is.unwrap();
        assert_eq!((is.enabled, is.ipv6), (false, Some(true)));
        assert_eq!(is.hosts, [("a.test".to_owned(), "10.0.0.1".to_owned())]);
        assert_eq!(is.dns, ["1.1.1.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        let error = of("dns: [1.1.1.1, x]").unwrap_err();
        assert_eq!(error[0], "field `dns` must be empty when field `HostResolver.Enabled` is true");
        assert_eq!(error[1], "field `dns[1]` `x` is not an IP address");
    }
}
