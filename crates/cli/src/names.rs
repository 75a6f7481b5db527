//! The flags that say what names mean, shared by every command that has a resolver.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::ValueEnum;
use vmlan_config::raw::{At, Entries, RawHostResolver, RawInstance};
use vmlan_dns::{Ipv6, Names, Options, Source, Target};

use crate::Failure;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NameArgs {
    /// Give a name to guests: NAME=IP, or NAME=OTHER for an alias of any other name.
    ///
    /// A name may have several addresses, one flag for each.
    #[arg(long, value_name = "NAME=IP|NAME")]
    dns_host: Vec<DnsHost>,

    /// Ask this nameserver, IP or IP:PORT, instead of resolving names as the host does.
    #[arg(long, value_name = "IP")]
    dns: Vec<Nameserver>,

    /// Whether names outside have IPv6 addresses: true, false, or auto, as the host has one.
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    dns_ipv6: When,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    Auto,
    True,
    False,
}

/// One `--dns-host`.
#[derive(Clone, Debug)]
struct DnsHost {
    name: String,
    target: Target,
}

impl FromStr for DnsHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, target) = text.split_once('=').ok_or("expected NAME=IP or NAME=NAME")?;
        let target = match target.parse() {
            Ok(address) => Target::Address(address),
            Err(_) => Target::Alias(target.into()),
        };
        let host = Self { name: name.into(), target };
        // Said here, where the flag is told with it.
        Names::default().add(&host.name, &host.target).map_err(|e| e.to_string())?;
        Ok(host)
    }
}

/// One `--dns`.
#[derive(Clone, Copy, Debug)]
struct Nameserver(SocketAddr);

impl FromStr for Nameserver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const PORT: u16 = 53;
        let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
        let server = plain.or_else(|_| text.parse::<SocketAddr>());
        let server = server.map_err(|_| "expected an IP address, with :PORT if it is not 53")?;
        if server.ip().is_unspecified() || server.port() == 0 {
            return Err(format!("{server} is nobody's address"));
        }
        Ok(Self(server))
    }
}

impl NameArgs {
    /// What a `lima.yaml` would say in place of the flags.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such guest"))]
    pub(crate) fn instance(&self) -> Result<RawInstance, Failure> {
        const PORT: u16 = 53;
        self.options()?;
        if let Some(other) = self.dns.iter().find(|server| server.0.port() != PORT) {
            let text = format!("--dns {}: the guest's own files name no port but {PORT}", other.0);
            return Err(Failure::Usage(text));
        }
        let target = |target: &Target| match target {
            Target::Address(address) => address.to_string(),
            Target::Alias(name) => name.clone(),
        };
        let hosts = self.dns_host.iter();
        let hosts = hosts.map(|h| (At::nowhere(h.name.clone()), At::nowhere(target(&h.target))));
        let dns = self.dns.iter().map(|server| At::nowhere(server.0.ip().to_string()));
        let host_resolver = RawHostResolver {
            enabled: (!self.dns.is_empty()).then(|| At::nowhere(false)),
            ipv6: match self.dns_ipv6 {
                When::Auto => None,
                When::True => Some(At::nowhere(true)),
                When::False => Some(At::nowhere(false)),
            },
            hosts: Some(Entries(hosts.collect())),
            ..RawHostResolver::default()
        };
        let host_resolver = Some(host_resolver);
        Ok(RawInstance { host_resolver, dns: Some(dns.collect()), ..RawInstance::default() })
    }

    pub(crate) fn options(&self) -> Result<Options, Failure> {
        let mut names = Names::default();
        for host in &self.dns_host {
            let other = self.dns_host.iter().filter(|other| {
                other
                    .name
                    .trim_end_matches('.')
                    .eq_ignore_ascii_case(host.name.trim_end_matches('.'))
            });
            if matches!(host.target, Target::Alias(_)) && other.count() > 1 {
                let text =
                    format!("--dns-host {}: an alias has one target and nothing else", host.name);
                return Err(Failure::Usage(text));
            }
            let added = names.add(&host.name, &host.target);
            added.map_err(|e| Failure::Usage(format!("--dns-host {e}")))?;
        }
        let servers: Vec<SocketAddr> = self.dns.iter().map(|server| server.0).collect();
        let source = if servers.is_empty() { Source::default() } else { Source::Servers(servers) };
        let ipv6 = match self.dns_ipv6 {
            When::Auto => Ipv6::Auto,
            When::True => Ipv6::Always,
            When::False => Ipv6::Never,
        };
        Ok(Options { source, names, ipv6 })
    }
}
