//! One TCP connection: the guest's half is ended here (RFC 9293), the other half is a stream socket
//! of the host. Bytes pass through; what is kept is only what one side has not taken yet.
//!
//! Guest to host, in-order data goes from the received frame straight to the socket. What the
//! socket does not take is held, and the window advertised never exceeds what can be held. Host to
//! guest, the socket is read into the ring of unacknowledged bytes, from which segments are sent
//! without another copy. A flow without data in transit holds no buffer at all.

use std::time::Duration;

use super::ranges::Ranges;
use super::ring::{Pool, Ring};
use super::seq::Seq;
use crate::flow::Key;
use crate::io::{Close, Failure, Io, PortId, SockId};
use crate::net::Net;
use crate::time::Instant;
use vmlan_wire::Mac;

/// What the methods of a flow work with besides the flow.
pub(super) struct Cx<'a, 'io> {
    pub(super) net: &'a mut Net,
    pub(super) io: &'a mut Io<'io>,
    pub(super) pool: &'a mut Pool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest's SYN has come and the host connects; nothing has been answered. Legal: refuse,
    /// accept. Repeated SYNs are ignored.
    Dialing,
    /// A connection came in on a forward and the guest's MAC address is being asked for.
    Resolving,
    /// SYN sent to the guest.
    SynSent,
    /// SYN-ACK sent to the guest, which may send data with its ACK.
    SynReceived,
    /// Data flows. Each direction ends by itself: `rcv.fin` and `rcv.shut` tell the guest's,
    /// `snd.eof` and `snd.fin` the host's.
    Open,
    /// To be removed when control returns to the table. No field is read any more.
    Dead,
}

/// Why an acknowledgement is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    None,
    /// With the next segment, or soon.
    Delayed,
    Now,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: Key,
    pub(super) mac: Mac,
    pub(super) state: State,
    /// `None` before the table has stored it, before a dial gets it, and once both directions of
    /// the host side ended.
    pub(super) sock: Option<SockId>,
    /// The guest that it counts against and its place among that one's flows; forwards' count
    /// against nobody.
    pub(super) owner: Option<(PortId, usize)>,
    /// The socket's state as the last event and call left it.
    pub(super) can_read: bool,
    pub(super) can_write: bool,
    pub(super) host_closed: bool,
    /// The host's connection is lost: the guest's is to be reset.
    pub(super) host_lost: bool,
    /// On the table's list of flows to settle.
    pub(super) dirty: bool,
    /// The port was full: nothing is sent until it has room.
    pub(super) blocked: bool,
    /// On the table's list of flows whose port was full.
    pub(super) waiting: bool,
    pub(super) rcv: Receive,
    pub(super) snd: Send,
    pub(super) last_heard: Instant,
    pub(super) keepalives: u8,
    /// When the guest counts as gone, once its port is.
    pub(super) orphaned: Option<Instant>,
    /// IP TTL that the SYN came with; what an ICMP error quotes.
    pub(super) ttl: u8,
    /// Of a dial whose outcome has not been told: what has failed if the flow ends now.
    pub(super) dial: Option<Failure>,
}

/// Guest to host.
#[derive(Debug)]
pub(super) struct Receive {
    /// Next byte expected.
    pub(super) nxt: Seq,
    /// Right edge of the window as advertised; never moves left.
    pub(super) edge: Seq,
    pub(super) shift: u8,
    /// Bytes accepted that the socket has not taken; data ahead of a gap lies beyond its length.
    pub(super) held: Ring,
    pub(super) ahead: Ranges,
    /// Bytes before `nxt` that are still in the batch of frames, not held and not yet sent. Zero
    /// whenever control returns to the loop.
    pub(super) pending: u32,
    /// Sequence number of the guest's FIN, once seen.
    pub(super) fin: Option<Seq>,
    /// FIN was passed on to the host.
    pub(super) shut: bool,
    pub(super) ack: Ack,
    /// When a delayed acknowledgement is due.
    pub(super) ack_at: Option<Instant>,
    /// Bytes accepted since the last acknowledgement.
    pub(super) unacked: u32,
    /// The guest has to compute its checksums itself: its link has no offload for them.
    pub(super) summed: bool,
    /// Bytes accepted since the host's socket was last full, or 2^32 - 1.
    pub(super) flowing: u32,
}

/// Host to guest.
#[derive(Debug)]
pub(super) struct Send {
    /// First byte not acknowledged: the ring's head.
    pub(super) una: Seq,
    /// Next byte to send for the first time.
    pub(super) nxt: Seq,
    /// The guest's window, scaled, counted from `una`.
    pub(super) wnd: u32,
    pub(super) max_wnd: u32,
    pub(super) shift: u8,
    pub(super) mss: u16,
    pub(super) sack: bool,
    /// From `una` on: in flight first, then unsent.
    pub(super) ring: Ring,
    /// The host sent FIN; it follows the ring's last byte.
    pub(super) eof: bool,
    /// Sequence number of our FIN, once sent.
    pub(super) fin: Option<Seq>,
    pub(super) sacked: Ranges,
    pub(super) dup_acks: u8,
    pub(super) recovery: Option<Recovery>,
    /// Consecutive timeouts: doubles the next one.
    pub(super) backoff: u8,
    pub(super) timer: Option<Instant>,
    /// The first timeout since the guest last acknowledged anything new.
    pub(super) stalled: Option<Instant>,
    pub(super) rtt: Rtt,
}

