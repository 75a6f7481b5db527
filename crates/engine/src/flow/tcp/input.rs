//! Segments from the guest on a flow that exists: acknowledgement, window, data, FIN, RST
//! (RFC 9293 section 3.10.7, RFC 5961, RFC 6675 simplified for a link inside one machine).

use std::time::Duration;

use super::flow::{Ack, Cx, Flow, Recovery, State};
use super::segment::{ACK, FIN, RST, SYN, Segment};
use super::seq::Seq;
use crate::io::{Close, Failure, Sent};
use crate::stats::Drop;
use std::io::IoSlice;

/// Duplicate acknowledgements that mean loss rather than reordering.
const DUP_ACKS: u8 = 3;

/// A hole that was sent again and not filled within this counts as lost again.
const MIN_REPEAT: Duration = Duration::from_millis(10);

impl Flow {
    /// A segment of any kind in any state but `Dialing` and `Resolving`, in which nothing but a
    /// RST is listened to.
    pub(super) fn input(&mut self, cx: &mut Cx<'_, '_>, seg: &Segment<'_>) {
        self.heard(cx);
        if seg.has(RST) {
            return self.reset_by_guest(cx, seg);
        }
        match self.state {
            State::Dialing | State::Resolving | State::Dead => return,
            State::SynSent => return self.syn_sent(cx, seg),
            State::SynReceived if seg.has(SYN) => {
                // Our SYN-ACK was lost.
                return self.send_syn(cx);
            }
            State::SynReceived | State::Open => {}
        }
        if seg.has(SYN) || !seg.has(ACK) {
            self.rcv.ack = Ack::Now;
            return cx.net.stats.drop(Drop::Window);
        }
        if !self.acknowledge(cx, seg) {
            return;
        }
        self.accept(cx, seg.seq, seg.payload);
        if seg.has(FIN) {
            self.finish(seg.seq.plus(seg.len() - 1));
        }
    }

    pub(super) fn heard(&mut self, cx: &Cx<'_, '_>) {
        self.last_heard = cx.io.now;
        self.keepalives = 0;
        self.orphaned = None;
    }

    /// RFC 5961 section 3.2: only the exact number resets; one in the window is questioned.
    fn reset_by_guest(&mut self, cx: &mut Cx<'_, '_>, seg: &Segment<'_>) {
        let exact = match self.state {
            State::SynSent => seg.has(ACK) && seg.ack == self.snd.nxt,
            State::Dialing => seg.seq == self.rcv.nxt,
            State::Resolving | State::Dead => false,
            State::SynReceived | State::Open => seg.seq == self.rcv.nxt,
        };
        if exact {
            if self.state == State::SynSent {
                self.dial = self.dial.map(|_| Failure::Refused);
            }
            return self.die(cx, Close::Reset);
        }
        let in_window = self.rcv.nxt.before(seg.seq) && seg.seq.before(self.rcv.edge);
        if in_window && matches!(self.state, State::SynReceived | State::Open) {
            self.rcv.ack = Ack::Now;
        }
        cx.net.stats.drop(Drop::Window);
    }

    /// The guest's answer to our SYN.
    fn syn_sent(&mut self, cx: &mut Cx<'_, '_>, seg: &Segment<'_>) {
        if !(seg.has(SYN) && seg.has(ACK) && seg.ack == self.snd.nxt) {
            return cx.net.stats.drop(Drop::Window);
        }
        self.take_offer(cx.net, &seg.offer());
        self.rcv.nxt = seg.seq.plus(1);
        self.rcv.edge = self.rcv.nxt;
        self.snd.una = seg.ack;
        self.snd.wnd = u32::from(seg.window);
        self.snd.max_wnd = self.snd.wnd;
        (self.snd.timer, self.snd.backoff) = (None, 0);
        self.state = State::Open;
        self.rcv.ack = Ack::Now;
    }

