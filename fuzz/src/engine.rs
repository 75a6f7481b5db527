//! A whole engine between two hostile guests and a host whose far ends do as the input says.
//!
//! Properties, besides that nothing panics and nothing runs in a circle: every frame that the
//! engine makes is right (`vmlan_testkit::check`), flows and memory stay within their limits, and
//! after a shutdown no socket is open.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vmlan_engine::io::{Failure, ListenAddr};
use vmlan_engine::{Forward, PortId, Stats};
use vmlan_testkit::packet::{self, ACK, FIN, Packet, RST, SYN, Tcp, TcpOption};
use vmlan_testkit::{
    Ending, LinkOptions, Pattern, Remote, Responder, SimFrame, World, addr, memory,
};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Mac, Offload};

use crate::script::Script;

/// Steps of one input; what is left of it is not looked at.
const MAX_STEPS: usize = 2000;

/// Above what the engine's pools and tables may hold together for two guests.
const MAX_HEAP: isize = 160 << 20;

/// Turns of the loop in which the last things come to their end: timeouts, probes, slow readers.
const MAX_WAITING: u64 = 20_000;

const MTUS: [u16; 4] = [576, 1500, 9000, 65_520];
const MAX_FLOWS: usize = 200;

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
        Self { world, ports: [Some(a), Some(b)], conns, batch, gather: 0, last }
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
                }
            }
        }
    }

    fn gateway(&self) -> Mac {
        self.world.engine.config().gateway_mac
    }

    /// A guest's address, of four that it may use.
    fn source(&self, choice: u8, side: usize) -> IpAddr {
        let number = 15 + side as u32 * 4 + u32::from(choice & 1);
        let config = self.world.engine.config();
        if choice & 2 == 0 {
            config.ipv4.nth(number).into()
        } else {
            config.ipv6.nth(u64::from(number)).into()
        }
    }

    /// Source and destination of one family.
    fn ends(&self, script: &mut Script<'_>, side: usize) -> (SocketAddr, SocketAddr) {
        let (from, to) = (script.u8(), script.u8());
        let src = self.source(from, side);
        let port = 4000 + u16::from(from >> 2);
        let config = self.world.engine.config();
        let v6 = src.is_ipv6();
        let at = match (to >> 5, v6) {
            (0, false) => config.gateway.into(),
            (0, true) => config.ipv6.gateway().into(),
            (1, false) => config.dns.into(),
            (1, true) => config.ipv6.dns().into(),
            (2, _) => self.source(from ^ 1, side ^ 1),
            _ => remote(to, 0).ip(),
        };
        let at = match at {
            IpAddr::V4(a) if v6 => IpAddr::V6(a.to_ipv6_compatible()),
            IpAddr::V4(_) | IpAddr::V6(_) if at.is_ipv6() == v6 => at,
            _ => remote(to, 0).ip(),
        };
        let at = if v6 && at.is_ipv4() { addr("[2001:db8::1]:1").ip() } else { at };
        let to_port = match to & 0x1f {
            31 => 53,
            30 => 67,
            29 => 547,
            n => u16::from(n),
        };
        (SocketAddr::new(src, port), SocketAddr::new(at, to_port))
    }

    fn segment(&mut self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (src, dst) = self.ends(script, side);
        let how = script.u8();
        let flags = match how & 7 {
            0 => SYN,
            1..=3 => ACK,
            4 => ACK | FIN,
            5 => RST,
            6 => SYN | ACK,
            _ => script.u8(),
        };
        let (seq, ack) = self.conns.get(&(src, dst)).copied().unwrap_or((1000, 0));
        let (mut seq, mut ack) = (seq, ack);
        if how & 8 != 0 {
            seq = seq.wrapping_add_signed(i32::from(script.u16().cast_signed()));
        }
        if how & 16 != 0 {
            ack = ack.wrapping_add_signed(i32::from(script.u16().cast_signed()));
        }
        let window = if how & 32 != 0 { script.u16() } else { 65_535 };
        let len = if how & 64 != 0 { usize::from(script.u16()) % 2000 } else { 0 };
        let mut tcp = Tcp::new(src, dst, flags).seq(seq).window(window);
        tcp.ack = ack;
        tcp.payload = vec![script.u8(); len];
        if how & 128 != 0 {
            for _ in 0..=script.u8() & 3 {
                tcp.options.push(option(script, ack));
            }
        } else if flags == SYN {
            tcp.options.push(TcpOption::Mss(1460));
            tcp.options.push(TcpOption::WindowScale(7));
            tcp.options.push(TcpOption::SackPermitted);
        }
        if flags & SYN != 0 || how & 8 == 0 {
            self.conns.insert((src, dst), (tcp.next_seq(), tcp.ack));
        }
        tcp.frame(mac(side), self.gateway())
    }

    fn datagram(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (src, dst) = self.ends(script, side);
        packet::udp(mac(side), self.gateway(), src, dst, script.sized())
    }

    fn echo(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (src, dst) = self.ends(script, side);
        let id = (u16::from(script.u8()), u16::from(script.u8()));
        packet::echo_request(mac(side), self.gateway(), src.ip(), dst.ip(), id, script.sized())
    }

    fn fragment(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (IpAddr::V4(src), place) = (self.source(0, side), script.u16()) else {
            return Vec::new();
        };
        let (id, protocol) = (u16::from(script.u8() & 3), script.u8());
        let protocol = [17, 17, 6, 1, protocol][usize::from(protocol) % 5];
        let packet =
            packet::ipv4(src, [10, 0, 0, 1].into(), protocol, place & 0x3fff, id, script.sized());
        packet::ethernet(mac(side), self.gateway(), 0x0800, &packet)
    }

    fn arp(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let net = self.world.engine.config().ipv4;
        let (from, wanted) = (script.u8(), script.u8());
        packet::arp_request(mac(side), net.nth(from.into()), net.nth(wanted.into()))
    }

    /// Router and neighbour solicitations and what else begins like them.
    fn icmp_v6(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let mut body = vec![133 + (script.u8() & 7), script.u8() & 1, 0, 0];
        body.extend_from_slice(script.sized());
        let link_local = addr("[fe80::1:2]:0").ip();
        let all = addr("[ff02::1]:0").ip();
        let mut frame = packet::ip_frame(mac(side), self.gateway(), link_local, all, 58, &body);
        if let Some(hops) = frame.get_mut(21) {
            *hops = 255;
        }
        frame
    }

    /// DHCP and DHCPv6.
    fn boot(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let payload = script.sized();
        if script.u8() & 1 == 0 {
            let (from, to) = (addr("0.0.0.0:68"), addr("255.255.255.255:67"));
            return packet::udp(mac(side), Mac::BROADCAST, from, to, payload);
        }
        let (from, to) = (addr("[fe80::1:2]:546"), addr("[ff02::1:2]:547"));
        packet::udp(mac(side), Mac([0x33, 0x33, 0, 1, 0, 2]), from, to, payload)
    }

    /// A frame for the other guest, or for nobody.
    fn neighbour(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let to = match script.u8() & 3 {
            0 => Mac::BROADCAST,
            1 => Mac([0x33, 0x33, 0, 0, 0, 1]),
            2 => mac(side ^ 1),
            _ => Mac([2, 9, 9, 9, 9, script.u8()]),
        };
        let from = if script.u8() & 7 == 0 { mac(side ^ 1) } else { mac(side) };
        packet::ethernet(from, to, script.u16(), script.sized())
    }

    /// The frame before, with some bytes changed.
    fn damaged(&self, script: &mut Script<'_>) -> Vec<u8> {
        let mut frame = self.last.clone();
        for _ in 0..=script.u8() & 3 {
            let (at, value) = (usize::from(script.u16()), script.u8());
            let len = frame.len().max(1);
            if let Some(byte) = frame.get_mut(at % len) {
                *byte ^= value;
            }
        }
        if script.u8() & 7 == 0 {
            frame.truncate(usize::from(script.u16()) % (frame.len() + 1));
        }
        frame
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
}

