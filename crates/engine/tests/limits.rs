//! What must not grow does not, and what one guest does costs another nothing.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use vmlan_engine::{Drop, PortId};
use vmlan_testkit::memory::{self, Counting};
use vmlan_testkit::packet::{self, ACK, FIN, SYN, Tcp, TcpOption};
use vmlan_testkit::{End, Ending, LinkOptions, Pattern, Remote, Rng, Seen, Trace, World, addr};
use vmlan_wire::Mac;

#[global_allocator]
static HEAP: Counting = Counting;

const SEC: Duration = Duration::from_secs(1);
const MIB: isize = 1 << 20;

/// A world with a flooding port and an honest guest, who has a connection.
struct Flood {
    world: World,
    port: PortId,
    gateway: Mac,
    rng: Rng,
    socket: vmlan_testkit::guest::Socket,
}

impl Flood {
    fn new() -> Self {
        let mut world = World::new(1);
        world.add_guest(LinkOptions::plain(1500));
        let port = world.add_port(LinkOptions::plain(1500).queue(64));
        let gateway = world.engine.config().gateway_mac;
        world.host.put(addr("10.0.0.1:80"), Remote::echo());
        let socket = world.guests[0].connect(addr("10.0.0.1:80"));
        world.guests[0].app_mut(socket).close_on_eof = false;
        world.run_until(SEC, |w| w.guests[0].app(socket).established);
        Self { world, port, gateway, rng: Rng::new(7), socket }
    }

    fn mac(&mut self) -> Mac {
        let r = self.rng.next_u64().to_le_bytes();
        Mac([2, r[1], r[2], r[3], r[4], r[5]])
    }

    fn ip(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 5, self.rng.below(256) as u8)
    }

    /// Sends so many frames, with time passing and nobody reading the answers. Returns what is held
    /// more than before.
    fn run(&mut self, frames: usize, mut make: impl FnMut(&mut Self) -> Vec<u8>) -> isize {
        let before = memory::held();
        let mut most = 0;
        for i in 0..frames {
            let frame = make(self);
            self.world.inject(self.port, frame);
            if i % 256 == 0 {
                self.world.run_for(Duration::from_millis(1));
                while self.world.take(self.port).is_some() {}
                self.world.host.datagrams.clear();
                most = most.max(memory::held() - before);
            }
        }
        self.honest_guest_works();
        let held = memory::held() - before;
        eprintln!("at most {} KiB, {} left", most >> 10, held >> 10);
        eprintln!("{:?}", self.world.engine.stats().drops().collect::<Vec<_>>());
        self.world.check();
        held
    }

    /// The old connection lives, and a new one can be made, at once.
    fn honest_guest_works(&mut self) {
        let (world, old) = (&mut self.world, self.socket);
        let before = world.guests[0].app(old).received;
        world.guests[0].send_open(old, Pattern(before), 1000);
        let new = world.guests[0].connect(addr("10.0.0.1:80"));
        world.guests[0].send(new, Pattern(0), 1000);
        world.run_until(SEC / 2, |w| {
            let (old, new) = (w.guests[0].app(old), w.guests[0].app(new));
            old.received == before + 1000 && new.end == Some(End::Fin) && new.received == 1000
        });
    }
}

#[test]
fn pending_dials_do_not_delay_a_good_one() {
    let mut t = Trace::new(Remote::accept());
    let gateway = t.world.engine.config().gateway_mac;
    for i in 0..10_000u32 {
        let from = SocketAddr::new(t.guest.ip(), 1024 + i as u16);
        let syn = Tcp::new(from, addr("10.9.9.9:1"), SYN).seq(i);
        t.world.inject(t.port, syn.frame(t.mac, gateway));
    }
    assert_eq!(t.world.host.open_sockets(), 10_000);
    t.silent_for(SEC);
    for i in 0..100 {
        t.guest.set_port(60_000 + i);
        t.seq = vmlan_testkit::trace::ISS;
        let before = t.world.now;
        t.open();
        t.data(b"request");
        let (_, took) = t.expect_within(SEC);
        assert!(took <= Duration::from_millis(50), "{took:?}");
        assert!(t.world.now.since(before) <= Duration::from_millis(50));
    }
    t.world.shutdown();
    assert_eq!(t.world.host.open_sockets(), 0);
}

