//! Bytes through the engine over all kinds of links: every one arrives, in order, in both
//! directions, within a bounded time, and the connections end cleanly.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

use std::time::Duration;

use vmlan_testkit::{End, Faults, LinkOptions, Pattern, Remote, Seen, World, addr};

const MIB: u64 = 1 << 20;
const REMOTE: &str = "10.0.0.1:80";
const REMOTE6: &str = "[2001:db8::1]:80";

/// A transfer in both directions at once.
struct Transfer {
    link: LinkOptions,
    remote: &'static str,
    out: u64,
    back: u64,
    /// The guest's socket buffers, and so its windows.
    buffer: usize,
    far: Remote,
    limit: Duration,
    seed: u64,
}

impl Transfer {
    fn new(link: LinkOptions) -> Self {
        Self {
            link,
            remote: REMOTE,
            out: 0,
            back: 0,
            buffer: 256 << 10,
            far: Remote::accept(),
            limit: Duration::from_secs(30),
            seed: 1,
        }
    }

    fn out(mut self, bytes: u64) -> Self {
        self.out = bytes;
        self
    }

    fn back(mut self, bytes: u64) -> Self {
        self.back = bytes;
        self
    }

    fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    fn run(self) -> World {
        let mut world = World::new(self.seed);
        let guest = world.add_guest(self.link);
        let (up, down) = (Pattern(self.seed + 1), Pattern(self.seed + 2));
        let far = self.far.expects(up).sends(down, self.back);
        world.host.put(addr(self.remote), far);
        let guest_mut = &mut world.guests[guest];
        let socket = guest_mut.connect_with(addr(self.remote), self.buffer, self.buffer);
        guest_mut.expect(socket, down);
        guest_mut.send(socket, up, self.out);
        let took = world.run_until(self.limit, |w| {
            let ended = w.guests[guest].app(socket).end.is_some();
            ended && w.host.open_sockets() == 0 && w.engine.flows().is_empty()
        });
        let app = world.guests[guest].app(socket);
        assert_eq!((app.received, app.mismatch), (self.back, None));
        assert_eq!(app.end, Some(End::Fin));
        let conn = &world.host.conns[0];
        assert_eq!((conn.received, conn.read, conn.mismatch), (self.out, self.out, None));
        assert_eq!(conn.seen, Some(Seen::Fin));
        eprintln!("took {took:?}, {:?}", world.engine.stats().drops().collect::<Vec<_>>());
        world
    }
}