const UDP_FORWARD: &str = "127.0.0.1:5353";

fn listen() -> ListenAddr {
    ListenAddr::Tcp(addr("127.0.0.1:8080"))
}

fn kept() -> ListenAddr {
    ListenAddr::Tcp(addr("127.0.0.1:8081"))
}

/// What is out there: at 10.0.0.N and 2001:db8::1, by port.
fn furnish(world: &mut World) {
    let scripts = [
        Remote::accept(),
        Remote::echo(),
        Remote::refuse(),
        Remote::black_hole(),
        Remote::accept().sends(Pattern(1), 200_000),
        Remote::accept().reads(100, Duration::from_millis(10)).send_buffer(500),
        Remote::accept().reads(0, Duration::ZERO).send_buffer(1000).sends(Pattern(2), 1 << 30),
        Remote::accept().then(Ending::Fin),
        Remote::accept().then(Ending::Close).sends(Pattern(3), 3000),
        Remote::accept().then(Ending::Reset).sends(Pattern(3), 3000),
        Remote::accept().reset_after(1000),
        Remote::accept().after(Duration::from_secs(1)),
        Remote::fail(Failure::HostUnreachable).after(Duration::from_millis(1)),
        Remote::fail(Failure::NetUnreachable),
        Remote::fail(Failure::Prohibited),
        Remote::fail(Failure::TimedOut).after(Duration::from_secs(3)),
    ];
    for (port, script) in (0u16..).zip(scripts) {
        for ip in ["10.0.0.1", "2001:db8::1", "127.0.0.1", "::1"] {
            let at = SocketAddr::new(ip.parse().expect("an address"), port);
            world.host.put(at, script.clone());
        }
    }
    world.host.elsewhere = Remote::echo();
    world.host.dns_stream = Remote::echo();
    world.host.set_dns(|query| {
        let mut answer = query.to_vec();
        if let Some(flags) = answer.get_mut(2) {
            *flags |= 0x80;
        }
        Some(answer)
    });
    let responders = [
        Responder::Echo { after: Duration::ZERO },
        Responder::Sink,
        Responder::Burst { count: 40, size: 100 },
        Responder::Burst { count: 3, size: 65_000 },
        Responder::Icmp { kind: 3, code: 3, mtu: 0, offender: Some(addr("10.0.0.9:0").ip()) },
        Responder::Icmp { kind: 3, code: 4, mtu: 600, offender: None },
        Responder::Icmp { kind: 11, code: 0, mtu: 0, offender: Some(addr("10.0.0.8:0").ip()) },
        Responder::Icmp { kind: 255, code: 255, mtu: u32::MAX, offender: None },
    ];
    for (port, responder) in (0u16..).zip(responders) {
        for ip in ["10.0.0.1", "2001:db8::1"] {
            let ip: IpAddr = ip.parse().expect("an address");
            world.host.put_udp(SocketAddr::new(ip, port), responder.clone());
        }
        world.host.put_ping([10, 0, 0, port as u8].into(), responder);
    }
    world.host.respond_elsewhere = Responder::Echo { after: Duration::from_millis(1) };
    let guest = addr("192.168.5.15:4000");
    for (listen, keep_source) in [(listen(), false), (kept(), true)] {
        world.add_forward(Forward { listen, guest, keep_source }).expect("nothing is taken");
    }
    let listen = ListenAddr::Udp(addr(UDP_FORWARD));
    let forward = Forward { listen, guest, keep_source: false };
    world.add_forward(forward).expect("nothing is taken");
}

