//! Guests that said who they are: their addresses, and the names that stand for these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vmlan_config::{IdentifierError, Reservation};
use vmlan_dns::{Names, Target};
use vmlan_engine::PortId;
use vmlan_wire::Mac;

use super::Core;

/// A guest that said who it is.
#[derive(Clone, Debug)]
pub(crate) struct GuestInfo {
    pub(crate) mac: Mac,
    pub(crate) port: PortId,
    pub(crate) name: Option<String>,
    pub(crate) address: Ipv4Addr,
    /// Of a guest that configures itself, what it has been seen to use.
    pub(crate) address6: Option<Ipv6Addr>,
    pub(crate) autoconf: bool,
}

impl GuestInfo {
    /// The addresses that it surely has.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.address.into()].into_iter().chain(self.address6.map(IpAddr::V6))
    }

    /// What it is called on the network.
    pub(crate) fn host_name(&self) -> Option<String> {
        internal_name(self.name.as_deref()?).ok()
    }
}

/// What a guest with this name is called on its network.
pub(crate) fn internal_name(guest: &str) -> Result<String, IdentifierError> {
    let host = vmlan_config::host_name(guest)?;
    Ok(format!("{}.internal", host.to_ascii_lowercase()))
}

impl Core {
    /// Gives a guest its addresses.
    pub(crate) fn assign(
        &mut self,
        mac: Mac,
        port: Option<PortId>,
        wanted: Option<(Ipv4Addr, Ipv6Addr)>,
    ) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.engine.assign(mac, port, wanted, self.now)
    }

    /// Frees a guest's addresses.
    pub(crate) fn unassign(&mut self, mac: Mac) {
        self.engine.unassign(mac);
    }

    /// Keeps addresses and names for guests.
    pub(crate) fn reserve(&mut self, reservations: Vec<Reservation>) {
        for (reservation, n) in reservations.iter().zip(0u16..) {
            // A guest that is known by its name only gets it as it comes. Until then it is a
            // group's, which no guest can be.
            let [a, b] = n.to_be_bytes();
            let mac = reservation.mac.unwrap_or(Mac([3, 0, 0, 0, a, b]));
            if let Some(ip) = reservation.ip {
                self.engine.reserve(mac, ip);
            }
        }
        self.reservations = reservations;
    }

    /// Makes what is kept for a guest by its name a matter of its MAC address. An error says whose
    /// the name is.
    pub(crate) fn reserve_for(&mut self, mac: Mac, name: Option<&str>) -> Result<(), String> {
        let host = |name: &str| vmlan_config::host_name(name).map(|n| n.to_ascii_lowercase()).ok();
        let Some(name) = name.and_then(host) else { return Ok(()) };
        let mut all = self.reservations.iter();
        let found = all.find(|r| r.name.as_deref().and_then(host).as_ref() == Some(&name));
        match found {
            Some(Reservation { mac: Some(owner), .. }) if *owner != mac => {
                let owner = vmlan_config::show_mac(*owner);
                Err(format!("the name {name} is reserved for {owner}"))
            }
            Some(Reservation { mac: None, ip: Some(ip), .. }) => {
                self.engine.reserve(mac, *ip);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn name_leases(&mut self) {
        let (leases, addresses) = (self.engine.lease_changes(), self.engine.address_changes());
        if self.lease_names.must_look(leases, addresses, self.now) {
            self.follow_addresses();
            self.update_lease_names();
        }
    }

    /// Has the names of guests that configure themselves stand for what they use.
    fn follow_addresses(&mut self) {
        let names = self.sockets.resolver().names_mut();
        for guest in self.guests.iter_mut().filter(|guest| guest.autoconf) {
            let address6 = self.engine.ipv6_in_use(guest.mac, guest.port);
            if std::mem::replace(&mut guest.address6, address6) != address6 {
                name(guest, names);
            }
        }
    }

    /// Takes a guest in that said who it is: its name is there from now on.
    pub(crate) fn add_named(&mut self, guest: GuestInfo) {
        name(&guest, self.sockets.resolver().names_mut());
        self.guests.push(guest);
        // A name that a machine has by its lease is the guest's now.
        self.update_lease_names();
    }

    /// Gives names to guests that have not joined by one.
    pub(crate) fn update_lease_names(&mut self) {
        let Self { engine, guests, lease_names, reservations, sockets, .. } = self;
        let joined = |mac: Mac, host: &str| {
            let is_host = |guest: &GuestInfo| {
                let name = guest.name.as_deref().map(vmlan_config::host_name);
                name.is_some_and(|name| name.is_ok_and(|name| name.eq_ignore_ascii_case(host)))
            };
            guests.iter().any(|guest| guest.mac == mac || is_host(guest))
        };
        let names = sockets.resolver().names_mut();
        lease_names.update(engine.present_leases(), reservations, joined, names);
    }
}

/// Has a guest's name stand for its addresses, and for nothing else.
fn name(guest: &GuestInfo, names: &mut Names) {
    let Some(name) = guest.host_name() else { return };
    names.remove(&name);
    for address in guest.addresses() {
        // The name has been checked.
        let _ = names.add(&name, &Target::Address(address));
    }
}
