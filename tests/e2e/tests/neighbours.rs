//! Guests of one network reach each other without the host's sockets between them.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::server::{echo_udp, exchange, serve_one};
use vmlan_e2e::world::{GUEST, OUTSIDE};
use vmlan_e2e::{Netns, World, frames};

/// The second guest's address.
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 5, 16));

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

/// Neither a guest's traffic to others nor that of others waits for a guest that never reads.
#[test]
fn a_guest_that_does_not_read_holds_up_nobody() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("qemu.sock");
    let world = World::with(&["--mtu", "1500", "--listen-qemu", &path.display().to_string()]);
    let card = [2, 0, 0, 0, 0, 9];
    let deaf = Ipv4Addr::new(192, 168, 5, 99);
    let mut link = UnixStream::connect(&path).expect("the daemon listens");
    let here = frames::arp(1, frames::BROADCAST, card, deaf, deaf);
    let length = u32::try_from(here.len()).expect("a short frame").to_be_bytes();
    link.write_all(&[&length[..], &here].concat()).expect("a frame can be sent");
    world.guest.ip(&format!("neighbour replace {deaf} lladdr 02:00:00:00:00:09 dev tap0"));

    let flood = world.guest.udp((GUEST, 0));
    let over = Arc::new(AtomicBool::new(false));
    let flooding = thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let mut sent = 0_u64;
            while !over.load(Ordering::Relaxed) {
                sent += u64::from(flood.send_to(&[7; 1400], (deaf, 9)).is_ok());
            }
            sent
        }
    });
    eventually("the deaf guest's link to be full", SOON, || {
        (world.netd.dropped("link-full") > 1000).then_some(())
    });
    world.guest.run("ping -n -c 20 -i 0.02 -W 1 192.168.5.2");
    let server = serve_one(world.outside.listen((OUTSIDE, 80)), |stream| stream);
    let client = world.guest.connect((OUTSIDE, 80)).expect("a server listens there");
    exchange(client, server.join().expect("a connection"), 8 << 20);
    over.store(true, Ordering::Relaxed);
    assert!(flooding.join().expect("a count") > 1000);
}
