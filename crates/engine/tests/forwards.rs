//! From the host to guests: connections over forwards, and datagrams, with a real stack as guest.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

use std::net::SocketAddr;
use std::time::Duration;

use vmlan_engine::Forward;
use vmlan_engine::io::{Failure, ListenAddr};
use vmlan_testkit::guest::Socket;
use vmlan_testkit::{
    End, Ending, Faults, LinkOptions, Pattern, Remote, Responder, Seen, World, addr,
};

const SEC: Duration = Duration::from_secs(1);
const CLIENT: &str = "203.0.113.7:5555";

fn at() -> ListenAddr {
    ListenAddr::Tcp(addr("127.0.0.1:8080"))
}

/// A guest with a forward to its port 80.
fn world(link: LinkOptions, keep_source: bool) -> World {
    let mut world = World::new(1);
    world.add_guest(link);
    let guest = addr("192.168.5.15:80");
    world.add_forward(Forward { listen: at(), guest, keep_source }).unwrap();
    world
}

/// As above, with a client connected to the guest's server.
fn connected(client: Remote) -> (World, Socket) {
    let mut world = world(LinkOptions::plain(1500), false);
    let server = world.guests[0].listen(80);
    world.host.dial(&at(), Some(addr(CLIENT)), client);
    world.run_until(3 * SEC, |w| w.guests[0].app(server).established);
    (world, server)
}

fn assert_nothing_left(world: &World) {
    assert_eq!(world.host.open_sockets(), 1, "the listener alone");
    assert!(world.engine.flows().is_empty(), "{:?}", world.engine.flows());
}

#[test]
fn bytes_arrive_both_ways() {
    let bad = Faults::latency(5).loss(0.03).duplicate(0.03).corrupt(0.01);
    for link in [
        LinkOptions::plain(1500),
        LinkOptions::offload(65_520),
        LinkOptions::plain(1500).faults(bad),
    ] {
        let mut world = world(link, false);
        let server = world.guests[0].listen(80);
        let bytes = 1 << 20;
        world.guests[0].expect(server, Pattern(1));
        world.guests[0].send(server, Pattern(2), bytes);
        let client = Remote::accept().sends(Pattern(1), bytes).expects(Pattern(2));
        world.host.dial(&at(), Some(addr(CLIENT)), client.then(Ending::Fin));
        world.run_until(200 * SEC, |w| {
            w.guests[0].app(server).end.is_some() && w.engine.flows().is_empty()
        });
        let app = world.guests[0].app(server);
        assert_eq!((app.received, app.mismatch, app.end), (bytes, None, Some(End::Fin)));
        let conn = &world.host.conns[0];
        assert_eq!((conn.read, conn.mismatch, conn.seen), (bytes, None, Some(Seen::Fin)));
        assert_nothing_left(&world);
    }
}

#[test]
fn the_guest_sees_the_gateway_or_the_client_as_asked() {
    for keep in [false, true] {
        let mut world = world(LinkOptions::plain(1500), keep);
        let server = world.guests[0].listen(80);
        world.host.dial(&at(), Some(addr(CLIENT)), Remote::accept());
        world.run_until(3 * SEC, |w| w.guests[0].app(server).established);
        let peer = world.guests[0].tcp(server).remote_endpoint().unwrap();
        let gateway = world.engine.config().gateway;
        if keep {
            assert_eq!(SocketAddr::new(peer.addr.into(), peer.port), addr(CLIENT));
        } else {
            assert_eq!(std::net::IpAddr::from(peer.addr), std::net::IpAddr::V4(gateway));
        }
    }
}

#[test]
fn each_side_s_end_is_seen_by_the_other() {
    let (mut world, server) = connected(Remote::accept().then(Ending::Hold));
    world.guests[0].app_mut(server).close_on_eof = false;
    world.host.far_fin(0);
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(server).end, Some(End::Fin));
    assert_eq!(world.host.conns[0].seen, None);
    world.guests[0].send(server, Pattern(1), 1000);
    world.run_for(SEC);
    assert_eq!((world.host.conns[0].read, world.host.conns[0].seen), (1000, Some(Seen::Fin)));
    assert_nothing_left(&world);

    let (mut world, server) = connected(Remote::accept().then(Ending::Hold));
    world.guests[0].close(server);
    world.run_for(SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Fin));
    world.host.far_send(0, b"more");
    world.host.far_fin(0);
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(server).received, 4);
    assert_eq!(world.guests[0].app(server).end, Some(End::Fin));
    assert_nothing_left(&world);
}

#[test]
fn each_side_s_reset_is_seen_by_the_other() {
    let (mut world, server) = connected(Remote::accept().then(Ending::Hold));
    world.host.far_reset(0, Failure::Reset);
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(server).end, Some(End::Reset));
    assert_nothing_left(&world);

    let (mut world, server) = connected(Remote::accept().then(Ending::Hold));
    world.guests[0].abort(server);
    world.run_for(SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Reset));
    assert_nothing_left(&world);
}

