//! Between the flow and the host's socket: what is held goes out, what arrives is pulled in as far
//! as the guest's window and the ring allow. [`Flow::settle`] does all that an event made possible.

use std::io::IoSlice;
use std::time::Duration;

use super::flow::{Ack, Cx, Flow, State};
use super::ring::MAX_RING;
use crate::gateway::icmp::{self, Unreachable};
use crate::io::{Close, Failure, Received, Sent};
use crate::net::{IpHeader, write_headers};
use crate::packet::ETHERNET_HEADER;
use smoltcp::wire::IpProtocol;

/// Bytes read from a socket at once: more calls cost, more bytes fall out of the cache.
const READ: usize = 256 << 10;

/// The ring's size at the first read of a flow, and of one whose reads fill it.
const FIRST_RING: usize = 64 << 10;

/// How long an acknowledgement may wait for data to carry it. Longer than the kernel's tick, so that
/// arming the poll's timeout seldom has to program the processor's timer.
const DELAYED_ACK: Duration = Duration::from_millis(20);

/// The largest ring that is sent from.
const MAX_SEND_RING: usize = 1 << 20;

/// The window that flows begin with, and that is enough where checksums are offloaded.
const WINDOW: usize = 1 << 20;

/// The window of a flow whose socket takes all that comes. A guest that never waits for a window
/// sends what its application has just written, and computes checksums over bytes that are still in
/// the cache.
const MAX_WINDOW: usize = MAX_RING - (64 << 10);

/// Bytes that a socket has to take without being full for the largest window.
const FREE_FLOW: u32 = 4 << 20;

/// The window of a flow while memory is scarce.
const SMALL_WINDOW: usize = 64 << 10;

