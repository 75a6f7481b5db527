//! nsswitch.conf(5): which of the machine's sources a name could be known to, beyond its hosts file
//! and the nameservers.

use std::net::IpAddr;

use crate::name;

/// The machine's sources of names, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    modules: Vec<Module>,
    /// The hosts file is asked before the nameservers.
    files_first: bool,
    dns: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    /// Multicast DNS: names below `.local`, and link-local addresses.
    Mdns,
    /// The machine's own name, and a few that stand for it and its gateway.
    Myhostname,
    /// systemd-resolved, which may know more than the nameservers of resolv.conf.
    Resolve,
    /// Names without a dot.
    Single,
    /// It may know any name.
    Any,
}

/// What of the machine matters to its sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its name, folded and in wire form.
    pub(crate) hostname: Box<[u8]>,
    /// The nameserver in resolv.conf is systemd-resolved itself.
    pub(crate) resolved: bool,
}

impl Default for Sources {
    fn default() -> Self {
        Self { modules: Vec::new(), files_first: true, dns: true }
    }
}

impl Sources {
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = text.lines().filter_map(|line| line.split('#').next()?.split_once(':'));
        let Some((_, list)) = lines.rfind(|(database, _)| database.trim() == "hosts") else {
            return Self::default();
        };
        let mut sources = Self { modules: Vec::new(), files_first: false, dns: false };
        let (mut stopped, mut before) = (false, "");
        for word in words(list) {
            if let Some(actions) = word.strip_prefix('[') {
                // With a source that has the last word on every name, those after it do not count.
                let actions = actions.to_ascii_uppercase();
                let all = matches!(before, "files" | "dns") || Module::of(before) == Module::Any;
                stopped |= all && actions.contains("NOTFOUND=RETURN");
                continue;
            }
            if stopped {
                break;
            }
            before = word;
            match word {
                "files" => sources.files_first = !sources.dns,
                "dns" => sources.dns = true,
                _ => sources.modules.push(Module::of(word)),
            }
        }
        sources
    }

    /// Whether the hosts file has the first word.
    pub(crate) fn files_first(&self) -> bool {
        self.files_first
    }

    /// Whether the machine's own functions must be asked for the addresses of a folded name.
    pub(crate) fn wants_name(&self, name: &[u8], machine: &Machine) -> bool {
        let local = name::top(name) == Some(b"local");
        let single = name::labels(name).nth(1).is_none();
        !self.dns
            || local
            || self.modules.iter().any(|module| match module {
                Module::Mdns => local,
                Module::Myhostname => is_own(name, machine),
                Module::Resolve => single || !machine.resolved,
                Module::Single => single,
                Module::Any => true,
            })
    }

    /// Whether they must be asked for the name of an address.
    pub(crate) fn wants_address(&self, address: IpAddr, machine: &Machine) -> bool {
        let link_local = match address {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !self.dns
            || self.modules.iter().any(|module| match module {
                Module::Mdns => link_local,
                Module::Myhostname => address.is_loopback(),
                Module::Resolve => link_local || !machine.resolved,
                Module::Single => false,
                Module::Any => true,
            })
    }
}

impl Module {
    fn of(word: &str) -> Self {
        match word {
            "mdns" | "mdns4" | "mdns6" | "mdns_minimal" | "mdns4_minimal" | "mdns6_minimal" => {
                Self::Mdns
            }
            "myhostname" => Self::Myhostname,
            "resolve" => Self::Resolve,
            "mymachines" | "wins" => Self::Single,
            _ => Self::Any,
        }
    }
}

/// Names and `[actions]`, which may have spaces within.
fn words(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let end = if rest.starts_with('[') {
            rest.find(']').map(|at| at + 1)
        } else {
            rest.find(|c: char| c.is_ascii_whitespace() || c == '[')
        };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// The names that nss-myhostname(8) answers.
fn is_own(name: &[u8], machine: &Machine) -> bool {
    let own = !machine.hostname.is_empty() && *name == *machine.hostname;
    let mut labels = name::labels(name);
    let first = labels.next().unwrap_or_default();
    let alone = labels.next().is_none();
    own || name::top(name) == Some(b"localhost")
        || (alone && (first == b"_gateway" || first == b"_outbound"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(line: &str, name: &str) -> bool {
        let machine = Machine { hostname: name::from_text("box").unwrap(), resolved: true };
        Sources::parse(line).wants_name(&name::from_text(name).unwrap(), &machine)
    }

    #[test]
    fn only_what_the_nameservers_cannot_know_goes_the_native_way() {
        let plain = "hosts: files dns";
        assert!(!wants(plain, "a.example") && !wants(plain, "nas"));
        assert!(wants(plain, "printer.local") && wants("", "printer.local"));
        assert!(!wants("", "a.example"));
        let debian = "passwd: files\nhosts:          files mdns4_minimal [NOTFOUND=return] dns myhostname mymachines";
        assert!(!wants(debian, "a.example"));
        assert!(
            wants(debian, "printer.local") && wants(debian, "box") && wants(debian, "_gateway")
        );
        assert!(wants(debian, "a.localhost") && wants(debian, "container"));
        let resolved = "hosts: files resolve [!UNAVAIL=return] dns";
        assert!(!wants(resolved, "a.example") && wants(resolved, "nas"));
        let elsewhere = Machine::default();
        let name = name::from_text("a.example").unwrap();
        assert!(Sources::parse(resolved).wants_name(&name, &elsewhere));
        assert!(wants("hosts: files custom dns", "a.example"));
        assert!(wants("hosts: files", "a.example"));
        assert!(wants("hosts: files [NOTFOUND=return] dns", "a.example"));
    }

    #[test]
    fn actions_and_comments_are_understood() {
        let sources =
            Sources::parse("#hosts: custom\nhosts: dns[ !UNAVAIL=return ]files # custom\n");
        assert_eq!(sources, Sources { modules: vec![], files_first: false, dns: true });
        let sources = Sources::parse("hosts: files dns [NOTFOUND=return] custom\n");
        assert_eq!(sources, Sources::default());
        assert_eq!(
            Sources::parse("hosts: files [dns"),
            Sources { dns: false, ..Sources::default() }
        );
    }

    #[test]
    fn addresses_too() {
        let of = |line: &str, ip: &str| {
            Sources::parse(line).wants_address(ip.parse().unwrap(), &Machine::default())
        };
        assert!(
            !of("hosts: files dns", "169.254.1.1") && of("hosts: files mdns dns", "169.254.1.1")
        );
        assert!(
            !of("hosts: files mdns dns", "10.0.0.1") && of("hosts: files custom dns", "10.0.0.1")
        );
    }
}
