//! How connections end, and fail to begin: each side sees what the other did, and nothing is left.

use std::time::Duration;

use vmlan_engine::io::Failure;
use vmlan_testkit::packet::{ACK, FIN, Packet, RST, SYN};
use vmlan_testkit::trace::ISS;
use vmlan_testkit::{End, Ending, LinkOptions, Pattern, Remote, Seen, Trace, World, addr};

const SEC: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(50);

/// A guest with a connection to `remote`, established.
fn connected(remote: Remote) -> (World, vmlan_testkit::guest::Socket) {
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(1500));
    world.host.put(addr("10.0.0.1:80"), remote);
    let socket = world.guests[0].connect(addr("10.0.0.1:80"));
    world.run_until(SEC, |w| w.guests[0].app(socket).established);
    (world, socket)
}

fn assert_nothing_left(world: &World) {
    assert_eq!(world.host.open_sockets(), 0);
    assert!(world.engine.flows().is_empty(), "{:?}", world.engine.flows());
}

#[test]
fn the_guest_ends_first_and_the_host_goes_on() {
    let far = Remote::accept().sends(Pattern(2), 50_000).paced(1000, SEC / 10).then(Ending::Fin);
    let (mut world, socket) = connected(far);
    world.guests[0].expect(socket, Pattern(2));
    world.guests[0].close(socket);
    world.run_for(SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Fin));
    assert_eq!(world.guests[0].app(socket).end, None);
    world.run_until(10 * SEC, |w| w.guests[0].app(socket).end.is_some());
    let app = world.guests[0].app(socket);
    assert_eq!((app.received, app.mismatch, app.end), (50_000, None, Some(End::Fin)));
    world.run_for(SEC);
    assert_nothing_left(&world);
}

#[test]
fn the_host_ends_first_and_the_guest_goes_on() {
    let far = Remote::accept().expects(Pattern(1)).then(Ending::Fin);
    let (mut world, socket) = connected(far);
    world.guests[0].app_mut(socket).close_on_eof = false;
    world.run_until(SEC, |w| w.guests[0].app(socket).end == Some(End::Fin));
    assert_eq!(world.host.conns[0].seen, None);
    world.run_for(60 * SEC);
    world.guests[0].send(socket, Pattern(1), 500_000);
    world.run_until(10 * SEC, |w| w.host.conns[0].seen.is_some());
    world.run_for(SEC);
    let conn = &world.host.conns[0];
    assert_eq!((conn.read, conn.mismatch, conn.seen), (500_000, None, Some(Seen::Fin)));
    assert_nothing_left(&world);
}

#[test]
fn half_closed_connections_stay_as_long_as_somebody_lives() {
    for guest_first in [true, false] {
        let (mut world, socket) = connected(Remote::accept().then(Ending::Hold));
        world.guests[0].app_mut(socket).close_on_eof = false;
        if guest_first {
            world.guests[0].close(socket);
        } else {
            world.host.far_fin(0);
        }
        world.run_for(3600 * SEC);
        assert_eq!(world.host.open_sockets(), 1);
        assert_eq!(world.host.conns[0].seen, guest_first.then_some(Seen::Fin));
        assert_eq!(world.guests[0].app(socket).end, (!guest_first).then_some(End::Fin));
        if guest_first {
            world.host.far_fin(0);
        } else {
            world.guests[0].close(socket);
        }
        world.run_for(SEC);
        assert_nothing_left(&world);
    }
}

#[test]
fn both_end_at_once() {
    let (mut world, socket) = connected(Remote::accept().then(Ending::Hold));
    world.guests[0].close(socket);
    world.host.far_fin(0);
    world.run_for(SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Fin));
    assert_eq!(world.guests[0].app(socket).end, Some(End::Fin));
    assert_nothing_left(&world);
}

#[test]
fn the_guest_resets() {
    for busy in [false, true] {
        let mut far = Remote::accept().then(Ending::Hold);
        if busy {
            far = far.sends(Pattern(2), 10 << 20).reads(10, SEC).send_buffer(1000);
        }
        let (mut world, socket) = connected(far);
        if busy {
            world.guests[0].send_open(socket, Pattern(1), 10 << 20);
            world.guests[0].app_mut(socket).read_limit = 1000;
        }
        world.run_for(SEC);
        world.guests[0].abort(socket);
        world.run_for(SEC);
        assert_eq!(world.host.conns[0].seen, Some(Seen::Reset), "busy: {busy}");
        assert_nothing_left(&world);
    }
}

