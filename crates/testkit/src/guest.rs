//! A simulated guest: smoltcp's TCP/IP stack on one port of the switch, so that the engine talks to
//! an implementation of TCP that it shares no code with.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use vmlan_engine::{Instant, PortId};

use crate::pattern::Pattern;

/// Bytes in the socket buffers of a connection unless told otherwise.
const BUFFER: usize = 256 << 10;

/// What a guest's application does with a connection.
#[derive(Debug)]
pub struct App {
    send: Pattern,
    left: u64,
    /// Bytes handed to the stack.
    pub sent: u64,
    /// FIN once everything is sent.
    pub close_after: bool,
    /// FIN once the peer's FIN has come.
    pub close_on_eof: bool,
    expect: Option<Pattern>,
    pub received: u64,
    /// Where what came first differs from what was expected.
    pub mismatch: Option<u64>,
    /// Stops reading after so many bytes.
    pub read_limit: u64,
    /// How the peer ended its direction.
    pub end: Option<End>,
    pub established: bool,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

/// Names a connection of a guest.
pub type Socket = SocketHandle;

/// A guest with one network card.
pub struct SimGuest {
    pub port: PortId,
    pub mac: EthernetAddress,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    iface: Box<Interface>,
    pub sockets: SocketSet<'static>,
    device: Device,
    apps: BTreeMap<SocketHandle, App>,
    next_port: u16,
    /// Something was done to a socket since the last poll.
    dirty: bool,
}

impl std::fmt::Debug for SimGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimGuest").field("port", &self.port).field("apps", &self.apps).finish()
    }
}

impl SimGuest {
    pub fn new(
        port: PortId,
        number: u8,
        mtu: u16,
        (ipv4, prefix, gateway4): (Ipv4Addr, u8, Ipv4Addr),
        (ipv6, gateway6): (Ipv6Addr, Ipv6Addr),
        now: Instant,
    ) -> Self {
        let mac = EthernetAddress([0x52, 0x54, 0, 0, 0, number]);
        let mut device = Device { mtu, rx: VecDeque::new(), tx: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = u64::from(number) << 32 | 0x5eed;
        let mut iface = Interface::new(config, &mut device, guest_time(now));
        iface.update_ip_addrs(|addresses| {
            for cidr in [IpCidr::new(ipv4.into(), prefix), IpCidr::new(ipv6.into(), 64)] {
                addresses.push(cidr).expect("there is room for two addresses");
            }
        });
        let routes = iface.routes_mut();
        routes.add_default_ipv4_route(gateway4).expect("there is room for two routes");
        routes.add_default_ipv6_route(gateway6).expect("there is room for two routes");
        Self {
            port,
            mac,
            ipv4,
            ipv6,
            iface: Box::new(iface),
            sockets: SocketSet::new(Vec::new()),
            device,
            apps: BTreeMap::new(),
            next_port: 49_152,
            dirty: true,
        }
    }

    /// Starts to connect; the application reads and discards until told otherwise, and closes when
    /// the peer does.
    pub fn connect(&mut self, to: SocketAddr) -> Socket {
        self.connect_with(to, BUFFER, BUFFER)
    }

    /// [`SimGuest::connect`] with sizes for the receive and send buffers.
    pub fn connect_with(&mut self, to: SocketAddr, receive: usize, send: usize) -> Socket {
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        let local = self.next_port;
        let handle = self.sockets.add(tcp_socket(receive, send));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.iface.context(), to, local).expect("a fresh socket connects");
        self.start(handle)
    }

    /// Listens for one connection.
    pub fn listen(&mut self, port: u16) -> Socket {
        self.listen_with(port, BUFFER, BUFFER)
    }

    pub fn listen_with(&mut self, port: u16, receive: usize, send: usize) -> Socket {
        let handle = self.sockets.add(tcp_socket(receive, send));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.listen(port).expect("a fresh socket listens");
        self.start(handle)
    }

    fn start(&mut self, handle: Socket) -> Socket {
        self.dirty = true;
        self.apps.insert(
            handle,
            App {
                send: Pattern(0),
                left: 0,
                sent: 0,
                close_after: false,
                close_on_eof: true,
                expect: None,
                received: 0,
                mismatch: None,
                read_limit: u64::MAX,
                end: None,
                established: false,
                closed: false,
            },
        );
        handle
    }

    /// Sends so much of a pattern and then FIN.
    pub fn send(&mut self, socket: Socket, pattern: Pattern, bytes: u64) {
        let app = self.app_mut(socket);
        (app.send, app.left, app.close_after) = (pattern, bytes, true);
    }

    /// Sends so much of a pattern and leaves the connection open.
    pub fn send_open(&mut self, socket: Socket, pattern: Pattern, bytes: u64) {
        let app = self.app_mut(socket);
        (app.send, app.left, app.close_after) = (pattern, bytes, false);
    }

    /// Verifies what comes.
    pub fn expect(&mut self, socket: Socket, pattern: Pattern) {
        self.app_mut(socket).expect = Some(pattern);
    }

    pub fn app(&self, socket: Socket) -> &App {
        self.apps.get(&socket).expect("the socket has an application")
    }

