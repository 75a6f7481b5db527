//! Guests of one network reach each other without the host's sockets between them.

use std::net::{IpAddr, SocketAddr};

use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::server::{echo_udp, exchange, serve_one};
use vmlan_e2e::world::GUEST;
use vmlan_e2e::{Netns, World};

/// The second guest's address.
const SECOND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 5, 16));

/// A world with a second guest.
#[track_caller]
fn neighbours(mtu: &str) -> (World, Netns) {
    let second = Netns::new();
    let netns = format!("{},ifname=tap0", second.path().display());
    (World::with(&["--mtu", mtu, "--netns", &netns]), second)
}

#[track_caller]
fn expect_exchange(from: &Netns, to: &Netns, at: IpAddr, length: usize) {
    let server = serve_one(to.listen((at, 80)), |stream| stream);
    let client = from.connect((at, 80)).expect("a server listens there");
    exchange(client, server.join().expect("a connection"), length);
}

/// The address of a guest that begins with the network's own IPv6 prefix.
fn ipv6_of(guest: &Netns) -> IpAddr {
    let text = guest.ip("-6 -o address show dev tap0 scope global");
    let word = text.split_whitespace().find(|word| word.starts_with("fd")).expect("an address");
    word.split('/').next().expect("an address").parse().expect("an address")
}

#[test]
fn streams_go_both_ways() {
    for mtu in ["65520", "1500"] {
        let (world, second) = neighbours(mtu);
        expect_exchange(&world.guest, &second, SECOND, 64 << 20);
        expect_exchange(&second, &world.guest, GUEST, 64 << 20);
        expect_exchange(&world.guest, &second, ipv6_of(&second), 16 << 20);
    }
}

#[test]
fn datagrams_of_every_size_go_both_ways() {
    for mtu in ["65520", "1500"] {
        let (world, second) = neighbours(mtu);
        echo_udp(second.udp((SECOND, 7)));
        let socket = world.guest.udp((GUEST, 0));
        for size in [0, 1, 1472, 1473, 9000, 60_000] {
            let sent: Vec<u8> = (0..=250).cycle().take(size).collect();
            let mut received = vec![0; 65_536];
            socket.send_to(&sent, (SECOND, 7)).expect("a datagram can be sent");
            let (length, from) = socket.recv_from(&mut received).expect("an echo");
            assert_eq!(from, SocketAddr::from((SECOND, 7)));
            assert_eq!(received[..length], sent);
        }
    }
}

#[test]
fn a_guest_that_leaves_is_out_of_reach_and_nobody_else_is() {
    let (world, second) = neighbours("1500");
    second.run("ping -n -c 1 -W 5 192.168.5.15");
    second.ip("link delete tap0");
    eventually("the way to the other guest to end", SOON, || {
        let output = world.guest.capture("ping -n -c 1 -W 1 192.168.5.16", SOON);
        (!output.status.success()).then_some(())
    });
    world.guest.run("ping -n -c 1 -W 5 192.168.5.2");
}
