//! TCP tests that read like packet traces: one guest without a stack, whose segments the test sends
//! and whose answers it names one by one.

use std::net::SocketAddr;
use std::time::Duration;

use vmlan_engine::PortId;
use vmlan_wire::Mac;

use crate::host::Remote;
use crate::links::LinkOptions;
use crate::nic;
use crate::packet::{self, ACK, FIN, Packet, SYN, Tcp, TcpOption};
use crate::wire::SimFrame;
use crate::world::{World, addr};

/// The guest's initial sequence number.
pub const ISS: u32 = 1000;

/// A hand-driven guest.
#[derive(Debug)]
pub struct Trace {
    pub world: World,
    pub port: PortId,
    pub mac: Mac,
    pub guest: SocketAddr,
    pub remote: SocketAddr,
    /// The guest's next sequence number.
    pub seq: u32,
    /// What the guest expects next.
    pub ack: u32,
    /// What it offers, as in the header.
    pub window: u16,
}

impl Trace {
    /// A guest of the default network in front of `remote`, which is at 10.0.0.1:80.
    pub fn new(remote: Remote) -> Self {
        Self::with(World::new(1), LinkOptions::plain(1500), remote)
    }

    pub fn with(mut world: World, link: LinkOptions, remote: Remote) -> Self {
        let port = world.add_port(link);
        let at = addr("10.0.0.1:80");
        world.host.put(at, remote);
        Self {
            world,
            port,
            mac: Mac([0x52, 0x54, 0, 0, 0, 15]),
            guest: addr("192.168.5.15:40000"),
            remote: at,
            seq: ISS,
            ack: 0,
            window: 65_535,
        }
    }

    /// A segment from here, acknowledging what was seen so far.
    pub fn segment(&self, flags: u8) -> Tcp {
        let segment = Tcp::new(self.guest, self.remote, flags).seq(self.seq).window(self.window);
        if flags & SYN == 0 { segment.ack(self.ack) } else { segment }
    }

    /// Sends a segment as it is, and lets the world act on it.
    pub fn send(&mut self, segment: &Tcp) {
        let frame = segment.frame(self.mac, self.world.engine.config().gateway_mac);
        self.world.inject(self.port, frame);
        self.world.run_for(Duration::ZERO);
    }

    /// Sends segments in one batch.
    pub fn send_all(&mut self, segments: &[Tcp]) {
        let gateway = self.world.engine.config().gateway_mac;
        let frames: Vec<_> =
            segments.iter().map(|s| SimFrame::from(s.frame(self.mac, gateway))).collect();
        self.world.inject_all(self.port, frames);
        self.world.run_for(Duration::ZERO);
    }

    pub fn send_raw(&mut self, frame: impl Into<SimFrame>) {
        self.world.inject(self.port, frame);
        self.world.run_for(Duration::ZERO);
    }

    /// Sends data in order.
    pub fn data(&mut self, data: &[u8]) {
        let segment = self.segment(packet::PSH).data(data);
        self.seq = segment.next_seq();
        self.send(&segment);
    }

    /// Acknowledges what was seen so far.
    pub fn acknowledge(&mut self) {
        let segment = self.segment(ACK);
        self.send(&segment);
    }

    pub fn fin(&mut self) {
        let segment = self.segment(FIN);
        self.seq = segment.next_seq();
        self.send(&segment);
    }

    /// A SYN with the options of a modern guest.
    pub fn syn(&mut self) {
        let syn = self
            .segment(SYN)
            .option(TcpOption::Mss(1460))
            .option(TcpOption::SackPermitted)
            .option(TcpOption::WindowScale(0));
        self.send(&syn);
    }

    /// The handshake; returns the SYN-ACK.
    pub fn open(&mut self) -> Tcp {
        self.syn();
        self.seq = ISS + 1;
        let syn_ack = self.expect();
        assert!(syn_ack.has(SYN | ACK) && syn_ack.ack == ISS + 1, "{syn_ack:?}");
        self.ack = syn_ack.next_seq();
        self.acknowledge();
        self.silent();
        syn_ack
    }

    /// The next segment that has come. Panics if there is none.
    pub fn expect(&mut self) -> Tcp {
        let packet = self.packet().expect("a segment was expected and nothing came");
        match packet {
            Packet::Tcp(tcp) => tcp,
            other => panic!("a segment was expected and {other:?} came"),
        }
    }

    /// The next segment within some time, and how long it took to come.
    pub fn expect_within(&mut self, limit: Duration) -> (Tcp, Duration) {
        let start = self.world.now;
        loop {
            match self.packet() {
                Some(Packet::Tcp(segment)) => return (segment, self.world.now.since(start)),
                Some(other) => panic!("a segment was expected and {other:?} came"),
                None => {}
            }
            assert!(self.world.now.since(start) < limit, "no segment within {limit:?}");
            let Some(next) = self.world.next_event() else { panic!("no segment will ever come") };
            self.world.run_for(next.since(self.world.now));
        }
    }

    /// Takes the next packet that has come for this guest; what is for everybody (router
    /// advertisements) is passed over.
    pub fn packet(&mut self) -> Option<Packet> {
        loop {
            let frame = self.world.take(self.port)?;
            let unicast = frame.data.first().is_some_and(|b| b & 1 == 0);
            let whole = nic::finish(frame).into_iter().next().filter(|_| unicast);
            if let Some(frame) = whole {
                return Some(packet::parse(&frame.data).expect("the engine's frames parse"));
            }
        }
    }

    /// Panics if something has come.
    pub fn silent(&mut self) {
        if let Some(packet) = self.packet() {
            panic!("nothing was expected and {packet:?} came");
        }
    }

    /// Panics if something comes within `span`.
    pub fn silent_for(&mut self, span: Duration) {
        self.world.run_for(span);
        self.silent();
    }

    /// Takes segments and acknowledges each until nothing comes any more; returns their bytes.
    pub fn drain(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        while let Some(packet) = self.packet() {
            let Packet::Tcp(segment) = packet else { continue };
            if segment.seq == self.ack {
                data.extend_from_slice(&segment.payload);
                self.ack = segment.next_seq();
                self.acknowledge();
            }
        }
        data
    }
}
