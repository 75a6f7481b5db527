//! A whole engine between two hostile guests and a host whose far ends do as the input says.
//!
//! Properties, besides that nothing panics and nothing runs in a circle: every frame that the
//! engine makes is right (`vmlan_testkit::check`), flows and memory stay within their limits, and
//! after a shutdown no socket is open.

mod frames;
mod outside;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use vmlan_engine::io::Failure;
use vmlan_engine::{DialId, PortId, RelayId, Stats};
use vmlan_testkit::packet::{self, ACK, Packet, SYN};
use vmlan_testkit::{Ending, LinkOptions, Pattern, Remote, SimFrame, World, memory};

use crate::script::Script;
use frames::offload;
use outside::{UDP_FORWARD, furnish, kept, listen, remote};

/// Steps of one input; what is left of it is not looked at.
const MAX_STEPS: usize = 2000;

/// Above what the engine's pools and tables may hold together for two guests.
const MAX_HEAP: isize = 160 << 20;

/// Turns of the loop in which the last things come to their end: timeouts, probes, slow readers.
const MAX_WAITING: u64 = 20_000;

const MTUS: [u16; 4] = [576, 1500, 9000, 65_520];
const MAX_FLOWS: usize = 200;

/// Clients of one run: somebody else bounds them.
const MAX_DIALS: usize = 200;

/// The state of one run.
struct Run {
    world: World,
    ports: [Option<PortId>; 2],
    /// What each connection's next segment has to say, as far as the guest was polite.
    conns: HashMap<(SocketAddr, SocketAddr), (u32, u32)>,
    batch: Vec<SimFrame>,
    /// Frames still to be gathered into the batch.
    gather: u8,
    last: Vec<u8>,
    /// Clients of the host's that are being carried to guests, and how many there have been.
    dials: Vec<DialId>,
    dialed: usize,
    /// The port from which the gateway has called a guest last.
    caller: u16,
}

pub fn run(data: &[u8]) {
    play(data);
}

/// Runs one input and returns what the engine counted.
pub fn play(data: &[u8]) -> Stats {
    let before = memory::held();
    let mut script = Script(data);
    let mut run = Run::new(&mut script);
    for _ in 0..MAX_STEPS {
        if script.is_empty() {
            break;
        }
        run.step(&mut script);
        run.collect();
    }
    run.flush(0);
    run.wait();
    run.world.check();
    let engine = &run.world.engine;
    // Of each protocol and guest; forwards have their own limits.
    assert!(engine.flows().len() <= 2 * (3 * MAX_FLOWS + 1024), "{} flows", engine.flows().len());
    assert!(engine.mac_table().len() <= 2 * 128);
    let held = memory::held() - before;
    assert!(held < MAX_HEAP, "{held} bytes on the heap");
    run.world.shutdown();
    assert_eq!(run.world.host.open_sockets(), 0, "sockets are left: {:?}", run.world.host);
    run.world.check();
    run.world.engine.stats().clone()
}