#[test]
fn the_host_resets() {
    #[derive(Debug, Clone, Copy)]
    enum Guest {
        Idle,
        Sends,
        StoppedReading,
        HasEnded,
    }
    for guest in [Guest::Idle, Guest::Sends, Guest::StoppedReading, Guest::HasEnded] {
        let mut far = Remote::accept().then(Ending::Hold);
        match guest {
            Guest::Sends => far = far.reads(10, SEC).send_buffer(1000),
            Guest::StoppedReading => far = far.sends(Pattern(2), 10 << 20),
            Guest::Idle | Guest::HasEnded => {}
        }
        let (mut world, socket) = connected(far);
        match guest {
            Guest::Idle => {}
            Guest::Sends => world.guests[0].send_open(socket, Pattern(1), 10 << 20),
            Guest::StoppedReading => world.guests[0].app_mut(socket).read_limit = 0,
            Guest::HasEnded => world.guests[0].close(socket),
        }
        world.run_for(SEC);
        world.host.far_reset(0, Failure::Reset);
        // At once, whatever waits to be read: a reset overtakes it (RFC 9293 section 3.10.7.4).
        world.run_for(SEC / 10);
        let state = format!("{:?}", world.guests[0].state(socket));
        assert_eq!(state, "Closed", "{guest:?}");
        assert_ne!(world.guests[0].app(socket).end, Some(End::Fin), "{guest:?}");
        assert_nothing_left(&world);
    }
}

#[test]
fn a_reset_is_believed_behind_a_closed_window() {
    let mut t = Trace::new(Remote::accept().then(Ending::Hold));
    t.window = 1000;
    t.open();
    t.world.host.far_send(0, &[7; 5000]);
    t.world.run_for(SOON);
    let data = t.expect();
    (t.ack, t.window) = (data.next_seq(), 0);
    t.acknowledge();
    // The probe's byte finds no room: the guest expects it still.
    let (probe, _) = t.expect_within(SEC);
    assert_eq!((probe.seq, probe.payload.len()), (t.ack, 1));
    t.acknowledge();
    t.world.host.far_reset(0, Failure::Reset);
    t.world.run_for(SOON);
    let rst = t.expect();
    assert_eq!((rst.flags & RST, rst.seq), (RST, t.ack));
    assert_nothing_left(&t.world);
}

#[test]
fn an_answer_before_the_reset_reaches_a_guest_that_is_still_sending() {
    let far = Remote::accept().send_buffer(1000).reads(0, SEC).then(Ending::Hold);
    let (mut world, socket) = connected(far);
    world.guests[0].send_open(socket, Pattern(1), 10 << 20);
    world.run_for(SEC);
    world.host.far_send(0, b"413 too large");
    world.host.far_reset(0, Failure::Reset);
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(socket).received, 13);
    assert_eq!(world.guests[0].app(socket).end, Some(End::Reset));
    assert_nothing_left(&world);
}

#[test]
fn a_reset_waits_for_a_link_that_is_full() {
    let (mut world, socket) = {
        let mut world = World::new(1);
        world.add_guest(LinkOptions::plain(1500).queue(8));
        let far = Remote::accept().sends(Pattern(1), 10 << 20).then(Ending::Hold);
        world.host.put(addr("10.0.0.1:80"), far);
        let socket = world.guests[0].connect(addr("10.0.0.1:80"));
        world.run_until(SEC, |w| w.guests[0].app(socket).established);
        (world, socket)
    };
    let port = world.guests[0].port;
    world.links.port(port).paused = true;
    world.run_for(SEC / 100);
    world.host.far_reset(0, Failure::Reset);
    world.run_for(SEC);
    world.links.port(port).paused = false;
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(socket).end, Some(End::Reset));
    assert_nothing_left(&world);
}

#[test]
fn the_host_resets_after_its_own_end() {
    let (mut world, socket) = connected(Remote::accept().then(Ending::Fin));
    world.guests[0].app_mut(socket).close_on_eof = false;
    world.run_for(SEC);
    world.host.far_reset(0, Failure::Reset);
    world.run_for(SEC);
    assert_eq!(format!("{:?}", world.guests[0].state(socket)), "Closed");
    assert_nothing_left(&world);
}

#[test]
fn the_host_s_connection_times_out() {
    let (mut world, socket) = connected(Remote::accept().then(Ending::Hold));
    world.host.far_reset(0, Failure::TimedOut);
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(socket).end, Some(End::Reset));
    assert_nothing_left(&world);
}

