//! Segments to the guest.

use arrayvec::ArrayVec;
use vmlan_wire::{Mac, OutFrame};

use super::flow::{Ack, Cx, Flow, Recovery, State};
use super::segment::{ACK, FIN, Head, MAX_SACKS, Out, PSH, RST, SYN, sack_option, syn_options};
use super::seq::Seq;
use crate::net::Net;

/// Frames handed to a link at once.
const BURST: usize = 64;

/// Our receive window's scale: 4 MiB in steps of 128 bytes.
pub(super) const WINDOW_SHIFT: u8 = 7;

/// Largest TCP payload of a train: an IP packet ends at 65535 bytes.
const MAX_TRAIN: usize = 65_535 - 60;

/// A page of the guest's memory.
const PAGE: u16 = 4096;

impl Flow {
    /// Sends what the guest's window allows: lost segments first, then new ones, then FIN.
    pub(super) fn transmit(&mut self, cx: &mut Cx<'_, '_>) {
        if self.state != State::Open || self.blocked {
            return;
        }
        self.retransmit(cx);
        while !self.blocked {
            let unsent = self.unsent();
            let finishes = self.snd.eof && self.snd.fin.is_none();
            let window = (self.snd.una.plus(self.snd.wnd)).distance(self.snd.nxt);
            let room = usize::try_from(-i64::from(window)).unwrap_or(0);
            let mut len = unsent.min(room);
            if len < unsent && len < usize::from(self.snd.mss) {
                // Silly window (RFC 9293 section 3.8.6.2.1): a part of a segment only if it is at
                // least half of what the guest ever offered.
                let half = (self.snd.max_wnd / 2) as usize;
                if len < half.max(1) {
                    len = 0;
                }
            }
            if len == 0 && !(finishes && unsent == 0) {
                break;
            }
            let sent = self.send_data(cx, self.snd.nxt, len, finishes && len == unsent);
            if sent == 0 && len > 0 {
                break;
            }
            if len == 0 {
                break;
            }
        }
        self.arm(cx);
    }

    /// Bytes in the ring that were never sent.
    fn unsent(&self) -> usize {
        let in_flight = self.snd.una.until(self.snd.nxt) as usize;
        self.snd.ring.len().saturating_sub(in_flight)
    }

    /// Sets the retransmission or persist timer where one is needed.
    fn arm(&mut self, cx: &Cx<'_, '_>) {
        let waits = self.snd.una != self.snd.nxt || self.unsent() > 0;
        if waits && self.snd.timer.is_none() && !self.blocked {
            self.snd.timer = Some(cx.io.now + self.snd.rtt.timeout(self.snd.backoff));
        }
    }

    /// Sends `len` bytes from `seq` on in as many segments or trains as it takes, with FIN behind
    /// the last byte if told. Returns the bytes the link took and marks the flow blocked if those
    /// were not all.
    fn send_data(&mut self, cx: &mut Cx<'_, '_>, seq: Seq, len: usize, fin: bool) -> usize {
        let mss = usize::from(self.snd.mss);
        let caps = cx.net.port_of(self.mac).and_then(|p| cx.net.switch.caps(p)).unwrap_or_default();
        let tso = if self.key.guest.is_ipv6() { caps.tso6 } else { caps.tso4 };
        let step = if tso { (MAX_TRAIN / mss).max(1) * mss } else { mss };
        let window = self.next_window(cx);
        let base = self.snd.una.until(seq) as usize;
        let (mut sent, mut fin_sent) = (0, false);
        while sent < len || (fin && !fin_sent) {
            let mut heads = ArrayVec::<Head, BURST>::new();
            let mut frames = ArrayVec::<OutFrame<'_>, BURST>::new();
            let mut at = sent;
            while !heads.is_full() && (at < len || (fin && at == len && !fin_sent)) {
                let n = (len - at).min(step);
                let last = at + n == len;
                fin_sent = fin && last;
                let push = if last { PSH } else { 0 };
                let flags = ACK | if n > 0 { push } else { 0 } | if fin_sent { FIN } else { 0 };
                #[expect(clippy::cast_possible_truncation, reason = "below a ring's 4 MiB")]
                let out = Out {
                    seq: seq.plus(at as u32),
                    ack: self.rcv.nxt,
                    flags,
                    window,
                    options: &[],
                    payload_len: n,
                    gso: (n > mss).then_some(self.snd.mss),
                };
                heads.push(Head::build(&self.key, self.mac, cx.net.config.gateway_mac, &out));
                at += n;
                if at == len {
                    break;
                }
            }
            let mut offset = sent;
            for head in &heads {
                let n = (len - offset).min(step);
                let body = self.snd.ring.slices(base + offset, n);
                frames.push(OutFrame { head: head.bytes(), body, offload: head.offload });
                offset += n;
            }
            let taken = cx.net.transmit(cx.io, self.mac, &frames);
            let all = taken == frames.len();
            sent = (sent + taken * step).min(if all { at } else { len });
            if !all {
                fin_sent = false;
                self.blocked = true;
                break;
            }
        }
        self.sent(cx, seq, sent, fin_sent);
        sent
    }