impl Run {
    fn new(script: &mut Script<'_>) -> Self {
        let setup = script.u8();
        let mut config = World::config(1);
        config.mtu = MTUS[usize::from(setup & 3)];
        config.max_flows = MAX_FLOWS;
        let mtu = config.mtu;
        let mut world = World::with(config, 1);
        if setup & 4 != 0 {
            world.host.socket_limit = 8;
        }
        world.host.ping_allowed = setup & 8 == 0;
        world.host.datagram_budget = if setup & 16 == 0 { usize::MAX } else { 1 };
        furnish(&mut world);
        let a =
            world.add_port(LinkOptions::plain(mtu).queue(if setup & 32 == 0 { 512 } else { 3 }));
        let b = world.add_port(LinkOptions::offload(mtu));
        let (conns, batch, last) = (HashMap::new(), Vec::new(), Vec::new());
        let ports = [Some(a), Some(b)];
        Self {
            world,
            ports,
            conns,
            batch,
            gather: 0,
            last,
            dials: Vec::new(),
            dialed: 0,
            caller: 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let op = script.u8();
        let side = usize::from(op >> 7);
        let frame: SimFrame = match op & 0x1f {
            0 => script.sized().to_vec().into(),
            1..=7 => self.segment(script, side).into(),
            8 => self.datagram(script, side).into(),
            9 => self.echo(script, side).into(),
            10 => self.fragment(script, side).into(),
            11 => self.arp(script, side).into(),
            12 => self.icmp_v6(script, side).into(),
            13 => self.boot(script, side).into(),
            14 => return self.pass(script),
            15 => return self.far(script),
            16 => return self.plug(script, side),
            17 => return self.client(script),
            18 => {
                let port = self.ports[side];
                if let Some(port) = port {
                    let paused = &mut self.world.links.port(port).paused;
                    *paused = !*paused;
                }
                return;
            }
            19 => {
                self.gather = script.u8() & 63;
                return;
            }
            20 => self.damaged(script).into(),
            21 => {
                let frame = self.segment(script, side);
                SimFrame { offload: offload(script), data: frame }
            }
            22 => SimFrame { offload: offload(script), data: script.sized().to_vec() },
            23 => self.neighbour(script, side).into(),
            24 => {
                let at = usize::from(script.u8());
                self.world.host.datagram_to_all(remote(at as u8, 1), &[7; 40]);
                return;
            }
            25 => return self.tunnel(script),
            _ => return self.pass(script),
        };
        self.last.clone_from(&frame.data);
        self.batch.push(frame);
        if self.gather > 0 {
            self.gather -= 1;
        } else {
            self.flush(side);
        }
    }

    /// Gives what is gathered to the engine.
    fn flush(&mut self, side: usize) {
        let batch = std::mem::take(&mut self.batch);
        if let Some(port) = self.ports[side] {
            self.world.inject_all(port, batch);
            self.world.run_for(Duration::ZERO);
        }
    }

    /// Nobody does anything for longer than a connection may be silent, and that costs little.
    fn wait(&mut self) {
        let before = self.world.steps;
        for _ in 0..8 {
            self.world.run_for(Duration::from_secs(1000));
            self.collect();
        }
        let steps = self.world.steps - before;
        assert!(steps < MAX_WAITING, "{steps} turns of the loop for nothing");
    }

    /// Takes what has come and notes how connections stand.
    fn collect(&mut self) {
        for port in self.ports.into_iter().flatten() {
            while let Some(frame) = self.world.take(port) {
                if let Some(Packet::Tcp(seg)) = packet::parse(&frame.data) {
                    let state = self.conns.entry((seg.dst, seg.src)).or_default();
                    if seg.has(ACK) {
                        state.0 = seg.ack;
                    }
                    state.1 = seg.next_seq();
                    if seg.has(SYN) && !seg.has(ACK) {
                        self.caller = seg.src.port();
                    }
                }
            }
        }
    }

    /// Time passes.
    fn pass(&mut self, script: &mut Script<'_>) {
        let span = match script.u8() & 7 {
            0..=3 => Duration::from_micros(u64::from(script.u16())),
            4..=6 => Duration::from_millis(u64::from(script.u16()) >> 4),
            _ => Duration::from_secs(u64::from(script.u16()) >> 6),
        };
        self.world.run_for(span);
    }

    /// The far end of a connection acts.
    fn far(&mut self, script: &mut Script<'_>) {
        let count = self.world.host.conns.len();
        let conn = usize::from(script.u8()) % count.max(1);
        let host = &mut self.world.host;
        match script.u8() % 6 {
            0 => host.far_fin(conn),
            1 => host.far_reset(conn, Failure::Reset),
            2 => host.far_reset(conn, Failure::TimedOut),
            3 => host.far_reads(conn, usize::from(script.u16())),
            4 => host.far_send(conn, script.sized()),
            _ => host.far_send(conn, &vec![5; usize::from(script.u16())]),
        }
        self.world.run_for(Duration::ZERO);
    }

    /// A guest leaves or comes back.
    fn plug(&mut self, script: &mut Script<'_>, side: usize) {
        match self.ports[side].take() {
            Some(port) => self.world.remove_port(port),
            None => {
                let mtu = self.world.engine.config().mtu;
                let link = if script.u8() & 1 == 0 {
                    LinkOptions::plain(mtu)
                } else {
                    LinkOptions::offload(mtu)
                };
                self.ports[side] = Some(self.world.add_port(link.queue(512)));
            }
        }
    }

    /// Something comes in on a forward.
    fn client(&mut self, script: &mut Script<'_>) {
        let from = remote(script.u8(), 7000);
        match script.u8() & 3 {
            0 => self.world.host.datagram_in(UDP_FORWARD.parse().unwrap(), from, script.sized()),
            1 => self.world.host.dial(&kept(), Some(from), Remote::accept()),
            2 => self.world.host.dial(
                &listen(),
                Some(from),
                Remote::accept().sends(Pattern(1), 5000),
            ),
            _ => self.world.host.dial(&listen(), Some(from), Remote::echo().then(Ending::Fin)),
        }
        self.world.run_for(Duration::ZERO);
    }

    /// A client of the host's is carried to a guest, or given up, or sends a datagram.
    fn tunnel(&mut self, script: &mut Script<'_>) {
        let (how, port) = (script.u8(), u16::from(script.u8() & 15) + 4000);
        let guest = SocketAddr::new([192, 168, 5, 15 + (how >> 6)].into(), port);
        let some = self.dials.len().checked_sub(1).map(|last| usize::from(how >> 3).min(last));
        match (how & 7, some) {
            (0 | 1, _) if self.dialed < MAX_DIALS => {
                self.dialed += 1;
                let dial = self.world.io(|engine, io| engine.dial(guest, io));
                self.dials.extend(dial);
            }
            (2, Some(one)) => {
                let dial = self.dials.swap_remove(one);
                self.world.io(|engine, io| engine.hang_up(dial, io));
            }
            // Whether it is answered or not: nothing may come of what nobody should do.
            (3, Some(one)) => {
                let dial = self.dials.swap_remove(one);
                self.world.attach(dial, Remote::echo(), script.sized());
            }
            (4, _) => self.world.engine.end_relay(RelayId(u32::from(how >> 5))),
            _ => {
                let (relay, data) = (RelayId(u32::from(how >> 5)), script.sized());
                // No guest's address, or no room.
                let _ = self.world.io(|engine, io| engine.relay(relay, port, guest, data, io));
            }
        }
        self.world.run_for(Duration::ZERO);
        while let Some((dial, outcome)) = self.world.engine.next_dialed() {
            let wanted = self.dials.iter().position(|known| *known == dial);
            let wanted = wanted.map(|at| self.dials.swap_remove(at));
            if let (Some(dial), Ok(())) = (wanted, outcome) {
                self.world.attach(dial, Remote::echo().then(Ending::Fin), b"early");
            }
        }
        if how & 1 == 0 {
            while self.world.engine.next_relayed().is_some() {}
        }
    }
}
