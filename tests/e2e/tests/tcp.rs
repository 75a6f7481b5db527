//! TCP of a namespace guest: bytes, and every way in which a connection can begin or not begin.

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use vmlan_e2e::server::{echo, exchange, serve_one};
use vmlan_e2e::world::{HOST, OUTSIDE, OUTSIDE6};
use vmlan_e2e::{World, pattern};

const LENGTH: usize = 32 << 20;

/// A connection from the guest to a listener, and its other end.
#[track_caller]
fn connected(world: &World, listener: TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let server = serve_one(listener, |stream| stream);
    let client = world.guest.connect(to).expect("a server listens there");
    (client, server.join().expect("a connection"))
}

/// A connection to the outside over IPv4.
#[track_caller]
fn outbound(world: &World) -> (TcpStream, TcpStream) {
    let listener = world.outside.listen((OUTSIDE, 80));
    connected(world, listener, (OUTSIDE, 80).into())
}

#[test]
fn bytes_arrive_both_ways_outside() {
    let world = World::new();
    let (client, server) = outbound(&world);
    exchange(client, server, LENGTH);
}

#[test]
fn bytes_arrive_both_ways_outside_over_ipv6() {
    let world = World::new();
    let listener = world.outside.listen((OUTSIDE6, 80));
    let (client, server) = connected(&world, listener, (OUTSIDE6, 80).into());
    exchange(client, server, LENGTH);
}

#[test]
fn bytes_arrive_both_ways_at_the_hosts_loopback() {
    let world = World::new();
    let listener = world.host.listen(([127, 0, 0, 1], 5000));
    let (client, server) = connected(&world, listener, (HOST, 5000).into());
    exchange(client, server, LENGTH);
}

#[test]
fn bytes_arrive_both_ways_with_frames_of_1500() {
    let world = World::with(&["--mtu", "1500"]);
    let (client, server) = outbound(&world);
    exchange(client, server, LENGTH);
}

#[test]
fn bytes_arrive_both_ways_with_frames_of_576() {
    let world = World::with(&["--mtu", "576"]);
    let (client, server) = outbound(&world);
    exchange(client, server, LENGTH / 8);
}

#[test]
fn many_connections_at_once_keep_their_bytes_apart() {
    let world = World::new();
    echo(world.outside.listen((OUTSIDE, 80)));
    std::thread::scope(|scope| {
        for seed in 1..=32 {
            let stream = world.guest.connect((OUTSIDE, 80)).expect("a server listens there");
            scope.spawn(move || {
                std::thread::scope(|both| {
                    both.spawn(|| {
                        pattern::send(&mut &stream, seed, 1 << 20).expect("bytes can be sent");
                        stream.shutdown(Shutdown::Write).expect("a direction can be ended");
                    });
                    pattern::expect(&mut &stream, seed, 1 << 20);
                });
            });
        }
    });
}

#[test]
fn a_closed_port_refuses() {
    let world = World::new();
    for closed in [HOST, OUTSIDE] {
        let error = world.guest.connect((closed, 81)).expect_err("nobody listens there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}");
    }
}

#[test]
fn what_the_host_cannot_reach_is_unreachable() {
    let world = World::new();
    let error = world.guest.connect(([203, 0, 113, 1], 80)).expect_err("no route leads there");
    assert_eq!(error.kind(), ErrorKind::HostUnreachable);
}

#[test]
fn silence_stays_silence_and_delays_nobody() {
    let world = World::new();
    echo(world.outside.listen((OUTSIDE, 80)));
    let nowhere = SocketAddr::from(([203, 0, 113, 200], 80));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let dial = || TcpStream::connect_timeout(&nowhere, Duration::from_secs(2));
                let error = world.guest.enter(dial).expect_err("nobody answers there");
                assert_eq!(error.kind(), ErrorKind::TimedOut);
            });
        }
        for _ in 0..64 {
            let start = Instant::now();
            world.guest.connect((OUTSIDE, 80)).expect("a server listens there");
            assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
        }
    });
}

#[test]
fn host_loopback_can_be_withheld() {
    let world = World::with(&["--no-host-loopback"]);
    echo(world.host.listen(([127, 0, 0, 1], 5000)));
    echo(world.outside.listen((OUTSIDE, 80)));
    world.guest.connect((HOST, 5000)).expect_err("the host's loopback is off");
    world.guest.connect(([198, 51, 100, 1], 5000)).expect_err("the host's own address too");
    world.guest.connect((OUTSIDE, 80)).expect("the outside is not");
}

#[test]
fn a_slow_reader_gets_everything() {
    let world = World::new();
    let (client, server) = outbound(&world);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pattern::send(&mut &server, 1, LENGTH).expect("bytes can be sent");
            server.shutdown(Shutdown::Write).expect("a direction can be ended");
        });
        // Long enough for the guest's window and every buffer on the way to fill.
        std::thread::sleep(Duration::from_secs(1));
        pattern::expect(&mut &client, 1, LENGTH);
    });
}

#[test]
fn a_guest_that_vanishes_leaves_the_daemon_working() {
    let mut world = World::with(&["--forward", "127.0.0.1:7000=192.168.5.15:7"]);
    let (_client, _server) = outbound(&world);
    world.guest.ip("link set tap0 down");
    assert!(world.netd.process().is_running());
    let status = world.netd.stop();
    assert!(status.success(), "{status}");
    assert_eq!(world.netd.process().stderr().matches("panicked").count(), 0);
}