#[test]
fn a_guest_that_moves_its_address_costs_the_same_with_many_flows_there() {
    let mut t = Trace::new(Remote::accept());
    let gateway = t.world.engine.config().gateway_mac;
    let mover = t.world.add_port(LinkOptions::plain(1500));
    let once = |t: &mut Trace| {
        let start = std::time::Instant::now();
        for i in 0..4000u16 {
            let from = addr("192.168.5.99:9");
            let mac = Mac([2, 0, 0, 0, 0, i as u8 & 1]);
            let frame = packet::udp(mac, gateway, from, addr("192.168.5.2:9"), b"here now");
            t.world.inject(mover, frame);
            while t.world.take(mover).is_some() {}
        }
        start.elapsed()
    };
    let move_about = |t: &mut Trace| (0..3).map(|_| once(t)).min().unwrap();
    let alone = move_about(&mut t);
    for i in 0..10_000u32 {
        let from = SocketAddr::new(t.guest.ip(), 1024 + i as u16);
        let syn = Tcp::new(from, addr("10.9.9.9:1"), SYN).seq(i);
        t.world.inject(t.port, syn.frame(t.mac, gateway));
    }
    assert_eq!(t.world.host.open_sockets(), 10_001);
    let among_many = move_about(&mut t);
    assert!(among_many < 5 * alone, "{among_many:?} instead of {alone:?}");
}

#[test]
fn waiting_costs_nothing() {
    // A dial that never ends, a connection at rest, and a guest that is gone from its port.
    let mut t = Trace::new(Remote::accept().then(Ending::Hold));
    t.open();
    t.guest.set_port(1);
    t.remote = addr("10.9.9.9:1");
    t.seq = 1;
    t.syn();
    let mut turns = 0;
    let end = t.world.now + 100_000 * SEC;
    while turns <= 3000 && t.world.next_event().is_some_and(|next| next < end) {
        t.world.step();
        while t.world.take(t.port).is_some() {}
        turns += 1;
    }
    // Router advertisements, keepalives, and the inner wheels of far timers.
    assert!(turns <= 3000, "{turns} turns in 100,000 seconds");
}

#[test]
fn connections_leave_nothing_behind() {
    let mut t = Trace::new(Remote::accept().sends(Pattern(1), 100));
    let rounds = |t: &mut Trace, count: u32| {
        for i in 0..count {
            t.guest.set_port(1024 + (i % 60_000) as u16);
            (t.seq, t.ack) = (vmlan_testkit::trace::ISS, 0);
            connection(t);
            t.world.host.forget_closed();
        }
        // What is remembered for late segments is forgotten.
        t.world.run_for(120 * SEC);
        while t.packet().is_some() {}
        assert_eq!(t.world.host.open_sockets(), 0);
        assert!(t.world.engine.flows().is_empty());
        memory::held()
    };
    let first = rounds(&mut t, 20_000);
    let last = rounds(&mut t, 80_000);
    assert!(last - first < 4096, "{} bytes more after 100,000 connections", last - first);
    assert!(t.world.host.peak_sockets <= 2);
    let stats = t.world.engine.stats();
    assert_eq!((stats.tcp_opened, stats.tcp_closed), (100_000, 100_000));
}

/// Opens, asks, is answered, and closes: from the guest or from the host in turn.
fn connection(t: &mut Trace) {
    t.syn();
    t.seq += 1;
    t.ack = t.expect().next_seq();
    let ask = t.segment(packet::PSH).data(b"request");
    t.seq = ask.next_seq();
    t.send(&ask);
    let data = t.drain();
    assert_eq!(data.len(), 100);
    let fin = t.segment(FIN);
    t.seq = fin.next_seq();
    t.send(&fin);
    t.drain();
}