#[test]
fn the_host_s_process_is_killed() {
    let (mut world, socket) = connected(Remote::accept().then(Ending::Close));
    world.guests[0].app_mut(socket).close_on_eof = false;
    world.run_until(SEC, |w| w.guests[0].app(socket).end == Some(End::Fin));
    world.guests[0].send_open(socket, Pattern(1), 100);
    world.run_for(SEC);
    assert_eq!(format!("{:?}", world.guests[0].state(socket)), "Closed");
    assert_nothing_left(&world);
}

#[test]
fn what_came_before_the_host_s_end_is_delivered_first() {
    let far = Remote::accept().sends(Pattern(2), 300_000).then(Ending::Close);
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(1500));
    world.host.put(addr("10.0.0.1:80"), far);
    let socket = world.guests[0].connect_with(addr("10.0.0.1:80"), 4000, 4000);
    world.guests[0].expect(socket, Pattern(2));
    world.run_until(10 * SEC, |w| w.guests[0].app(socket).end.is_some());
    let app = world.guests[0].app(socket);
    assert_eq!((app.received, app.mismatch, app.end), (300_000, None, Some(End::Fin)));
    world.run_for(SEC);
    assert_nothing_left(&world);
}

#[test]
fn refused_is_a_reset() {
    let mut t = Trace::new(Remote::refuse().after(SEC));
    t.syn();
    t.silent_for(SEC - SOON);
    t.world.run_for(2 * SOON);
    let rst = t.expect();
    assert_eq!((rst.flags, rst.ack), (RST | ACK, ISS + 1));
    assert_nothing_left(&t.world);
}

#[test]
fn unreachable_is_an_icmp_error() {
    let v4 = [
        (Failure::NetUnreachable, (3, 0)),
        (Failure::HostUnreachable, (3, 1)),
        (Failure::Prohibited, (3, 13)),
    ];
    let v6 = [
        (Failure::NetUnreachable, (1, 0)),
        (Failure::HostUnreachable, (1, 3)),
        (Failure::Prohibited, (1, 1)),
    ];
    for (family, cases) in [(4, v4), (6, v6)] {
        for (why, kind) in cases {
            let mut t = Trace::new(Remote::accept());
            if family == 6 {
                t.guest = addr("[fd76:6d6c:c0a8:500::15]:40000");
                t.remote = addr("[2001:db8::1]:80");
            }
            t.world.host.put(t.remote, Remote::fail(why).after(SEC / 10));
            t.syn();
            t.world.run_for(SEC);
            let packet = t.packet().expect("an error");
            assert_eq!(packet.icmp(), Some(kind), "{why:?}");
            let Packet::Icmp { dst, body, .. } = packet else { unreachable!() };
            assert_eq!(dst, t.guest.ip());
            // It quotes the SYN: the guest must find its connection by it.
            let header = if family == 6 { 40 } else { 20 };
            let tcp = &body[4 + header..];
            assert_eq!(tcp[..2], t.guest.port().to_be_bytes());
            assert_eq!(tcp[2..4], t.remote.port().to_be_bytes());
            assert_eq!(tcp[4..8], ISS.to_be_bytes());
            t.silent();
            assert_nothing_left(&t.world);
        }
    }
}

#[test]
fn a_timeout_is_silence() {
    let mut t = Trace::new(Remote::fail(Failure::TimedOut).after(130 * SEC));
    t.syn();
    t.silent_for(200 * SEC);
    assert_nothing_left(&t.world);
}

#[test]
fn forbidden_destinations_are_refused_and_never_dialed() {
    for to in [
        "127.0.0.1:80",
        "0.0.0.0:80",
        "0.1.2.3:80",
        "169.254.169.254:80",
        "240.0.0.1:80",
        "255.255.255.255:80",
        "224.0.0.1:80",
        "192.168.5.3:80",
        "192.168.5.77:80",
        "192.168.5.0:80",
        "192.168.5.255:80",
        "[::1]:80",
        "[::]:80",
        "[::ffff:127.0.0.1]:80",
        "[::127.0.0.1]:80",
        "[fe80::1]:80",
        "[ff02::1]:80",
        "[fd76:6d6c:c0a8:500::77]:80",
    ] {
        let mut t = Trace::new(Remote::accept());
        t.remote = addr(to);
        if t.remote.is_ipv6() {
            t.guest = addr("[fd76:6d6c:c0a8:500::15]:40000");
        }
        t.syn();
        t.world.run_for(SEC);
        if let Some(packet) = t.packet() {
            assert!(packet.icmp().is_some() || packet.tcp().is_some_and(|t| t.has(RST)), "{to}");
        }
        assert!(t.world.host.conns.is_empty(), "{to} was dialed");
    }
}