    /// Takes what a segment says about our direction; false if the segment is to be ignored.
    pub(super) fn acknowledge(&mut self, cx: &mut Cx<'_, '_>, seg: &Segment<'_>) -> bool {
        let snd = &mut self.snd;
        if snd.nxt.before(seg.ack) || seg.ack.distance(snd.una) > 1 << 30 {
            // Something we never sent, or ages old.
            self.rcv.ack = Ack::Now;
            cx.net.stats.drop(Drop::Window);
            return false;
        }
        let window = u32::from(seg.window) << snd.shift;
        if snd.una.before(seg.ack) {
            if self.state == State::SynReceived {
                self.state = State::Open;
                snd.una = snd.una.plus(1);
            }
            let data = snd.una.until(seg.ack) as usize;
            snd.ring.consume(data);
            snd.una = seg.ack;
            if snd.ring.is_empty() {
                snd.ring.release(cx.pool);
            }
            (snd.dup_acks, snd.backoff, snd.stalled) = (0, 0, None);
            if let Some((seq, sent)) = snd.rtt.timed
                && !seg.ack.before(seq)
            {
                snd.rtt.sample(cx.io.now.since(sent));
                snd.rtt.timed = None;
            }
            let in_flight = snd.una != snd.nxt;
            snd.timer = in_flight.then(|| cx.io.now + snd.rtt.timeout(0));
        } else if seg.ack == snd.una && snd.una != snd.nxt && seg.len() == 0 && window == snd.wnd {
            snd.dup_acks = snd.dup_acks.saturating_add(1);
        }
        if !seg.ack.before(snd.una) {
            if snd.wnd == 0 && window > 0 {
                snd.backoff = 0;
                // The closed window did not let the probe's byte in.
                if let Some(recovery) = &mut snd.recovery {
                    (recovery.next, recovery.credit) = (snd.una, recovery.credit.max(1));
                }
            }
            snd.wnd = window;
            snd.max_wnd = snd.max_wnd.max(window);
        }
        if snd.sack {
            let (una, nxt) = (snd.una, snd.nxt);
            seg.sacks(|start, end| {
                if start.before(end) && !start.before(una) && !nxt.before(end) {
                    snd.sacked.insert(start, end);
                }
            });
        }
        if !snd.sacked.is_empty() {
            snd.sacked.advance(snd.una);
        }
        if snd.dup_acks > 0 || !snd.sacked.is_empty() || snd.recovery.is_some() {
            self.detect_loss(cx);
        }
        true
    }

    /// Starts, continues or ends the retransmission of what was lost.
    fn detect_loss(&mut self, cx: &Cx<'_, '_>) {
        let now = cx.io.now;
        let snd = &mut self.snd;
        let mss = u32::from(snd.mss);
        if let Some(recovery) = &mut snd.recovery {
            if !snd.una.before(recovery.until) {
                snd.recovery = None;
                return;
            }
            recovery.credit = (recovery.credit + 2).min(64);
            let repeat = snd.rtt.smooth.map_or(MIN_REPEAT, |s| (s * 2).max(MIN_REPEAT));
            if now.since(recovery.began) > repeat && snd.una.before(recovery.next) {
                (recovery.next, recovery.began) = (snd.una, now);
            }
            recovery.next = recovery.next.max(snd.una);
            return;
        }
        let sacked = snd.sacked.bytes();
        if snd.dup_acks >= DUP_ACKS || sacked > u32::from(DUP_ACKS) * mss {
            snd.rtt.timed = None;
            snd.recovery = Some(Recovery {
                until: snd.nxt,
                next: snd.una,
                began: now,
                timeout: false,
                credit: 64,
            });
        }
    }

    /// Takes data that lies where `seq` says.
    pub(super) fn accept(&mut self, cx: &mut Cx<'_, '_>, seq: Seq, payload: &[u8]) {
        if payload.is_empty() {
            if seq != self.rcv.nxt {
                // An old or far segment without data: a keepalive, or the guest is out of step.
                self.rcv.ack = Ack::Now;
            }
            return;
        }
        // Cut off what was there before and what the window does not allow.
        let old = seq.until(self.rcv.nxt) as usize;
        let seq = seq.max(self.rcv.nxt);
        let allowed = seq.until(self.rcv.edge) as usize;
        let payload = payload.get(old.min(payload.len())..).unwrap_or(&[]);
        let payload = payload.get(..allowed.min(payload.len())).unwrap_or(&[]);
        let ended = self.rcv.fin.is_some_and(|fin| !seq.before(fin));
        if payload.is_empty() || ended {
            self.rcv.ack = Ack::Now;
            return cx.net.stats.drop(Drop::Window);
        }
        if seq == self.rcv.nxt {
            self.accept_next(cx, payload);
        } else {
            self.accept_ahead(cx, seq, payload);
        }
    }