#[test]
fn at_the_limit_of_sockets_new_flows_are_refused_and_old_ones_live() {
    let mut world = World::new(1);
    world.host.socket_limit = 20;
    world.add_guest(LinkOptions::plain(1500));
    world.host.put(addr("10.0.0.1:80"), Remote::echo());
    let connect = |w: &mut World| w.guests[0].connect(addr("10.0.0.1:80"));
    let old: Vec<_> = (0..20).map(|_| connect(&mut world)).collect();
    world.run_until(SEC, |w| old.iter().all(|s| w.guests[0].app(*s).established));
    let new: Vec<_> = (0..50).map(|_| connect(&mut world)).collect();
    world.run_for(SEC);
    for socket in &new {
        assert_eq!(format!("{:?}", world.guests[0].state(*socket)), "Closed");
        assert!(!world.guests[0].app(*socket).established);
    }
    assert_eq!(world.engine.stats().dropped(Drop::HostExhausted), 50);
    for socket in &old {
        world.guests[0].send_open(*socket, Pattern(0), 1000);
    }
    world.run_until(SEC, |w| old.iter().all(|s| w.guests[0].app(*s).received == 1000));
    // One goes, one may come.
    world.guests[0].close(old[0]);
    world.run_for(SEC);
    let next = connect(&mut world);
    world.run_until(SEC, |w| w.guests[0].app(next).established);
}

#[test]
fn a_guest_that_stops_reading_costs_no_more_than_a_ring() {
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(1500));
    world.host.put(addr("10.0.0.1:80"), Remote::accept().sends(Pattern(1), 1 << 40));
    let before = memory::held();
    let socket = world.guests[0].connect(addr("10.0.0.1:80"));
    world.guests[0].app_mut(socket).read_limit = 100_000;
    let chatter = world.guests[0].udp(5000);
    for _ in 0..60 {
        // A stack that forgets the gateway's MAC loses its answer to a probe.
        world.guests[0].udp_send(chatter, addr("10.0.0.2:9"), b"");
        world.run_for(10 * SEC);
    }
    let held = memory::held() - before;
    assert!(held < 4 * MIB, "{held} bytes");
    assert_eq!(world.guests[0].app(socket).received, 100_000);
    // It reads again, and all goes on.
    world.guests[0].app_mut(socket).read_limit = 10_000_000;
    world.run_until(120 * SEC, |w| w.guests[0].app(socket).received == 10_000_000);
}

#[test]
fn hundreds_of_connections_that_stop_are_bounded_together_and_lose_nothing() {
    const FLOWS: usize = 300;
    const BYTES: u64 = 1 << 20;
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(9000));
    let far = Remote::accept().expects(Pattern(1)).sends(Pattern(2), BYTES);
    world.host.put(addr("10.0.0.1:80"), far.reads(0, Duration::ZERO).send_buffer(10_000));
    let sockets: Vec<_> = (0..FLOWS)
        .map(|_| {
            let guest = &mut world.guests[0];
            let socket = guest.connect_with(addr("10.0.0.1:80"), 32 << 10, 32 << 10);
            guest.app_mut(socket).read_limit = 0;
            guest.expect(socket, Pattern(2));
            guest.send(socket, Pattern(1), BYTES);
            socket
        })
        .collect();
    world.run_until(SEC, |w| sockets.iter().all(|s| w.guests[0].app(*s).established));
    let before = memory::held();
    world.run_for(60 * SEC);
    let held = memory::held() - before;
    // The pool's 64 MiB and the smallest ring for each direction of each flow.
    assert!(held < 64 * MIB + (FLOWS as isize * 2) * (16 << 10) + 4 * MIB, "{held} bytes");
    for socket in &sockets {
        world.guests[0].app_mut(*socket).read_limit = u64::MAX;
    }
    for conn in 0..FLOWS {
        world.host.far_reads(conn, usize::MAX);
    }
    world.run_until(600 * SEC, |w| {
        sockets.iter().all(|s| w.guests[0].app(*s).end.is_some()) && w.host.open_sockets() == 0
    });
    for socket in &sockets {
        let app = world.guests[0].app(*socket);
        assert_eq!((app.received, app.mismatch, app.end), (BYTES, None, Some(End::Fin)));
    }
    for conn in &world.host.conns {
        assert_eq!((conn.read, conn.mismatch, conn.seen), (BYTES, None, Some(Seen::Fin)));
    }
}

