//! The flags that say what names mean, shared by every command that has a resolver.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::ValueEnum;
use vmlan_config::raw::{At, Entries, RawHostResolver, RawInstance};
use vmlan_dns::{Files, Ipv6, Names, Options, Source, Target};

use crate::Failure;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NameArgs {
    /// Give a name to guests: NAME=IP, or NAME=OTHER for an alias of any other name.
    ///
    /// A name may have several addresses, one flag for each.
    #[arg(long, value_name = "NAME=IP|NAME")]
    dns_host: Vec<DnsHost>,

    /// Who knows outside names: host, resolv.conf, or nameservers, each IP or IP:PORT.
    ///
    /// With host, names are resolved as the host does: by its hosts file, its functions and its
    /// nameservers. With resolv.conf, by the nameservers that are listed there alone. Several
    /// nameservers have a flag each. [default: host]
    #[arg(long, value_name = "SOURCE")]
    dns: Vec<Dns>,

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dns {
    Host,
    ResolvConf,
    Server(SocketAddr),
}

impl FromStr for Dns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const PORT: u16 = 53;
        match text {
            "host" => return Ok(Self::Host),
            "resolv.conf" => return Ok(Self::ResolvConf),
            _ => {}
        }
        let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
        let server = plain.or_else(|_| text.parse::<SocketAddr>());
        let server = server.map_err(
            |_| "expected host, resolv.conf, or an IP address, with :PORT if it is not 53",
        )?;
        if server.ip().is_unspecified() || server.port() == 0 {
            return Err(format!("{server} is nobody's address"));
        }
        Ok(Self::Server(server))
    }
}

impl NameArgs {
    /// What they are called on a command line that can do without them.
    pub(crate) const FLAGS: [&str; 3] = ["dns_host", "dns", "dns_ipv6"];

    /// What a `lima.yaml` would say in place of the flags.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such guest"))]
    pub(crate) fn instance(&self) -> Result<RawInstance, Failure> {
        const PORT: u16 = 53;
        let options = self.options()?;
        let servers = match &options.source {
            Source::Servers(servers) => &servers[..],
            Source::Host(_) | Source::ResolvConf(_) => &[],
        };
        if let Some(other) = servers.iter().find(|server| server.port() != PORT) {
            let text = format!("--dns {other}: the guest's own files name no port but {PORT}");
            return Err(Failure::Usage(text));
        }
        let target = |target: &Target| match target {
            Target::Address(address) => address.to_string(),
            Target::Alias(name) => name.clone(),
        };
        let hosts = self.dns_host.iter();
        let hosts = hosts.map(|h| (At::nowhere(h.name.clone()), At::nowhere(target(&h.target))));
        let dns = servers.iter().map(|server| At::nowhere(server.ip().to_string()));
        let host_resolver = RawHostResolver {
            enabled: (!matches!(options.source, Source::Host(_))).then(|| At::nowhere(false)),
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

    /// Outside names are to be asked of resolv.conf's nameservers alone.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such guest"))]
    pub(crate) fn asks_resolv_conf(&self) -> bool {
        self.dns == [Dns::ResolvConf]
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
        let source = self.source()?;
        let ipv6 = match self.dns_ipv6 {
            When::Auto => Ipv6::Auto,
            When::True => Ipv6::Always,
            When::False => Ipv6::Never,
        };
        Ok(Options { source, names, ipv6 })
    }

    fn source(&self) -> Result<Source, Failure> {
        let server = |dns: &Dns| match dns {
            Dns::Server(server) => Some(*server),
            _ => None,
        };
        let servers: Option<Vec<SocketAddr>> = self.dns.iter().map(server).collect();
        match (&self.dns[..], servers) {
            ([] | [Dns::Host], _) => Ok(Source::default()),
            ([Dns::ResolvConf], _) => Ok(Source::ResolvConf(Files::default().resolv_conf)),
            (_, Some(servers)) => Ok(Source::Servers(servers)),
            _ => Err(Failure::Usage("--dns: host or resolv.conf has no other beside it".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        names: NameArgs,
    }

    fn source(dns: &[&str]) -> Result<Source, String> {
        let flags = dns.iter().flat_map(|value| ["--dns", value]);
        let line = Line::try_parse_from(["x"].into_iter().chain(flags));
        let line = line.map_err(|e| e.to_string())?;
        line.names.options().map(|options| options.source).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn one_source_or_several_nameservers_are_taken() {
        assert_eq!(source(&[]), Ok(Source::Host(Files::default())));
        assert_eq!(source(&["host"]), source(&[]));
        assert_eq!(source(&["resolv.conf"]), Ok(Source::ResolvConf("/etc/resolv.conf".into())));
        let servers = ["10.0.0.1:53", "[::1]:5353"].map(|text| text.parse().unwrap());
        assert_eq!(source(&["10.0.0.1", "[::1]:5353"]), Ok(Source::Servers(servers.into())));
        for wrong in [
            &["host", "10.0.0.1"][..],
            &["10.0.0.1", "resolv.conf"],
            &["host", "resolv.conf"],
            &["0.0.0.0"],
            &["resolv"],
        ] {
            assert!(source(wrong).is_err(), "{wrong:?}");
        }
    }
}
