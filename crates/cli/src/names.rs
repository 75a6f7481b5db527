//! The flags that say what names mean, shared by every command that has a resolver.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::ValueEnum;
use vmlan_config::layers::Layers;
use vmlan_config::raw::{At, Entries, RawHostResolver, RawInstance};
use vmlan_config::{HostResolver, LimaHome};
use vmlan_dns::{Files, Ipv6, Names, Options, Source, Target};

use crate::Failure;

/// Where nameservers are asked.
const PORT: u16 = 53;

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

    /// What names mean to a guest of a network: the flags are in the place of a `lima.yaml`, under
    /// and over which the home's files are laid. Its own file has the nameservers.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such guest"))]
    pub(crate) fn of_guest(&self, home: &LimaHome) -> Result<HostResolver, Failure> {
        let options = self.options()?;
        if let Some(other) = servers(&options).iter().find(|server| server.port() != PORT) {
            let text = format!("--dns {other}: the guest's own files name no port but {PORT}");
            return Err(Failure::Usage(text));
        }
        self.layered(home, &options)
    }

    /// What names mean to a guest that is alone on its network.
    pub(crate) fn of_default_network(&self) -> Result<Options, Failure> {
        // Without a home there are no files.
        LimaHome::from_env().map_or_else(|_| self.options(), |home| self.in_home(&home))
    }

    fn in_home(&self, home: &LimaHome) -> Result<Options, Failure> {
        let options = self.options()?;
        let resolver = self.layered(home, &options)?;
        let given = servers(&options);
        let addresses = given.iter().map(SocketAddr::ip);
        let mut found = options_of(&resolver)?;
        if !given.is_empty() && addresses.eq(resolver.dns.iter().copied()) {
            // Ports are in the flags only.
            found.source = options.source;
        }
        Ok(found)
    }

    fn layered(&self, home: &LimaHome, options: &Options) -> Result<HostResolver, Failure> {
        let mut layers = Layers::load(home)?;
        if !self.dns.is_empty() {
            // Of several sources, one counts.
            layers.default.dns = None;
        }
        let (resolver, warnings) = HostResolver::of(&layers.apply(self.instance(options)))
            .map_err(|found| {
                let found: Vec<_> = found.into_iter().map(|d| d.message).collect();
                Failure::Failed(found.join("; "))
            })?;
        for warning in warnings {
            crate::tell(&warning.message);
        }
        Ok(resolver)
    }

    /// What a `lima.yaml` would say in place of the flags.
    fn instance(&self, options: &Options) -> RawInstance {
        let target = |target: &Target| match target {
            Target::Address(address) => address.to_string(),
            Target::Alias(name) => name.clone(),
        };
        let hosts = self.dns_host.iter();
        let hosts = hosts.map(|h| (At::nowhere(h.name.clone()), At::nowhere(target(&h.target))));
        let dns = servers(options).iter().map(|server| At::nowhere(server.ip().to_string()));
        let is_host = matches!(options.source, Source::Host(_));
        let host_resolver = RawHostResolver {
            enabled: (!self.dns.is_empty()).then(|| At::nowhere(is_host)),
            ipv6: match self.dns_ipv6 {
                When::Auto => None,
                When::True => Some(At::nowhere(true)),
                When::False => Some(At::nowhere(false)),
            },
            hosts: Some(Entries(hosts.collect())),
            ..RawHostResolver::default()
        };
        let host_resolver = Some(host_resolver);
        RawInstance { host_resolver, dns: Some(dns.collect()), ..RawInstance::default() }
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

/// The nameservers that were given.
fn servers(options: &Options) -> &[SocketAddr] {
    match &options.source {
        Source::Servers(servers) => servers,
        Source::Host(_) | Source::ResolvConf(_) => &[],
    }
}

/// What a resolver of vmlan's makes of an instance's settings.
pub(crate) fn options_of(resolver: &HostResolver) -> Result<Options, Failure> {
    let mut names = Names::default();
    for (name, target) in &resolver.hosts {
        let target = match target.parse() {
            Ok(address) => Target::Address(address),
            Err(_) => Target::Alias(target.clone()),
        };
        let added = names.add(name, &target);
        added.map_err(|e| Failure::Failed(format!("field `hostResolver.hosts`: {e}")))?;
    }
    let ipv6 = match resolver.ipv6 {
        None => Ipv6::Auto,
        Some(true) => Ipv6::Always,
        Some(false) => Ipv6::Never,
    };
    let source = match &resolver.dns[..] {
        _ if resolver.enabled => Source::default(),
        [] => Source::ResolvConf(Files::default().resolv_conf),
        servers => Source::Servers(servers.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect()),
    };
    Ok(Options { source, names, ipv6 })
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

    fn in_home(files: &[(&str, &str)], flags: &[&str]) -> Result<Options, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("_config")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("_config").join(name), text).unwrap();
        }
        let line = Line::try_parse_from(["x"].iter().chain(flags)).map_err(|e| e.to_string())?;
        line.names.in_home(&LimaHome::new(dir.path()).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_are_between_the_files_of_the_home() {
        let under = (
            "default.yaml",
            "hostResolver: {enabled: false, ipv6: false, hosts: {a.test: 10.0.0.1}}\n\
             dns: [192.0.2.1]\n",
        );
        let over = ("override.yaml", "hostResolver: {enabled: false, hosts: {b.test: 10.0.0.9}}\n");
        let servers =
            |list: &[&str]| Source::Servers(list.iter().map(|s| s.parse().unwrap()).collect());
        let none = in_home(&[], &[]).unwrap();
        assert_eq!((none.source, none.ipv6), (Source::default(), Ipv6::Auto));
        let found = in_home(&[under], &[]).unwrap();
        assert_eq!((found.source, found.ipv6), (servers(&["192.0.2.1:53"]), Ipv6::Never));
        assert!(found.names.has("a.test"));
        for (flags, source) in [
            (&["--dns", "192.0.2.2:5353"][..], servers(&["192.0.2.2:5353"])),
            (&["--dns", "host"], Source::default()),
            (&["--dns", "resolv.conf"], Source::ResolvConf("/etc/resolv.conf".into())),
        ] {
            assert_eq!(in_home(&[under], flags).unwrap().source, source, "{flags:?}");
        }
        let flags = ["--dns-host", "b.test=10.0.0.2", "--dns-ipv6", "true"];
        let found = in_home(&[under, over], &flags).unwrap();
        assert_eq!(found.ipv6, Ipv6::Always);
        assert!(found.names.has("a.test") && found.names.has("b.test"));
        let dns = ("override.yaml", "hostResolver: {enabled: false}\ndns: [192.0.2.3]\n");
        let found = in_home(&[under, dns], &["--dns", "192.0.2.2:5353"]).unwrap();
        assert_eq!(found.source, servers(&["192.0.2.3:53"]));
        let wrong = in_home(&[("default.yaml", "hostResolver: {hosts: {'..': 10.0.0.1}}\n")], &[]);
        assert!(wrong.unwrap_err().contains("hostResolver.hosts"));
        assert!(in_home(&[("default.yaml", "dns: {\n")], &[]).is_err());
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