#[test]
fn a_flood_of_syns_is_bounded() {
    for macs in [false, true] {
        let mut flood = Flood::new();
        let limit = flood.world.engine.config().max_flows;
        let held = flood.run(60_000, |f| {
            let mac = if macs {
                Mac([2, 0, 0, 0, 1, f.rng.below(100) as u8])
            } else {
                Mac([2, 0, 0, 0, 0, 9])
            };
            let ip = Ipv4Addr::new(192, 168, 5, 99 + mac.0[5]);
            let from = SocketAddr::new(ip.into(), f.rng.next_u64() as u16);
            let to = SocketAddr::new([10, 9, 9, f.rng.below(256) as u8].into(), 80);
            Tcp::new(from, to, SYN).seq(f.rng.next_u64() as u32).frame(mac, f.gateway)
        });
        assert!(flood.world.engine.flows().len() <= limit + 2, "MACs: {macs}");
        assert!(held < 64 * MIB);
    }
}

#[test]
fn flows_beyond_the_limit_push_out_the_idlest() {
    let mut config = World::config(1);
    config.max_flows = 100;
    let world = World::with(config, 1);
    let mut t = Trace::with(world, LinkOptions::plain(1500), Remote::accept().then(Ending::Hold));
    let mut first = None;
    for i in 0..150u16 {
        t.guest.set_port(2000 + i);
        t.seq = vmlan_testkit::trace::ISS;
        t.syn();
        t.seq += 1;
        let syn_ack = loop {
            let segment = t.expect();
            if segment.has(SYN) {
                break segment;
            }
        };
        t.ack = syn_ack.next_seq();
        t.acknowledge();
        first.get_or_insert((t.seq, t.ack));
        t.world.run_for(SEC);
        // The first one is never idle.
        let (now, port) = ((t.seq, t.ack), t.guest.port());
        (t.seq, t.ack) = first.unwrap();
        t.guest.set_port(2000);
        t.data(b"x");
        first = Some((t.seq, t.ack));
        (t.seq, t.ack) = now;
        t.guest.set_port(port);
        t.world.run_for(SEC);
    }
    assert!(t.world.host.open_sockets() <= 100);
    assert!(!t.world.host.conns[0].closed, "the busiest was pushed out");
    assert_eq!(t.world.host.conns[0].received, 150);
}

#[test]
fn a_flood_of_datagrams_is_bounded() {
    let mut flood = Flood::new();
    let held = flood.run(60_000, |f| {
        let from = SocketAddr::new(Ipv4Addr::new(192, 168, 5, 99).into(), f.rng.next_u64() as u16);
        let r = f.rng.next_u64().to_le_bytes();
        let to = SocketAddr::new([11, r[1], r[2], r[3]].into(), u16::from(r[4]) + 1000);
        packet::udp(Mac([2, 0, 0, 0, 0, 9]), f.gateway, from, to, b"flood")
    });
    assert!(held < 64 * MIB);
    flood.world.run_for(3600 * SEC);
    assert_eq!(flood.world.host.open_sockets(), 1, "idle endpoints are forgotten");
}

#[test]
fn a_flood_of_echo_requests_is_bounded() {
    let mut flood = Flood::new();
    let held = flood.run(30_000, |f| {
        let r = f.rng.next_u64().to_le_bytes();
        let to = IpAddr::from([11, r[1], r[2], r[3]]);
        let id = (f.rng.next_u64() as u16, 1);
        let from = Ipv4Addr::new(192, 168, 5, 99).into();
        packet::echo_request(Mac([2, 0, 0, 0, 0, 9]), f.gateway, from, to, id, b"flood")
    });
    assert!(held < 32 * MIB);
    flood.world.run_for(3600 * SEC);
    assert_eq!(flood.world.host.open_sockets(), 1, "idle pings are forgotten");
}

#[test]
fn a_flood_of_fragments_is_bounded_and_forgotten() {
    let mut flood = Flood::new();
    let before = memory::held();
    flood.run(50_000, |f| {
        let from = Ipv4Addr::new(192, 168, 5, 99);
        let to = Ipv4Addr::new(11, 0, 0, 1);
        let place = f.rng.below(8000) as u16 | 0x2000;
        let body = vec![0; 8 * (1 + f.rng.below(180))];
        let id = f.rng.next_u64() as u16;
        let packet = packet::ipv4(from, to, 17, place, id, &body);
        packet::ethernet(Mac([2, 0, 0, 0, 0, 9]), f.gateway, 0x0800, &packet)
    });
    let held = memory::held() - before;
    assert!(held < 16 * MIB, "{held} bytes");
    flood.world.run_for(600 * SEC);
    let held = memory::held() - before;
    assert!(held < 2 * MIB, "{held} bytes after ten minutes");
}

