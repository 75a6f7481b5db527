//! Connections to guests on behalf of somebody who holds a stream on the host's side, and hands it
//! over only once the guest has answered: the tunnel, whose clients have to be told first.
//!
//! A dial is a flow like a forward's, without a socket until [`Tcp::attach`]. What the guest sends
//! in between is held, within the window that it was offered.

use std::net::SocketAddr;

use super::flow::{Cx, Flow, State};
use super::{Key, Tcp};
use crate::io::{Close, Failure, Io, SockId, Token};
use crate::net::Net;

/// Bytes that a caller may have read from its stream before it hands it over.
const MAX_EARLY: usize = 128 << 10;

/// A connection to a guest that is being made, or waits for its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DialId(Token);

impl DialId {
    /// The name under which the stream has to be known to the host before it is handed over.
    pub fn token(self) -> Token {
        self.0
    }
}

impl Tcp {
    /// Calls a guest from the gateway's address. Its outcome will be among [`Tcp::next_dialed`].
    pub(crate) fn dial(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        guest: SocketAddr,
    ) -> Result<DialId, Failure> {
        let token = self.reserve().ok_or(Failure::Exhausted)?;
        let remote = self.free_port(net, guest).ok_or(Failure::Exhausted)?;
        let mut flow = self.inbound(Key { guest, remote }, io.now);
        flow.dial = Some(Failure::HostUnreachable);
        (flow.can_read, flow.can_write) = (false, false);
        self.call(net, io, token.index(), flow);
        Ok(DialId(token))
    }

    /// A dial that has been answered or has failed since the last call.
    pub(crate) fn next_dialed(&mut self) -> Option<(DialId, Result<(), Failure>)> {
        self.dialed.pop_front()
    }

    /// Joins an answered dial with its stream, whose first bytes are `early`. A guest that has
    /// left meanwhile is seen as a reset, and so is what was too much to take.
    pub(crate) fn attach(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        dial: DialId,
        sock: SockId,
        early: &[u8],
    ) {
        let index = self.without_stream(dial);
        let flow = index.and_then(|index| self.flows.get_mut(index as usize));
        let Some(flow) = flow.filter(|flow| flow.state == State::Open) else {
            return io.host.close(sock, Close::Reset);
        };
        flow.sock = Some(sock);
        (flow.can_read, flow.can_write) = (true, true);
        let cx = &mut Cx { net, io, pool: &mut self.pool };
        if !flow.take_early(cx, early) {
            flow.send_rst(cx);
            flow.die(cx, Close::Reset);
        }
        self.settle(net, io, dial.0.index());
    }

    /// Ends a dial that nobody wants any more.
    pub(crate) fn hang_up(&mut self, net: &mut Net, io: &mut Io<'_>, dial: DialId) {
        self.dialed.retain(|(id, _)| *id != dial);
        let Some(index) = self.without_stream(dial) else { return };
        if let Some(flow) = self.flows.get_mut(index as usize) {
            flow.dial = None;
            let cx = &mut Cx { net, io, pool: &mut self.pool };
            flow.send_rst(cx);
            flow.die(cx, Close::Reset);
        }
        self.settle(net, io, index);
    }

    /// Tells the outcome of a dial once there is one.
    pub(super) fn tell_dialed(&mut self, index: u32) {
        let id = DialId(self.token(index));
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let outcome = match (flow.state, flow.dial) {
            (State::Open, Some(_)) => Ok(()),
            (State::Dead, Some(failure)) => Err(failure),
            _ => return,
        };
        flow.dial = None;
        self.dialed.push_back((id, outcome));
    }

    /// The number of a dial's flow, as long as it has no stream.
    fn without_stream(&self, dial: DialId) -> Option<u32> {
        let index = dial.0.index();
        let flow = self.flows.get(index as usize)?;
        (self.token(index) == dial.0 && flow.sock.is_none()).then_some(index)
    }
}

impl Flow {
    /// Puts bytes before those that the socket will bring; false if there is no room.
    fn take_early(&mut self, cx: &mut Cx<'_, '_>, early: &[u8]) -> bool {
        if early.is_empty() {
            return true;
        }
        let ring = &mut self.snd.ring;
        if early.len() > MAX_EARLY || !ring.grow(early.len(), cx.pool) {
            return false;
        }
        let written = ring.write_at(0, early);
        ring.commit(if written { early.len() } else { 0 });
        written
    }
}