    /// Notes what has gone out.
    fn sent(&mut self, cx: &Cx<'_, '_>, seq: Seq, len: usize, fin: bool) {
        #[expect(clippy::cast_possible_truncation, reason = "below a ring's 4 MiB")]
        let mut end = seq.plus(len as u32);
        if fin {
            self.snd.fin = Some(end);
            end = end.plus(1);
        }
        if len > 0 || fin {
            self.acked();
        }
        if self.snd.nxt.before(end) {
            if self.snd.rtt.timed.is_none() && self.snd.recovery.is_none() {
                self.snd.rtt.timed = Some((end, cx.io.now));
            }
            self.snd.nxt = end;
        }
    }

    /// Sends again what recovery finds missing.
    fn retransmit(&mut self, cx: &mut Cx<'_, '_>) {
        while let Some(mut recovery) = self.snd.recovery
            && recovery.credit > 0
            && !self.blocked
        {
            let Some((start, end)) = self.next_hole(&recovery) else { return };
            let mss = u32::from(self.snd.mss);
            let data_end = self.snd.fin.unwrap_or(self.snd.nxt);
            let data = start.until(end.min(data_end)).min(mss);
            let fin = self.snd.fin.is_some_and(|f| start.plus(data) == f && f.before(end));
            cx.net.stats.tcp_retransmits += 1;
            let sent = self.send_data(cx, start, data as usize, fin);
            recovery.next = start.plus(u32::try_from(sent).unwrap_or(0) + u32::from(fin));
            recovery.credit -= u32::from(!self.blocked);
            self.snd.recovery = Some(recovery);
            if sent < data as usize {
                return;
            }
        }
    }

    fn next_hole(&self, recovery: &Recovery) -> Option<(Seq, Seq)> {
        let snd = &self.snd;
        let from = recovery.next.max(snd.una);
        let limit = if recovery.timeout {
            recovery.until
        } else if snd.sacked.is_empty() {
            // Without SACK only the first segment is known to be missing.
            if from == snd.una {
                snd.una.plus(u32::from(snd.mss)).min(recovery.until)
            } else {
                from
            }
        } else {
            snd.sacked.as_slice().last().map_or(snd.una, |r| r.0)
        };
        snd.sacked.gap(from, limit)
    }

    /// After a timeout everything not SACKed is sent again, slowly at first. Towards a closed
    /// window one byte asks whether it has opened.
    pub(super) fn timed_out(&mut self, cx: &mut Cx<'_, '_>) {
        self.snd.backoff = self.snd.backoff.saturating_add(1);
        self.snd.rtt.timed = None;
        self.snd.timer = None;
        if self.snd.una == self.snd.nxt {
            if self.unsent() > 0 {
                self.send_data(cx, self.snd.nxt, 1, false);
            }
        } else {
            self.snd.dup_acks = 0;
            self.snd.recovery = Some(Recovery {
                until: self.snd.nxt,
                next: self.snd.una,
                began: cx.io.now,
                timeout: true,
                credit: 1,
            });
            self.retransmit(cx);
        }
        self.arm(cx);
    }

    /// A segment without data: acknowledgement, window, SACK blocks.
    pub(super) fn send_ack(&mut self, cx: &mut Cx<'_, '_>) {
        let blocks = if self.snd.sack && !self.rcv.ahead.is_empty() {
            self.rcv.ahead.newest_first::<MAX_SACKS>()
        } else {
            ArrayVec::new()
        };
        let (options, len) = sack_option(&blocks);
        let options = options.get(..len).unwrap_or(&[]);
        let out = Out {
            seq: self.snd.nxt,
            ack: self.rcv.nxt,
            flags: ACK,
            window: self.next_window(cx),
            options,
            payload_len: 0,
            gso: None,
        };
        self.emit(cx, &out);
        self.acked();
    }