#[test]
fn a_flood_of_arp_is_bounded() {
    let mut flood = Flood::new();
    let held = flood.run(50_000, |f| {
        let (mac, ip, wanted) = (f.mac(), f.ip(), f.ip());
        packet::arp_request(mac, ip, wanted)
    });
    assert!(held < 2 * MIB, "{held} bytes");
    assert!(flood.world.engine.mac_table().len() < 300);
}

#[test]
fn a_flood_of_ipv6_addresses_is_bounded() {
    let mut flood = Flood::new();
    let prefix = flood.world.engine.config().ipv6;
    let held = flood.run(50_000, |f| {
        let (mac, from) = (f.mac(), prefix.nth(f.rng.next_u64() | 1 << 63));
        let to = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        packet::udp(
            mac,
            f.gateway,
            SocketAddr::new(from.into(), 5000),
            SocketAddr::new(to, 53),
            b"who am I",
        )
    });
    assert!(held < 16 * MIB, "{held} bytes");
}

#[test]
fn a_flood_of_garbage_is_dropped() {
    let mut flood = Flood::new();
    let held = flood.run(50_000, |f| {
        let mut frame = vec![0; f.rng.below(200)];
        f.rng.fill(&mut frame);
        if frame.len() > 14 && f.rng.chance(0.9) {
            frame[..6].copy_from_slice(&f.gateway.0);
            frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
            let kinds = [[8, 0], [0x86, 0xdd], [8, 6], [0x88, 0xcc]];
            frame[12..14].copy_from_slice(&kinds[f.rng.below(4)]);
        }
        frame
    });
    assert!(held < MIB);
    let stats = flood.world.engine.stats();
    assert!(stats.dropped(Drop::Malformed) > 1000, "{:?}", stats.drops().collect::<Vec<_>>());
}

#[test]
fn a_full_link_is_counted_and_leaves_others_alone() {
    let mut flood = Flood::new();
    flood.world.links.port(flood.port).paused = true;
    let gateway = flood.world.engine.config().gateway_mac;
    let before = memory::held();
    for i in 0..20_000u16 {
        let from = Ipv4Addr::new(192, 168, 5, 99).into();
        let to = flood.world.engine.config().gateway.into();
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let ping = packet::echo_request(mac, gateway, from, to, (1, i), &[0; 1000]);
        flood.world.inject(flood.port, ping);
    }
    assert!(flood.world.engine.stats().dropped(Drop::LinkFull) > 10_000);
    assert!(memory::held() - before < MIB);
    flood.honest_guest_works();
}

#[test]
fn a_sender_that_ignores_the_window_gets_no_memory() {
    let mut t = Trace::new(Remote::accept().send_buffer(1000).reads(0, Duration::ZERO));
    t.open();
    let before = memory::held();
    // Everything between here and half the sequence space, in random order.
    let mut rng = Rng::new(3);
    for _ in 0..20_000 {
        let at = t.seq.wrapping_add(rng.next_u64() as u32 >> 1);
        t.world.inject(
            t.port,
            t.segment(ACK)
                .seq(at)
                .data(&[0; 1460])
                .option(TcpOption::Raw(vec![1, 1]))
                .frame(t.mac, t.world.engine.config().gateway_mac),
        );
        while t.world.take(t.port).is_some() {}
    }
    for i in 0..20_000u32 {
        let at = t.seq.wrapping_add(2 * i);
        t.world.inject(
            t.port,
            t.segment(ACK).seq(at + 1).data(&[0]).frame(t.mac, t.world.engine.config().gateway_mac),
        );
        while t.world.take(t.port).is_some() {}
    }
    let held = memory::held() - before;
    assert!(held < 3 * MIB, "{held} bytes");
}
