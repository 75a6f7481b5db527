//! A real kernel as guest over a link that loses, repeats, reorders, delays and damages: every
//! byte arrives intact in both directions, and flows end in order.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use vmlan_e2e::World;
use vmlan_e2e::server::{exchange, serve_one};
use vmlan_e2e::world::{GUEST, OUTSIDE};

const MEGABYTE: usize = 1 << 20;

/// A world with one guest on a bad link, and a forward to it.
#[track_caller]
fn bad_world(faults: &str, mtu: &str) -> World {
    World::with(&["--fault", faults, "--mtu", mtu, "--forward", "127.0.0.1:8080=192.168.5.15:80"])
}

/// Sends both ways at once, over a connection from the guest and then over one to it.
#[track_caller]
fn survive(world: &World, length: usize) {
    let out = |listener: TcpListener| {
        let server = serve_one(listener, |stream| stream);
        let client = world.guest.connect((OUTSIDE, 80)).expect("a server listens there");
        (client, server.join().expect("a connection"))
    };
    let (client, server) = out(world.outside.listen((OUTSIDE, 80)));
    exchange(client, server, length);

    let server = serve_one(world.guest.listen((GUEST, 80)), |stream| stream);
    let forward = SocketAddr::from(([127, 0, 0, 1], 8080));
    let client = world.host.connect(forward).expect("a forward");
    exchange(client, server.join().expect("a connection"), length);
}

#[test]
fn loss() {
    survive(&bad_world("loss=5", "1500"), 4 * MEGABYTE);
    survive(&bad_world("loss=5", "65520"), 16 * MEGABYTE);
}

#[test]
fn reordering() {
    survive(&bad_world("reorder=25", "1500"), 100 * MEGABYTE);
}

#[test]
fn duplicates() {
    survive(&bad_world("duplicate=5", "1500"), 100 * MEGABYTE);
}

#[test]
fn delay() {
    survive(&bad_world("delay=20", "1500"), 100 * MEGABYTE);
}

#[test]
fn damage() {
    survive(&bad_world("corrupt=2", "1500"), 8 * MEGABYTE);
}

#[test]
fn everything_at_once() {
    let world = bad_world("loss=2,reorder=25,duplicate=5,corrupt=1,delay=5", "1500");
    survive(&world, 2 * MEGABYTE);
}

#[test]
fn tiny_windows() {
    for faults in ["seed=1", "loss=2,reorder=10,duplicate=2,delay=1"] {
        let world = bad_world(faults, "1500");
        for sysctl in ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"] {
            world.guest.sysctl(sysctl, "4096 4096 4096");
            world.outside.sysctl(sysctl, "4096 4096 4096");
        }
        survive(&world, MEGABYTE);
    }
}

#[test]
fn a_dead_link_ends_flows_without_the_daemon_noticing() {
    let mut world = World::with(&["--fault", "loss=100"]);
    let dial =
        || std::net::TcpStream::connect_timeout(&(OUTSIDE, 80).into(), Duration::from_secs(2));
    world.guest.enter(dial).expect_err("nothing gets through");
    assert!(world.netd.stop().success());
}