/// Retransmission of what was lost, until everything sent before it began is acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recovery {
    pub(super) until: Seq,
    /// Where the next hole is looked for.
    pub(super) next: Seq,
    pub(super) began: Instant,
    /// After a timeout everything not SACKed counts as lost, not only what lies before SACKed data.
    pub(super) timeout: bool,
    /// Segments that may be sent now; each acknowledgement brings more after a timeout.
    pub(super) credit: u32,
}

/// Round-trip estimate (RFC 6298); one segment is timed at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rtt {
    pub(super) smooth: Option<Duration>,
    pub(super) variance: Duration,
    /// The byte whose acknowledgement is awaited and when it was sent.
    pub(super) timed: Option<(Seq, Instant)>,
}

/// Lower bound of the retransmission timeout: above what guests delay acknowledgements.
const MIN_RTO: Duration = Duration::from_millis(100);
const MAX_RTO: Duration = Duration::from_secs(60);
const INITIAL_RTO: Duration = Duration::from_millis(300);

impl Rtt {
    pub(super) fn sample(&mut self, rtt: Duration) {
        match self.smooth {
            None => {
                self.variance = rtt / 2;
                self.smooth = Some(rtt);
            }
            Some(smooth) => {
                self.variance = self.variance * 3 / 4 + smooth.abs_diff(rtt) / 4;
                self.smooth = Some(smooth * 7 / 8 + rtt / 8);
            }
        }
    }

    pub(super) fn timeout(&self, backoff: u8) -> Duration {
        let base = self.smooth.map_or(INITIAL_RTO, |s| s + self.variance * 4);
        (base.max(MIN_RTO) * (1 << backoff.min(10))).min(MAX_RTO)
    }
}

/// A new flow's first values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) key: Key,
    pub(super) mac: Mac,
    pub(super) iss: Seq,
    pub(super) now: Instant,
    pub(super) inbound: bool,
}

impl Flow {
    pub(super) fn new(start: Start, state: State) -> Self {
        Self {
            key: start.key,
            mac: start.mac,
            state,
            sock: None,
            owner: None,
            can_read: start.inbound,
            can_write: start.inbound,
            host_closed: false,
            host_lost: false,
            dirty: false,
            blocked: false,
            waiting: false,
            rcv: Receive {
                nxt: Seq(0),
                edge: Seq(0),
                shift: 0,
                held: Ring::default(),
                ahead: Ranges::default(),
                pending: 0,
                fin: None,
                shut: false,
                ack: Ack::None,
                ack_at: None,
                unacked: 0,
                summed: false,
                flowing: 0,
            },
            snd: Send {
                una: start.iss,
                nxt: start.iss,
                wnd: 0,
                max_wnd: 0,
                shift: 0,
                mss: 536,
                sack: false,
                ring: Ring::default(),
                eof: false,
                fin: None,
                sacked: Ranges::default(),
                dup_acks: 0,
                recovery: None,
                backoff: 0,
                timer: None,
                stalled: None,
                rtt: Rtt::default(),
            },
            last_heard: start.now,
            keepalives: 0,
            orphaned: None,
            ttl: 64,
            dial: None,
        }
    }

    /// Ends the flow: the host's socket is closed as told and every buffer given back. The guest
    /// is told nothing here.
    pub(super) fn die(&mut self, cx: &mut Cx<'_, '_>, how: Close) {
        if let Some(sock) = self.sock.take() {
            cx.io.host.close(sock, how);
        }
        self.rcv.held.release(cx.pool);
        self.snd.ring.release(cx.pool);
        self.state = State::Dead;
    }

    /// Both directions have ended and all is delivered on both sides.
    pub(super) fn is_complete(&self) -> bool {
        let ours = self.snd.fin.is_some_and(|fin| fin.before(self.snd.una));
        ours && self.rcv.shut && self.rcv.held.is_empty()
    }

    /// Our FIN was acknowledged before the guest sent its own: the guest's last segment may be
    /// repeated, and somebody has to answer (TIME-WAIT).
    pub(super) fn has_guest_fin(&self) -> bool {
        self.rcv.fin.is_some_and(|fin| fin.before(self.rcv.nxt))
    }

    /// The guest's stream has not been passed on to its end.
    pub(super) fn is_sending(&self) -> bool {
        matches!(self.state, State::SynReceived | State::Open)
            && self.sock.is_some()
            && !self.rcv.shut
    }

    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::Dialing => "dialing",
            State::Resolving => "resolving",
            State::SynSent => "syn-sent",
            State::SynReceived => "syn-received",
            State::Open => match (self.has_guest_fin(), self.snd.fin.is_some()) {
                (false, false) => "established",
                (true, false) => "half-closed-by-guest",
                (false, true) => "half-closed-by-host",
                (true, true) => "closing",
            },
            State::Dead => "closed",
        }
    }
}
