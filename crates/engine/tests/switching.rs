//! Guests among themselves: their frames cross the switch without the gateway.

use std::time::Duration;

use vmlan_testkit::{Faults, LinkOptions, Pattern, World};

const MIB: u64 = 1 << 20;

/// One guest sends, another receives; every byte is intact and both ends close cleanly.
fn transfer(from: LinkOptions, to: LinkOptions, bytes: u64, limit: Duration) {
    let mut world = World::new(1);
    let (a, b) = (world.add_guest(from), world.add_guest(to));
    let pattern = Pattern(7);
    let server = world.guests[b].listen(80);
    world.guests[b].expect(server, pattern);
    let to = (world.guests[b].ipv4, 80).into();
    let client = world.guests[a].connect(to);
    world.guests[a].send(client, pattern, bytes);
    world.run_until(limit, |w| w.guests[b].app(server).end.is_some());
    let app = world.guests[b].app(server);
    assert_eq!((app.received, app.mismatch), (bytes, None));
    assert_eq!(app.end, Some(vmlan_testkit::End::Fin));
}

#[test]
fn tcp_between_guests() {
    let plain = LinkOptions::plain(1500);
    transfer(plain, plain, 20 * MIB, Duration::from_secs(10));
}

#[test]
fn tcp_between_guests_over_a_bad_link() {
    let bad = LinkOptions::plain(1500)
        .faults(Faults::latency(5).loss(0.02).corrupt(0.01).duplicate(0.02));
    transfer(bad, LinkOptions::plain(1500), 2 * MIB, Duration::from_secs(300));
}

#[test]
fn tcp_between_guests_with_large_frames() {
    let plain = LinkOptions::plain(65_520);
    transfer(plain, plain, 20 * MIB, Duration::from_secs(10));
}