    /// A keepalive: an old sequence number that the guest must answer (RFC 9293 section 3.8.4).
    pub(super) fn send_keepalive(&mut self, cx: &mut Cx<'_, '_>) {
        let out = Out {
            seq: self.snd.una.plus(u32::MAX),
            ack: self.rcv.nxt,
            flags: ACK,
            window: self.next_window(cx),
            options: &[],
            payload_len: 0,
            gso: None,
        };
        self.emit(cx, &out);
    }

    /// Our SYN, or SYN-ACK when the guest's has come.
    pub(super) fn send_syn(&mut self, cx: &mut Cx<'_, '_>) {
        let answers = self.state == State::SynReceived;
        let mss = own_mss(cx.net, self.mac, self.key.guest.is_ipv6());
        let scale = (!answers || self.rcv.shift > 0).then_some(WINDOW_SHIFT);
        let sack = !answers || self.snd.sack;
        let (options, len) = syn_options(mss, scale, sack);
        // The window of a SYN is never scaled.
        let window = u16::try_from(self.window_room(cx)).unwrap_or(u16::MAX);
        self.rcv.edge = self.rcv.edge.max(self.rcv.nxt.plus(u32::from(window)));
        let out = Out {
            seq: self.snd.una,
            ack: self.rcv.nxt,
            flags: SYN | if answers { ACK } else { 0 },
            window,
            options: options.get(..len).unwrap_or(&[]),
            payload_len: 0,
            gso: None,
        };
        self.snd.nxt = self.snd.una.plus(1);
        self.emit(cx, &out);
        self.snd.timer = Some(cx.io.now + self.snd.rtt.timeout(self.snd.backoff));
    }

    /// A reset that the guest will believe.
    pub(super) fn send_rst(&mut self, cx: &mut Cx<'_, '_>) {
        let unanswered = matches!(self.state, State::Dialing);
        let mut seq = if unanswered { Seq(0) } else { self.snd.nxt };
        if self.state == State::Open {
            // A closed window kept a probe's byte out, and lets nothing in that lies behind it.
            seq = seq.min(self.snd.una.plus(self.snd.wnd));
        }
        let out = Out {
            seq,
            ack: self.rcv.nxt,
            flags: RST | ACK,
            window: 0,
            options: &[],
            payload_len: 0,
            gso: None,
        };
        if self.state != State::Resolving {
            self.emit(cx, &out);
        }
    }

    fn emit(&mut self, cx: &mut Cx<'_, '_>, out: &Out<'_>) {
        let head = Head::build(&self.key, self.mac, cx.net.config.gateway_mac, out);
        // A segment without data that finds the link full is lost as on any wire; what it said
        // comes again with a timer or the next segment.
        cx.net.transmit(cx.io, self.mac, &[OutFrame::whole(head.bytes(), head.offload)]);
    }

    /// The window field of the next segment; moves the advertised edge, and never back, for which
    /// a window that closes is rounded up as long as a ring could hold it. (RFC 7323 section 2.4 has
    /// guests bear a retreat by less than a step of the scale.)
    fn next_window(&mut self, cx: &Cx<'_, '_>) -> u16 {
        let room = self.window_room(cx).min(usize::from(u16::MAX) << self.rcv.shift);
        let shown = self.rcv.nxt.until(self.rcv.edge) as usize;
        let up = shown.next_multiple_of(1 << self.rcv.shift);
        let kept = if up <= self.largest_room() { up } else { shown };
        let window = u16::try_from(room.max(kept) >> self.rcv.shift).unwrap_or(u16::MAX);
        let edge = self.rcv.nxt.plus(u32::from(window) << self.rcv.shift);
        self.rcv.edge = self.rcv.edge.max(edge);
        window
    }

    /// An acknowledgement has gone out.
    fn acked(&mut self) {
        self.rcv.ack = Ack::None;
        self.rcv.ack_at = None;
        self.rcv.unacked = 0;
    }
}

/// The largest segment between a guest and vmlan: what fits the network's MTU. A guest that makes its
/// segments itself copies whole pages faster than what lies across them.
pub(super) fn own_mss(net: &Net, guest: Mac, v6: bool) -> u16 {
    let most = net.config.mtu - if v6 { 60 } else { 40 };
    if net.has_no_offload(guest) && most >= 8 * PAGE { most - most % PAGE } else { most }
}
