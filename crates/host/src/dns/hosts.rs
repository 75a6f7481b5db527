//! Names that are answered here and never asked of a nameserver. Exact names only, letter case
//! aside.

use std::collections::HashMap;
use std::net::IpAddr;

use super::message::{self, MAX_NAME, Query};

#[derive(Debug)]
pub(super) struct Hosts(HashMap<Vec<u8>, Vec<IpAddr>>);

impl Hosts {
    /// Names that cannot be asked for are left out.
    pub(super) fn new(hosts: Vec<(String, Vec<IpAddr>)>) -> Self {
        let mut map = HashMap::<_, Vec<IpAddr>>::new();
        for (name, addresses) in hosts {
            if let Some(name) = message::wire_name(&name) {
                map.entry(name).or_default().extend(addresses);
            }
        }
        Self(map)
    }

    pub(super) fn get(&self, query: &Query<'_>) -> Option<&[IpAddr]> {
        let name = query.name()?;
        let mut folded = [0; MAX_NAME];
        let folded = folded.get_mut(..name.len())?;
        folded.copy_from_slice(name);
        folded.make_ascii_lowercase();
        self.0.get(&*folded).map(Vec::as_slice)
    }
}
