//! A hostile guest behind a TAP device: what the device hands over is a `virtio_net_hdr` and a frame,
//! and the header may say anything of the frame. A socket pair stands for the device.
//!
//! Properties, besides that nothing panics: what the engine makes is right, a guest without offloads
//! gets complete frames that its link carries, one frame becomes a bounded number of frames, and
//! what goes to the device says of each frame what the engine said.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use vmlan_engine::{PortId, Stats};
use vmlan_link::tap::TapLink;
use vmlan_link::{Link, PeerId, Recv};
use vmlan_testkit::packet::{self, ACK, FIN, Packet, RST, SYN, Tcp, TcpOption};
use vmlan_testkit::{LinkOptions, Remote, Responder, SimFrame, World, addr, nic};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{FrameBatch, Gso, Mac, Offload, OutFrame};

use crate::script::Script;

const HEADER: usize = 10;
const STEPS: usize = 200;
const MTUS: [u16; 4] = [576, 1500, 9000, 65_520];

/// Frames that one frame may become on the way to one guest, with some of the engine's own.
const MOST: usize = 2048 + 64;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHERS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 2]), Mac([2, 0, 0, 0, 0, 3])];

struct Run {
    world: World,
    link: TapLink,
    device: UnixDatagram,
    port: PortId,
    /// Without offloads, and with them.
    others: [PortId; 2],
    v6: bool,
    /// Where the connection to the outside stands.
    seq: u32,
    ack: u32,
}

pub fn run(data: &[u8]) {
    play(data);
}

/// Plays an input and tells what the engine counted.
pub fn play(data: &[u8]) -> Stats {
    let mut script = Script(data);
    let mut run = Run::new(script.u8());
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        let message = run.message(&mut script);
        // What is too long for the socket never comes from a device either.
        if run.device.send(&message).is_ok() {
            run.receive();
        }
    }
    run.world.run_for(Duration::from_secs(1));
    run.deliver();
    run.world.check();
    run.world.shutdown();
    assert_eq!(run.world.host.open_sockets(), 0);
    run.world.engine.stats().clone()
}

impl Run {
    fn new(setup: u8) -> Self {
        let mut config = World::config(1);
        config.mtu = MTUS[usize::from(setup & 3)];
        let mtu = config.mtu;
        let mut world = World::with(config, 1);
        world.host.elsewhere = Remote::echo();
        world.host.respond_elsewhere = Responder::Echo { after: Duration::ZERO };
        let port = world.add_port(LinkOptions::offload(mtu).unfinished());
        let plain = world.add_port(LinkOptions::plain(mtu).unfinished());
        let able = world.add_port(LinkOptions::offload(mtu.min(9000)).unfinished());
        let others = [plain, able];
        for ((port, mac), number) in others.into_iter().zip(OTHERS).zip(16..) {
            let hello =
                packet::arp_request(mac, [192, 168, 5, number].into(), [192, 168, 5, 2].into());
            world.inject(port, hello);
        }
        let (device, ours) = UnixDatagram::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("a socket");
        device.set_nonblocking(true).expect("a socket");
        let link = TapLink::with_framing(ours.into(), true);
        Self { world, link, device, port, others, v6: setup & 0x80 != 0, seq: 1, ack: 0 }
    }

    /// What the device hands over next.
    fn message(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        match script.u8() & 3 {
            0 => script.sized().to_vec(),
            1 => {
                let (frame, sound) = self.segment(script);
                [&header(sound), &frame[..]].concat()
            }
            2 => {
                let mut lie = [0; HEADER];
                lie.iter_mut().for_each(|byte| *byte = script.u8());
                let (frame, _) = self.segment(script);
                [&lie, &frame[..]].concat()
            }
            _ => {
                let (to, mac) = self.target(script.u8());
                let body = vec![1; usize::from(script.u16()).min(65_000)];
                let frame = packet::udp(GUEST, mac, self.guest(), to, &body);
                let partial = Checksum::Partial { start: self.transport(), offset: 6 };
                let checksum = if script.u8() & 1 == 0 { partial } else { Checksum::Complete };
                [&header(Offload { checksum, gso: None }), &frame[..]].concat()
            }
        }
    }

    fn guest(&self) -> SocketAddr {
        let config = self.world.engine.config();
        let ip = if self.v6 { config.ipv6.nth(15).into() } else { config.ipv4.nth(15).into() };
        SocketAddr::new(ip, 4000)
    }