    pub fn app_mut(&mut self, socket: Socket) -> &mut App {
        self.dirty = true;
        self.apps.get_mut(&socket).expect("the socket has an application")
    }

    pub fn tcp(&mut self, socket: Socket) -> &mut tcp::Socket<'static> {
        self.dirty = true;
        self.sockets.get_mut(socket)
    }

    pub fn state(&self, socket: Socket) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(socket).state()
    }

    /// Sends RST.
    pub fn abort(&mut self, socket: Socket) {
        self.tcp(socket).abort();
    }

    /// Sends FIN.
    pub fn close(&mut self, socket: Socket) {
        self.tcp(socket).close();
    }

    /// Forgets a connection.
    pub fn remove(&mut self, socket: Socket) {
        self.sockets.remove(socket);
        self.apps.remove(&socket);
    }

    /// A UDP socket on a port.
    pub fn udp(&mut self, port: u16) -> Socket {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a fresh socket binds");
        self.sockets.add(socket)
    }

    pub fn udp_send(&mut self, socket: Socket, to: SocketAddr, data: &[u8]) {
        self.dirty = true;
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(socket);
        socket.send_slice(data, to).expect("there is room for a datagram");
    }

    /// Takes a datagram that came, with its sender.
    pub fn udp_recv(&mut self, socket: Socket) -> Option<(SocketAddr, Vec<u8>)> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(socket);
        let (data, meta) = socket.recv().ok()?;
        let from = SocketAddr::new(IpAddr::from(meta.endpoint.addr), meta.endpoint.port);
        Some((from, data.to_vec()))
    }

    /// A frame for the guest.
    pub fn receive(&mut self, frame: Vec<u8>) {
        self.device.rx.push_back(frame);
        self.dirty = true;
    }

    /// Lets stack and applications work. What they send is fetched by [`SimGuest::transmitted`].
    pub fn poll(&mut self, now: Instant) {
        self.dirty = false;
        let now = guest_time(now);
        loop {
            self.iface.poll(now, &mut self.device, &mut self.sockets);
            let mut busy = false;
            for (handle, app) in &mut self.apps {
                busy |= app.work(self.sockets.get_mut(*handle));
            }
            if !busy {
                return;
            }
        }
    }

    pub fn transmitted(&mut self) -> Option<Vec<u8>> {
        self.device.tx.pop_front()
    }

    /// When to poll next.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        if self.dirty {
            return Some(now);
        }
        let at = self.iface.poll_at(guest_time(now), &self.sockets)?;
        Some(Instant::from_micros(at.total_micros().max(0) as u64).max(now))
    }
}

impl App {
    /// Moves bytes between application and socket; true if the stack has something to do now.
    fn work(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut busy = false;
        self.established |= socket.may_send();
        while self.left > 0 && socket.can_send() {
            let (left, at, pattern) = (self.left, self.sent, self.send);
            let fill = |room: &mut [u8]| {
                let n = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                pattern.fill(at, &mut room[..n]);
                (n, n)
            };
            let Ok(n) = socket.send(fill) else { break };
            self.left -= n as u64;
            self.sent += n as u64;
            busy = true;
        }
        while self.received < self.read_limit && socket.can_recv() {
            let limit = usize::try_from(self.read_limit - self.received).unwrap_or(usize::MAX);
            let (expect, at) = (self.expect, self.received);
            let check = |data: &mut [u8]| {
                let data = &data[..data.len().min(limit)];
                let wrong = expect.and_then(|p| p.check(at, data).err());
                (data.len(), (data.len(), wrong))
            };
            let Ok((n, wrong)) = socket.recv(check) else { break };
            self.received += n as u64;
            self.mismatch = self.mismatch.or(wrong);
            busy = true;
        }
        if self.end.is_none() && self.established && !socket.may_recv() && !socket.can_recv() {
            self.end = match socket.recv(|_| (0, ())) {
                Err(tcp::RecvError::Finished) => Some(End::Fin),
                _ if socket.state() == tcp::State::Closed => Some(End::Reset),
                _ => None,
            };
        }
        let done = self.close_after && self.left == 0 && self.established
            || self.close_on_eof && self.end == Some(End::Fin) && self.left == 0;
        if done && !self.closed {
            self.closed = true;
            socket.close();
            busy = true;
        }
        busy
    }
}

fn tcp_socket(receive: usize, send: usize) -> tcp::Socket<'static> {
    let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
    tcp::Socket::new(buffer(receive), buffer(send))
}

fn guest_time(now: Instant) -> GuestInstant {
    GuestInstant::from_micros(i64::try_from(now.micros()).unwrap_or(i64::MAX))
}

/// The card: frames that came, and frames to go.
struct Device {
    mtu: u16,
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
}

struct RxToken(Vec<u8>);

struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::Device for Device {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: GuestInstant) -> Option<(RxToken, TxToken<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((RxToken(frame), TxToken(&mut self.tx)))
    }

    fn transmit(&mut self, _now: GuestInstant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = usize::from(self.mtu) + 14;
        caps
    }
}

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}