    /// Data in order: to the socket if nothing waits before it, else to the held bytes.
    fn accept_next(&mut self, cx: &mut Cx<'_, '_>, payload: &[u8]) {
        let mut sent = 0;
        if self.rcv.held.is_empty()
            && self.rcv.ahead.is_empty()
            && self.can_write
            && let Some(sock) = self.sock
        {
            match cx.io.host.send(sock, &[IoSlice::new(payload)]) {
                Sent::Data(n) => sent = n.min(payload.len()),
                Sent::Blocked => {}
                Sent::Failed(_) => return self.host_failed(),
            }
            if sent < payload.len() {
                self.stop_writing();
            }
        }
        let rest = payload.get(sent..).unwrap_or(&[]);
        let taken = sent + self.hold(cx, rest);
        self.advance(taken);
    }

    /// Keeps bytes that follow `rcv.nxt`; returns how many there was room for.
    pub(super) fn hold(&mut self, cx: &mut Cx<'_, '_>, data: &[u8]) -> usize {
        if data.is_empty() {
            return 0;
        }
        let held = &mut self.rcv.held;
        let keep = held.len() + self.rcv.ahead.end().map_or(0, |e| self.rcv.nxt.until(e) as usize);
        let want = held.len() + data.len();
        if want > held.capacity() {
            held.grow_keeping(want, keep, cx.pool);
        }
        let fits = data.get(..data.len().min(held.room())).unwrap_or(&[]);
        if held.write_at(held.len(), fits) {
            held.commit(fits.len());
            return fits.len();
        }
        0
    }

    /// Counts `n` bytes at `rcv.nxt` as accepted, and those behind a gap that they closed.
    pub(super) fn advance(&mut self, n: usize) {
        let rcv = &mut self.rcv;
        let n = u32::try_from(n).unwrap_or(0);
        rcv.nxt = rcv.nxt.plus(n);
        rcv.unacked += n;
        rcv.flowing = rcv.flowing.saturating_add(n);
        if !rcv.ahead.is_empty() {
            if let Some(end) = rcv.ahead.advance(rcv.nxt) {
                let more = rcv.nxt.until(end);
                rcv.held.commit(more as usize);
                rcv.nxt = end;
                rcv.unacked += more;
            }
            rcv.ack = Ack::Now;
        }
        if let Some(fin) = rcv.fin
            && rcv.nxt == fin
        {
            rcv.nxt = fin.plus(1);
            rcv.ack = Ack::Now;
        }
        if rcv.ack == Ack::None {
            // Every second full segment at once (RFC 1122 section 4.2.3.2), a short one soon: its
            // answer will carry the acknowledgement.
            let full = 2 * u32::from(self.snd.mss);
            rcv.ack = if rcv.unacked >= full { Ack::Now } else { Ack::Delayed };
        } else if rcv.unacked >= 2 * u32::from(self.snd.mss) {
            rcv.ack = Ack::Now;
        }
    }

    /// Data behind a gap: kept in its place, and the gap reported at once.
    fn accept_ahead(&mut self, cx: &mut Cx<'_, '_>, seq: Seq, payload: &[u8]) {
        let rcv = &mut self.rcv;
        let offset = rcv.held.len() + rcv.nxt.until(seq) as usize;
        let end = offset + payload.len();
        if end > rcv.held.capacity() {
            let keep = rcv.held.len() + rcv.ahead.end().map_or(0, |e| rcv.nxt.until(e) as usize);
            rcv.held.grow_keeping(end, keep, cx.pool);
        }
        let last = seq.plus(u32::try_from(payload.len()).unwrap_or(0));
        if !rcv.held.write_at(offset, payload) || !rcv.ahead.insert(seq, last) {
            cx.net.stats.drop(Drop::Limit);
        }
        // One for each segment, though they came in one batch: guests without SACK count them.
        self.send_ack(cx);
    }

    /// The guest's FIN stands at `fin`.
    fn finish(&mut self, fin: Seq) {
        self.rcv.ack = Ack::Now;
        if self.rcv.fin.is_some() || self.rcv.edge.before(fin) || fin.before(self.rcv.nxt) {
            return;
        }
        self.rcv.fin = Some(fin);
        self.advance(0);
    }
}
