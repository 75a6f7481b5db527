//! What the tests of hostile nameservers share.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use vmlan_e2e::World;
use vmlan_e2e::dns_client::Client;
use vmlan_e2e::dns_message::{A, Message, NOERROR, Query};
use vmlan_e2e::world::{DNS, OUTSIDE};

pub(crate) const FIRST: IpAddr = OUTSIDE;
pub(crate) const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 3));
pub(crate) const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 4));
/// Routed to the outside and swallowed there.
pub(crate) const SILENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 200));

pub(crate) const TRUE: [u8; 4] = [203, 0, 113, 1];
pub(crate) const FALSE: [u8; 4] = [203, 0, 113, 66];

/// How long a guest's resolver waits before it asks again, or elsewhere: resolv.conf(5).
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A host with these nameservers, and addresses for three of them.
#[track_caller]
pub(crate) fn world(nameservers: &[IpAddr]) -> World {
    let world = World::new();
    for address in [SECOND, THIRD] {
        world.outside.ip(&format!("address add {address}/24 dev down0"));
    }
    let lines = nameservers.iter().map(|address| format!("nameserver {address}\n"));
    world.host.set_resolv_conf(&lines.collect::<String>());
    world
}

/// Asks for an address as a guest's resolver does: again after a while, a few times.
#[track_caller]
pub(crate) fn resolve(guest: &mut Client<'_>, name: &str) -> Message {
    let message = Query::new(name, A).encode(0x5555);
    let reply = (0..4).find_map(|_| guest.exchange_udp(&message, PATIENCE).ok());
    let reply = reply.unwrap_or_else(|| panic!("no reply for {name}"));
    Message::decode(&reply).expect("a reply")
}

#[track_caller]
pub(crate) fn expect_truth(world: &World, name: &str) {
    let mut guest = Client::new(&world.guest, DNS);
    let reply = resolve(&mut guest, name);
    assert_eq!((reply.rcode, reply.addresses()), (NOERROR, vec!["203.0.113.1".to_owned()]));
}