impl Flow {
    /// Does everything that is possible now. Called once after each batch, event or timeout that
    /// touched the flow.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_, '_>) {
        if self.state == State::Open && !self.host_lost {
            self.deliver(cx);
        }
        if self.state == State::Open {
            self.pull(cx);
        }
        if self.state != State::Open {
            return;
        }
        if self.host_lost && !self.blocked {
            self.send_rst(cx);
            return self.die(cx, Close::Normal);
        }
        if self.rcv.ack == Ack::Now {
            self.send_ack(cx);
        } else if self.rcv.ack == Ack::Delayed && self.rcv.ack_at.is_none() {
            self.rcv.ack_at = Some(cx.io.now + DELAYED_ACK);
        }
        if self.is_complete() {
            self.die(cx, Close::Normal);
        }
    }

    /// Held bytes to the socket, then the guest's FIN.
    fn deliver(&mut self, cx: &mut Cx<'_, '_>) {
        let Some(sock) = self.sock else { return };
        if !self.rcv.held.is_empty() && self.can_write {
            while !self.rcv.held.is_empty() {
                let [one, two] = self.rcv.held.slices(0, self.rcv.held.len());
                let offered = one.len() + two.len();
                match cx.io.host.send(sock, &[IoSlice::new(one), IoSlice::new(two)]) {
                    Sent::Data(n) => {
                        self.rcv.held.consume(n);
                        if n < offered {
                            self.stop_writing();
                            break;
                        }
                    }
                    Sent::Blocked => {
                        self.stop_writing();
                        break;
                    }
                    Sent::Failed(_) => return self.host_failed(),
                }
            }
            if self.rcv.held.is_empty() && self.rcv.ahead.is_empty() {
                self.rcv.held.release(cx.pool);
            }
            self.offer_window(cx);
        }
        if self.has_guest_fin() && self.rcv.held.is_empty() && !self.rcv.shut {
            self.rcv.shut = true;
            if self.snd.eof {
                // Both directions of the socket are done: nothing more can come from it.
                cx.io.host.close(sock, Close::Normal);
                self.sock = None;
            } else {
                cx.io.host.shutdown_write(sock);
            }
        }
    }

    /// Tells the guest of a window that has opened by enough to be worth a segment.
    fn offer_window(&mut self, cx: &Cx<'_, '_>) {
        let open = self.window_room(cx);
        let shown = self.rcv.nxt.until(self.rcv.edge) as usize;
        let step = (2 * usize::from(self.snd.mss)).min(self.window_limit(cx) / 4);
        if open >= shown + step || (shown == 0 && open > 0) {
            self.rcv.ack = Ack::Now;
        }
    }

    /// Bytes that may be accepted beyond `rcv.nxt`.
    pub(super) fn window_room(&self, cx: &Cx<'_, '_>) -> usize {
        self.window_limit(cx).saturating_sub(self.rcv.held.len() + self.rcv.pending as usize)
    }

    /// The largest window that may be offered now. Its slack below a ring's size is what rounding
    /// up may add to a window that closes.
    fn window_limit(&self, cx: &Cx<'_, '_>) -> usize {
        match self.rcv.flowing {
            _ if cx.pool.is_scarce() => SMALL_WINDOW,
            FREE_FLOW.. if self.rcv.summed => MAX_WINDOW,
            _ => WINDOW,
        }
    }

    /// The host's socket is full.
    pub(super) fn stop_writing(&mut self) {
        self.can_write = false;
        self.rcv.flowing = 0;
    }

    /// Bytes beyond `rcv.nxt` that a ring could still hold.
    pub(super) fn largest_room(&self) -> usize {
        MAX_RING.saturating_sub(self.rcv.held.len() + self.rcv.pending as usize)
    }

    /// Reads the socket into the ring and sends, until one of them is exhausted.
    fn pull(&mut self, cx: &mut Cx<'_, '_>) {
        loop {
            let pulled = self.pull_once(cx);
            if self.state != State::Open {
                return;
            }
            self.transmit(cx);
            if !pulled || self.blocked {
                return;
            }
        }
    }

    /// One read; true if another may bring more.
    fn pull_once(&mut self, cx: &mut Cx<'_, '_>) -> bool {
        let (Some(sock), true, false) = (self.sock, self.can_read, self.snd.eof) else {
            return false;
        };
        let ring = &mut self.snd.ring;
        if ring.room() < ring.capacity() / 4 || ring.capacity() == 0 {
            // A ring that fills up is the bottleneck, as long as the guest's window is not.
            let wanted = if ring.capacity() == 0 { FIRST_RING } else { ring.capacity() * 4 };
            let useful = ring.capacity() == 0 || ring.len() < self.snd.max_wnd as usize;
            if useful && (ring.capacity() == 0 || cx.pool.fits_cache()) && wanted <= MAX_SEND_RING {
                ring.grow(wanted, cx.pool);
            }
        }
        // Not for each acknowledgement: what is in flight brings more of them.
        if ring.room() < ring.capacity() / 4 || ring.capacity() == 0 {
            return false;
        }
        let offered = ring.room().min(READ);
        let [mut one, two] = ring.spare(READ);
        let received = if two.is_empty() {
            cx.io.host.recv(sock, std::slice::from_mut(&mut one))
        } else {
            cx.io.host.recv(sock, &mut [one, two])
        };
        match received {
            Received::Data(n) => {
                ring.commit(n);
                if n < offered && !self.host_closed {
                    self.can_read = false;
                }
                true
            }
            Received::Blocked => {
                self.can_read = false;
                if ring.is_empty() {
                    ring.release(cx.pool);
                }
                false
            }
            // Its error was taken before its data.
            Received::Eof if self.host_lost => {
                self.can_read = false;
                false
            }
            Received::Eof => {
                self.snd.eof = true;
                self.can_read = false;
                if self.snd.ring.is_empty() {
                    self.snd.ring.release(cx.pool);
                }
                if self.rcv.shut {
                    cx.io.host.close(sock, Close::Normal);
                    self.sock = None;
                }
                true
            }
            Received::Failed(_) => {
                self.host_failed();
                self.can_read = false;
                false
            }
        }
    }

    /// The host's connection is lost after it was made. [`Flow::settle`] passes on what came before
    /// as far as the guest takes it at once, and resets the guest's connection.
    pub(super) fn host_failed(&mut self) {
        self.host_lost = true;
        (self.can_read, self.can_write) = (true, false);
    }

    /// The host could not connect: the guest is told what is so. Refused is a reset, unreachable
    /// an ICMP error, timed out is silence.
    pub(super) fn refuse(&mut self, cx: &mut Cx<'_, '_>, failure: Failure) {
        match failure {
            Failure::TimedOut => {}
            Failure::NetUnreachable
            | Failure::HostUnreachable
            | Failure::Prohibited
            | Failure::Unsupported => self.send_unreachable(cx, failure.into()),
            Failure::Refused
            | Failure::Reset
            | Failure::TooBig
            | Failure::Exhausted
            | Failure::Other => self.send_rst(cx),
        }
        self.die(cx, Close::Normal);
    }

    /// ICMP "unreachable" about the guest's SYN, quoting it as far as RFC 792 asks.
    fn send_unreachable(&mut self, cx: &mut Cx<'_, '_>, why: Unreachable) {
        let mut quote = [0; 14 + 40 + 20];
        let mut ip = IpHeader::new(self.key.guest.ip(), self.key.remote.ip(), IpProtocol::Tcp);
        (ip.dont_fragment, ip.ttl) = (true, self.ttl);
        write_headers(&mut quote, self.mac, self.mac, &ip, 0, 20);
        let start = ETHERNET_HEADER + ip.len();
        if let Some(tcp) = quote.get_mut(start..start + 8) {
            tcp[..2].copy_from_slice(&self.key.guest.port().to_be_bytes());
            tcp[2..4].copy_from_slice(&self.key.remote.port().to_be_bytes());
            // The SYN's own number, one before the first byte.
            tcp[4..].copy_from_slice(&self.rcv.nxt.plus(u32::MAX).0.to_be_bytes());
        }
        let quote = quote.get(ETHERNET_HEADER..start + 20).unwrap_or(&[]);
        let (kind, code) = why.code(ip.src.is_ipv6());
        let offender = icmp::own_address(&cx.net.config, ip.dst);
        let guest = self.key.guest.ip();
        icmp::relayed(cx.net, cx.io, self.mac, guest, offender, (kind, code, 0), quote);
    }
}