fn remote(choice: u8, port: u16) -> SocketAddr {
    SocketAddr::new([10, 0, 0, choice & 7].into(), port)
}

fn mac(side: usize) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, 15 + side as u8])
}

fn option(script: &mut Script<'_>, ack: u32) -> TcpOption {
    match script.u8() & 7 {
        0 => TcpOption::Mss(script.u16()),
        1 => TcpOption::WindowScale(script.u8()),
        2 => TcpOption::SackPermitted,
        3..=5 => {
            let mut edge = || ack.wrapping_add(u32::from(script.u16()));
            TcpOption::Sack((0..2).map(|_| (edge(), edge())).collect())
        }
        _ => {
            let len = usize::from(script.u8()) % 12;
            TcpOption::Raw(script.bytes(len).to_vec())
        }
    }
}

fn offload(script: &mut Script<'_>) -> Offload {
    let how = script.u8();
    let checksum = match how & 3 {
        0 => Checksum::Complete,
        1 => Checksum::Verified,
        2 => Checksum::Partial { start: 34, offset: 16 },
        _ => Checksum::Partial { start: script.u16(), offset: script.u16() },
    };
    let kind = if how & 4 == 0 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let gso = (how & 8 != 0).then(|| Gso { kind, size: script.u16(), header_len: script.u16() });
    Offload { checksum, gso }
}