#[test]
fn a_port_where_nobody_listens_resets_the_client() {
    let mut world = world(LinkOptions::plain(1500), false);
    world.host.dial(&at(), Some(addr(CLIENT)), Remote::accept());
    world.run_for(3 * SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Reset));
    assert_nothing_left(&world);
}

#[test]
fn a_guest_that_is_not_there_resets_the_client_in_the_end() {
    let mut world = World::new(1);
    world.add_port(LinkOptions::plain(1500));
    let guest = addr("192.168.5.15:80");
    world.add_forward(Forward { listen: at(), guest, keep_source: false }).unwrap();
    world.host.dial(&at(), Some(addr(CLIENT)), Remote::accept());
    world.run_for(120 * SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Reset));
    assert_nothing_left(&world);
}

#[test]
fn a_guest_that_comes_late_is_found() {
    let mut world = World::new(1);
    let guest = addr("192.168.5.15:80");
    world.add_forward(Forward { listen: at(), guest, keep_source: false }).unwrap();
    world.host.dial(&at(), Some(addr(CLIENT)), Remote::accept());
    world.run_for(SEC / 2);
    world.add_guest(LinkOptions::plain(1500));
    let server = world.guests[0].listen(80);
    world.run_until(3 * SEC, |w| w.guests[0].app(server).established);
}

#[test]
fn a_client_that_leaves_before_the_guest_answers_leaves_nothing() {
    let mut world = World::new(1);
    world.add_port(LinkOptions::plain(1500));
    let guest = addr("192.168.5.15:80");
    world.add_forward(Forward { listen: at(), guest, keep_source: false }).unwrap();
    world.host.dial(&at(), Some(addr(CLIENT)), Remote::accept().then(Ending::Hold));
    world.run_for(SEC / 10);
    world.host.far_reset(0, Failure::Reset);
    world.run_for(120 * SEC);
    assert_nothing_left(&world);
}

#[test]
fn without_a_socket_clients_wait_in_the_backlog() {
    let (mut world, first) = connected(Remote::echo());
    let _second = world.guests[0].listen(80);
    world.host.socket_limit = 2;
    world.host.dial(&at(), Some(addr(CLIENT)), Remote::accept());
    world.run_for(SEC);
    assert_eq!(world.host.conns.len(), 1, "the second waits");
    world.guests[0].close(first);
    world.run_for(SEC);
    assert_eq!(world.host.conns.len(), 2);
    assert!(world.host.conns[1].up);
}

#[test]
fn a_forward_that_is_removed_keeps_its_connections() {
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(1500));
    let guest = addr("192.168.5.15:80");
    let id = world.add_forward(Forward { listen: at(), guest, keep_source: false }).unwrap();
    let server = world.guests[0].listen(80);
    world.host.dial(&at(), Some(addr(CLIENT)), Remote::echo().then(Ending::Hold));
    world.run_until(3 * SEC, |w| w.guests[0].app(server).established);
    assert!(world.remove_forward(id));
    assert!(!world.remove_forward(id));
    assert_eq!(world.host.open_sockets(), 1);
    world.guests[0].send_open(server, Pattern(1), 1000);
    world.run_until(SEC, |w| w.guests[0].app(server).received == 1000);
}

#[test]
fn datagrams_and_their_answers_of_every_size() {
    for mtu in [576, 1500, 65_520] {
        let mut config = World::config(1);
        config.mtu = mtu;
        let mut world = World::with(config, 1);
        world.add_guest(LinkOptions::plain(mtu));
        let to = addr("10.0.0.1:53");
        world.host.put_udp(to, Responder::Echo { after: Duration::from_millis(1) });
        let socket = world.guests[0].udp(5000);
        for len in [0, 1, 500, 1472, 1473, 9000, 60_000] {
            let mut data = vec![0; len];
            Pattern(len as u64).fill(0, &mut data);
            world.guests[0].udp_send(socket, to, &data);
            world.run_for(SEC);
            let answer = world.guests[0].udp_recv(socket);
            let there = answer.as_ref().map(|(from, data)| (*from, data.len()));
            let drops: Vec<_> = world.engine.stats().drops().collect();
            assert!(answer == Some((to, data)), "MTU {mtu}, {len} bytes: {there:?}, {drops:?}");
        }
    }
}

#[test]
fn datagrams_reach_a_guest_over_a_forward_and_answers_the_client() {
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(1500));
    let listen = addr("127.0.0.1:5353");
    let guest = addr("192.168.5.15:53");
    let forward = Forward { listen: ListenAddr::Udp(listen), guest, keep_source: false };
    world.add_forward(forward).unwrap();
    let server = world.guests[0].udp(53);
    world.run_for(SEC);
    for client in ["203.0.113.7:1000", "203.0.113.8:1000"] {
        world.host.datagram_in(listen, addr(client), client.as_bytes());
        world.run_for(3 * SEC);
        let (from, data) = world.guests[0].udp_recv(server).expect("a datagram");
        assert_eq!(data, client.as_bytes());
        world.guests[0].udp_send(server, from, b"answer");
        world.run_for(SEC);
        let sent = world.host.datagrams.last().expect("an answer");
        assert_eq!((sent.to, &sent.data[..]), (addr(client), &b"answer"[..]));
    }
}