#[test]
fn the_guest_gives_up_while_the_host_connects() {
    let mut t = Trace::new(Remote::accept().after(5 * SEC));
    t.syn();
    t.silent_for(SEC);
    t.send(&t.segment(RST).seq(ISS + 1));
    t.silent_for(10 * SEC);
    assert!(t.world.host.conns[0].closed);
    assert_nothing_left(&t.world);
}

#[test]
fn a_guest_that_is_gone_ends_its_connections_and_no_others() {
    let mut world = World::new(1);
    for _ in 0..2 {
        world.add_guest(LinkOptions::plain(1500));
    }
    let mut sockets = Vec::new();
    for i in 0..2 {
        world.host.put(addr("10.0.0.1:80"), Remote::accept().then(Ending::Hold));
        sockets.push(world.guests[i].connect(addr("10.0.0.1:80")));
    }
    world.run_until(SEC, |w| (0..2).all(|i| w.guests[i].app(sockets[i]).established));
    let first = world.guests[0].port;
    world.guests.remove(0);
    world.remove_port(first);
    world.run_for(60 * SEC);
    assert_eq!(world.host.open_sockets(), 1);
    let gone = world.host.conns.iter().filter(|c| c.seen == Some(Seen::Reset)).count();
    assert_eq!(gone, 1);
    world.host.far_send(1, b"still there?");
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(sockets[1]).received, 12);
}

#[test]
fn a_guest_may_come_back_on_another_port_and_go_on() {
    let (mut world, socket) = connected(Remote::accept().then(Ending::Hold));
    let old = world.guests[0].port;
    world.remove_port(old);
    world.run_for(3 * SEC);
    world.guests[0].port = world.add_port(LinkOptions::plain(1500));
    world.guests[0].expect(socket, Pattern(1));
    let mut data = vec![0; 10_000];
    Pattern(1).fill(0, &mut data);
    world.guests[0].send_open(socket, Pattern(2), 10_000);
    world.host.far_send(0, &data);
    world.run_for(20 * SEC);
    let app = world.guests[0].app(socket);
    assert_eq!((app.received, app.mismatch, app.end), (10_000, None, None));
    assert_eq!(world.host.conns[0].read, 10_000);
}

#[test]
fn shutting_down_resets_both_sides() {
    let (mut world, socket) = connected(Remote::accept().then(Ending::Hold));
    world.shutdown();
    assert_eq!(world.host.conns[0].seen, Some(Seen::Reset));
    assert_nothing_left(&world);
    world.run_for(SEC);
    assert_eq!(world.guests[0].app(socket).end, Some(End::Reset));
}

#[test]
fn a_fin_and_what_it_ends_may_come_in_any_order() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    let start = t.seq;
    let fin = t.segment(FIN).seq(start + 10).data(b"56789");
    let mut rest = t.segment(ACK).data(b"0123456789");
    t.send(&fin);
    assert_eq!(t.expect().ack, start);
    t.send(&rest);
    t.seq = start + 16;
    let mut last = t.expect();
    while let Some(packet) = t.packet() {
        last = packet.tcp().unwrap().clone();
    }
    assert_eq!(last.ack, start + 16);
    assert_eq!(t.world.host.conns[0].head, b"012345678956789");
    assert_eq!(t.world.host.conns[0].seen, Some(Seen::Fin));
    // Data behind the FIN is nonsense.
    rest = t.segment(ACK).seq(start + 16).data(b"zombie");
    t.send(&rest);
    assert_eq!(t.world.host.conns[0].head, b"012345678956789");
}

#[test]
fn a_syn_with_fin_or_reset_opens_nothing() {
    for flags in [SYN | RST, SYN | FIN | RST, 0, FIN, SYN | FIN] {
        let mut t = Trace::new(Remote::accept());
        t.send(&t.segment(SYN | flags));
        t.world.run_for(SEC);
        if flags & RST != 0 {
            assert!(t.world.host.conns.is_empty(), "{flags:#x}");
        }
        t.world.shutdown();
        assert_nothing_left(&t.world);
    }
}