/// Links of one kind each, and all kinds together.
fn faults() -> [(&'static str, Faults); 7] {
    let hold = Duration::from_millis(10);
    [
        ("loss", Faults::latency(1).loss(0.05)),
        ("reorder", Faults::latency(1).reorder(0.25, hold)),
        ("duplicate", Faults::latency(1).duplicate(0.05)),
        ("delay", Faults::latency(20)),
        ("corrupt", Faults::latency(1).corrupt(0.02)),
        ("loss both ways at once", Faults::NONE.loss(0.05)),
        (
            "together",
            Faults::latency(20).loss(0.05).reorder(0.25, hold).duplicate(0.05).corrupt(0.01),
        ),
    ]
}

#[test]
fn out_over_a_perfect_link() {
    for mtu in [1500, 9000, 65_520] {
        Transfer::new(LinkOptions::plain(mtu)).out(20 * MIB).run();
    }
}

#[test]
fn back_over_a_perfect_link() {
    for mtu in [1500, 9000, 65_520] {
        Transfer::new(LinkOptions::plain(mtu)).back(20 * MIB).run();
    }
}

#[test]
fn both_ways_at_once_over_a_perfect_link() {
    for link in [LinkOptions::plain(1500), LinkOptions::offload(1500), LinkOptions::offload(65_520)]
    {
        let world = Transfer::new(link).out(10 * MIB).back(10 * MIB).run();
        assert_eq!(world.engine.stats().tcp_retransmits, 0);
    }
}

#[test]
fn both_ways_over_ipv6() {
    let mut transfer = Transfer::new(LinkOptions::offload(1500)).out(5 * MIB).back(5 * MIB);
    transfer.remote = REMOTE6;
    transfer.run();
}

#[test]
fn out_over_bad_links() {
    for (what, faults) in faults() {
        eprintln!("{what}");
        // The guest's stack has no SACK as a sender: it is slow where several faults meet.
        let bytes = if what == "together" { MIB } else { 5 * MIB };
        Transfer::new(LinkOptions::plain(1500).faults(faults)).out(bytes).limit(200).run();
    }
}

#[test]
fn back_over_bad_links() {
    for (what, faults) in faults() {
        eprintln!("{what}");
        Transfer::new(LinkOptions::plain(1500).faults(faults)).back(5 * MIB).limit(30).run();
    }
}

#[test]
fn both_ways_over_bad_links_with_offload() {
    for (what, faults) in faults() {
        eprintln!("{what}");
        let link = LinkOptions::offload(1500).faults(faults);
        Transfer::new(link).out(2 * MIB).back(2 * MIB).limit(120).run();
    }
}

#[test]
fn both_ways_over_the_worst_link_with_many_seeds() {
    let (_, faults) = faults()[6];
    for seed in 0..20 {
        let mut transfer = Transfer::new(LinkOptions::plain(1500).faults(faults));
        transfer.seed = seed;
        transfer.out(MIB / 4).back(MIB / 4).limit(600).run();
    }
}

#[test]
fn tiny_windows() {
    for buffer in [100, 536, 1460, 4000] {
        let mut transfer = Transfer::new(LinkOptions::plain(1500)).out(MIB / 4).back(MIB / 4);
        transfer.buffer = buffer;
        transfer.limit(300).run();
    }
}

#[test]
fn tiny_windows_over_a_bad_link() {
    let (_, faults) = faults()[6];
    let link = LinkOptions::plain(1500).faults(faults);
    let mut transfer = Transfer::new(link).out(MIB / 16).back(MIB / 16);
    transfer.buffer = 2000;
    transfer.limit(1200).run();
}

#[test]
fn a_far_end_that_takes_little_at_a_time() {
    for (buffer, chunk) in [(1, 1), (700, 100), (4096, 4096), (65_536, 1000)] {
        let mut transfer = Transfer::new(LinkOptions::plain(1500)).out(MIB / 16).back(MIB);
        transfer.far =
            Remote::accept().send_buffer(buffer).reads(chunk, Duration::from_micros(100));
        transfer.limit(60).run();
    }
}

#[test]
fn a_far_end_that_sends_little_at_a_time() {
    let mut transfer = Transfer::new(LinkOptions::plain(1500)).out(MIB).back(MIB / 16);
    transfer.far = Remote::accept().paced(100, Duration::from_millis(3));
    transfer.run();
}

#[test]
fn a_link_whose_queue_is_short() {
    for queue in [1, 2, 7, 64] {
        let mut link = LinkOptions::plain(1500).queue(queue);
        link.down.latency = Duration::from_millis(1);
        Transfer::new(link).out(MIB).back(MIB).limit(120).run();
    }
}

#[test]
fn echo_comes_back_as_it_went_out() {
    let mut world = World::new(1);
    let guest = world.add_guest(LinkOptions::plain(1500));
    world.host.put(addr(REMOTE), Remote::echo());
    let pattern = Pattern(5);
    let guest_mut = &mut world.guests[guest];
    let socket = guest_mut.connect(addr(REMOTE));
    guest_mut.expect(socket, pattern);
    guest_mut.send(socket, pattern, 3 * MIB);
    world.run_until(Duration::from_secs(30), |w| w.guests[guest].app(socket).end.is_some());
    let app = world.guests[guest].app(socket);
    assert_eq!((app.received, app.mismatch, app.end), (3 * MIB, None, Some(End::Fin)));
}

#[test]
fn many_connections_at_once_over_one_link() {
    let mut world = World::new(1);
    let guest = world.add_guest(LinkOptions::plain(1500).faults(Faults::latency(5).loss(0.01)));
    let sockets: Vec<_> = (0..50u64)
        .map(|i| {
            let at = ([10, 0, 1, i as u8], 80).into();
            let far = Remote::accept().expects(Pattern(i)).sends(Pattern(i + 100), MIB / 8);
            world.host.put(at, far);
            let guest = &mut world.guests[guest];
            let socket = guest.connect_with(at, 32 << 10, 32 << 10);
            guest.expect(socket, Pattern(i + 100));
            guest.send(socket, Pattern(i), MIB / 8);
            socket
        })
        .collect();
    world.run_until(Duration::from_secs(120), |w| {
        let guest = &w.guests[guest];
        sockets.iter().all(|s| guest.app(*s).end.is_some()) && w.host.open_sockets() == 0
    });
    for socket in sockets {
        let app = world.guests[guest].app(socket);
        assert_eq!((app.received, app.mismatch, app.end), (MIB / 8, None, Some(End::Fin)));
    }
    assert!(world.host.conns.iter().all(|c| c.received == MIB / 8 && c.mismatch.is_none()));
}
