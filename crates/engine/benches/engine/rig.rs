//! An engine between nothing and nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant as Clock};

use criterion::Bencher;
use vmlan_engine::{Config, Engine, Instant, Io, PortCaps, PortId, Readiness, SockId, Token};
use vmlan_testkit::World;
use vmlan_testkit::addr;
use vmlan_testkit::null::{NullHost, NullLinks};
use vmlan_testkit::packet::{ACK, SYN, Tcp, TcpOption};
use vmlan_wire::{FrameBatch, Mac, Offload};

pub(crate) const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 15]);

/// What a socket becomes when something came.
const READABLE: Readiness =
    Readiness { readable: true, writable: false, closed: false, error: false };
const WRITABLE: Readiness =
    Readiness { readable: false, writable: true, closed: false, error: false };

/// How a port is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) mtu: u16,
    pub(crate) offload: bool,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [
        Self { mtu: 1500, offload: false },
        Self { mtu: 1500, offload: true },
        Self { mtu: 65_520, offload: false },
        Self { mtu: 65_520, offload: true },
    ];

    pub(crate) fn name(self) -> String {
        format!("{}/{}", self.mtu, if self.offload { "offload" } else { "plain" })
    }

    pub(crate) fn caps(self) -> PortCaps {
        let Self { mtu, offload } = self;
        PortCaps { checksum: offload, tso4: offload, tso6: offload, mtu }
    }
}

pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) host: NullHost,
    pub(crate) links: NullLinks,
    pub(crate) port: PortId,
    pub(crate) batch: FrameBatch,
    now: Instant,
}

/// A connection as the guest sees it.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) token: Token,
}

impl Rig {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut config: Config = World::config(1);
        config.mtu = kind.mtu;
        let now = Instant::from_micros(1_000_000);
        let mut engine = Engine::new(config, now);
        let port = engine.add_port(kind.caps()).expect("a port is free");
        Self {
            engine,
            host: NullHost::default(),
            links: NullLinks::default(),
            port,
            batch: FrameBatch::default(),
            now,
        }
    }

    pub(crate) fn gateway(&self) -> Mac {
        self.engine.config().gateway_mac
    }

    /// Lets a little time pass, and do what it does.
    pub(crate) fn tick(&mut self) {
        self.now = self.now + Duration::from_micros(50);
        if self.engine.next_timeout().is_some_and(|t| t <= self.now) {
            let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
            self.engine.handle_timeout(&mut io);
        }
    }

    /// Gives the batch to the engine.
    pub(crate) fn frames(&mut self) {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.handle_frames(self.port, &self.batch, &mut io);
    }

    pub(crate) fn one(&mut self, frame: &[u8]) {
        self.batch.clear();
        self.batch.push_copy(frame, Offload::NONE);
        self.frames();
    }

    pub(crate) fn readable(&mut self, token: Token, closed: bool) {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.handle_host(token, Readiness { closed, ..READABLE }, &mut io);
    }

    /// Tells the engine that its last connect succeeded.
    pub(crate) fn connected(&mut self) -> (Token, SockId) {
        let (token, sock) = self.host.connected.pop_back().expect("a connect");
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.handle_host(token, WRITABLE, &mut io);
        (token, sock)
    }

    /// An established connection.
    pub(crate) fn open(&mut self, port: u16) -> Conn {
        let (guest, remote) =
            (SocketAddr::new([192, 168, 5, 15].into(), port), addr("10.0.0.1:80"));
        let syn = Tcp::new(guest, remote, SYN)
            .seq(1000)
            .option(TcpOption::Mss(self.engine.config().mtu - 40))
            .option(TcpOption::WindowScale(7))
            .option(TcpOption::SackPermitted);
        let gateway = self.gateway();
        self.one(&syn.frame(GUEST, gateway));
        let (token, _) = self.connected();
        let conn = Conn { guest, remote, seq: 1001, ack: self.last_seq() + 1, token };
        self.one(&conn.segment(ACK).frame(GUEST, gateway));
        conn
    }

    /// The sequence number of the last segment to the guest.
    pub(crate) fn last_seq(&self) -> u32 {
        let bytes = self.links.last.get(38..42).expect("a TCP segment");
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }
}

impl Conn {
    pub(crate) fn segment(&self, flags: u8) -> Tcp {
        Tcp::new(self.guest, self.remote, flags).seq(self.seq).ack(self.ack)
    }
}

/// Measures `work` alone, not the `prepare` before each.
pub(crate) fn measure<T>(
    bencher: &mut Bencher<'_>,
    state: &mut T,
    mut prepare: impl FnMut(&mut T),
    mut work: impl FnMut(&mut T),
) {
    bencher.iter_custom(|count| {
        let mut total = Duration::ZERO;
        for _ in 0..count {
            prepare(state);
            let start = Clock::now();
            work(state);
            total += start.elapsed();
        }
        total
    });
}