    /// The outside, or another guest, with the MAC address that leads there.
    fn target(&self, choice: u8) -> (SocketAddr, Mac) {
        let config = self.world.engine.config();
        match usize::from(choice) % 3 {
            0 if self.v6 => (addr("[2001:db8::1]:80"), config.gateway_mac),
            0 => (addr("10.0.0.1:80"), config.gateway_mac),
            other => {
                let number = 15 + other as u8;
                let ip = if self.v6 {
                    config.ipv6.nth(u64::from(number)).into()
                } else {
                    config.ipv4.nth(u32::from(number)).into()
                };
                (SocketAddr::new(ip, 80), OTHERS[other - 1])
            }
        }
    }

    /// Where the transport header begins.
    fn transport(&self) -> u16 {
        if self.v6 { 54 } else { 34 }
    }

    /// A segment that follows what was seen, and what an honest header says of it.
    fn segment(&mut self, script: &mut Script<'_>) -> (Vec<u8>, Offload) {
        let (to, mac) = self.target(script.u8());
        let flags = [SYN, ACK, FIN | ACK, RST][usize::from(script.u8() & 3)];
        let len = usize::from(script.u16()).min(65_000);
        let size = script.u16();
        let mut tcp = Tcp::new(self.guest(), to, flags).seq(self.seq).ack(self.ack);
        tcp.window = u16::MAX;
        if flags == SYN {
            tcp = Tcp::new(self.guest(), to, SYN).seq(0).option(TcpOption::Mss(1400));
            (self.seq, self.ack) = (1, 0);
        } else {
            tcp = tcp.data(&vec![5; len]);
            if mac == self.world.engine.config().gateway_mac {
                self.seq = tcp.next_seq();
            }
        }
        let frame = tcp.frame(GUEST, mac);
        let headers = (frame.len() - tcp.payload.len()) as u16;
        let kind = if self.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        let train = tcp.payload.len() > usize::from(size) && size > 0;
        let gso = train.then_some(Gso { kind, size, header_len: headers });
        let checksum = Checksum::Partial { start: self.transport(), offset: 16 };
        (frame, Offload { checksum, gso })
    }

    /// The daemon's part: what the link gives goes to the engine, and what the engine sends to the
    /// link.
    fn receive(&mut self) {
        let mut batch = FrameBatch::default();
        loop {
            match self.link.recv(&mut batch) {
                Recv::Frames { .. } => {
                    let frame = |f: vmlan_wire::Frame<'_>| SimFrame {
                        data: f.data.to_vec(),
                        offload: f.offload,
                    };
                    let frames: Vec<_> = batch.iter().map(frame).collect();
                    assert_eq!(frames.len(), 1, "one message is one frame");
                    self.world.inject_all(self.port, frames);
                }
                Recv::Empty => break,
                Recv::Closed(reason) => panic!("closed: {reason:?}"),
            }
        }
        self.world.run_for(Duration::ZERO);
        self.deliver();
    }

    fn deliver(&mut self) {
        let mtu = self.world.engine.config().mtu;
        for (other, able) in self.others.into_iter().zip([false, true]) {
            let mut count = 0;
            while let Some(frame) = self.world.take(other) {
                count += 1;
                let longest = usize::from(if able { mtu.min(9000) } else { mtu }) + 18;
                let Offload { checksum, gso } = frame.offload;
                let partial = matches!(checksum, Checksum::Partial { .. });
                assert!(able || !partial && gso.is_none(), "{:?}", frame.offload);
                assert!(gso.is_some() || frame.data.len() <= longest, "{}", frame.data.len());
            }
            assert!(count <= MOST, "{count} frames out of one");
        }
        let mut room = vec![0; 1 << 17];
        while let Some(frame) = self.world.take(self.port) {
            for whole in nic::finish(frame.clone()) {
                if let Some(Packet::Tcp(tcp)) = packet::parse(&whole.data) {
                    self.ack = tcp.next_seq();
                }
            }
            let out = OutFrame::whole(&frame.data, frame.offload);
            assert_eq!(self.link.send(PeerId(0), &[out]), 1);
            let len = self.device.recv(&mut room).expect("the frame");
            assert_eq!(room[..HEADER], header(frame.offload));
            assert!(room[HEADER..len] == frame.data);
        }
    }
}

/// `struct virtio_net_hdr`, by its definition.
fn header(offload: Offload) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    match offload.checksum {
        Checksum::Complete => {}
        Checksum::Verified => header[0] = 2,
        Checksum::Partial { start, offset } => {
            header[0] = 1;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..].copy_from_slice(&offset.to_ne_bytes());
        }
    }
    if let Some(gso) = offload.gso {
        header[1] = if gso.kind == GsoKind::TcpV4 { 1 } else { 4 };
        header[2..4].copy_from_slice(&gso.header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
    }
    header
}
