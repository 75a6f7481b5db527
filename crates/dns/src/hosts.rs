//! hosts(5): the addresses of names and the names of addresses that the machine's own file gives.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::hash::{ByName, Hashed};
use crate::name;

#[derive(Debug, Default)]
pub(crate) struct Hosts {
    by_name: ByName<Vec<IpAddr>>,
    by_address: HashMap<IpAddr, Box<[u8]>>,
}

impl Hosts {
    pub(crate) fn parse(text: &str) -> Self {
        let mut hosts = Self::default();
        for line in text.lines() {
            let content = line.split('#').next().unwrap_or_default();
            let mut fields = content.split_ascii_whitespace();
            let Some(address) = fields.next().and_then(|text| text.parse().ok()) else { continue };
            for name in fields.filter_map(|name| name::from_text(name).ok()) {
                hosts.by_address.entry(address).or_insert_with(|| name.clone());
                match hosts.by_name.get_mut(&name) {
                    Some(known) if known.contains(&address) => {}
                    Some(known) => known.push(address),
                    None => hosts.by_name.insert(name, vec![address]),
                }
            }
        }
        hosts
    }

    /// The addresses of a folded name.
    pub(crate) fn addresses(&self, name: Hashed<'_>) -> Option<&[IpAddr]> {
        self.by_name.get(name).map(Vec::as_slice)
    }

    /// The name of an address: the first of the line.
    pub(crate) fn name(&self, address: IpAddr) -> Option<&[u8]> {
        self.by_address.get(&address).map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_libc_does() {
        let text = "127.0.0.1\tlocalhost box # home\n::1 localhost\n#10.0.0.1 no\nnonsense x\n\
                    10.0.0.2 NAS.lan nas\n10.0.0.3 nas\n10.0.0.3 nas\n10.0.0.4\n";
        let hosts = Hosts::parse(text);
        let find = |name: &str| {
            let found = hosts.addresses(Hashed::new(&name::from_text(name).unwrap()));
            found.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(find("localhost").unwrap(), "127.0.0.1 ::1");
        assert_eq!(find("nas").unwrap(), "10.0.0.2 10.0.0.3");
        assert_eq!(find("nas.lan").unwrap(), "10.0.0.2");
        assert_eq!((find("no"), find("x"), find("home")), (None, None, None));
        let name = |text: &str| hosts.name(text.parse().unwrap());
        assert_eq!(name("10.0.0.3"), Some(&b"\x03nas\x00"[..]));
        assert_eq!(name("127.0.0.1"), Some(&b"\x09localhost\x00"[..]));
        assert_eq!(name("10.0.0.4"), None);
    }
}
