//! What others have the network do: forwards, calls and questions of the host's.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant as SystemInstant;

use vmlan_api::{ForwardError, check_forward};
use vmlan_engine::{DialId, Failure, Forward, ForwardId, RelayId};
use vmlan_wire::Mac;

use super::{ASKED, ASKED_GUEST, Core, Label, TUNNEL_GUEST};

impl Core {
    pub(crate) fn add_forward(&mut self, forward: Forward) -> Result<ForwardId, ForwardError> {
        check_forward(self.engine.config(), &forward)?;
        let (engine, mut io) = engine!(self);
        engine.add_forward(forward, &mut io).map_err(ForwardError::Refused)
    }

    /// Opens a forward for a client of the control API.
    pub(crate) fn add_labelled(
        &mut self,
        forward: Forward,
        label: Label,
    ) -> Result<ForwardId, ForwardError> {
        let id = self.add_forward(forward)?;
        self.labels.insert(id, label);
        self.additions += 1;
        Ok(id)
    }

    /// Closes the forwards that were to go with a guest.
    pub(crate) fn remove_forwards_of(&mut self, guest: Mac) {
        let labels = self.labels.iter();
        let ids: Vec<_> =
            labels.filter(|(_, l)| l.guest == Some(guest)).map(|(id, _)| *id).collect();
        for id in ids {
            self.remove_forward(id);
        }
    }

    pub(crate) fn remove_forward(&mut self, id: ForwardId) -> bool {
        if self.labels.remove(&id).is_some() {
            self.additions += 1;
        }
        let (engine, mut io) = engine!(self);
        engine.remove_forward(id, &mut io)
    }

    /// Whether an address is one that a guest may have.
    pub(crate) fn is_guest(&self, ip: IpAddr) -> bool {
        self.engine.config().is_guest(ip)
    }

    /// Calls a guest for a client of the host's.
    pub(crate) fn dial(&mut self, guest: SocketAddr) -> Result<DialId, Failure> {
        let (engine, mut io) = engine!(self);
        engine.dial(guest, &mut io)
    }

    pub(crate) fn hang_up(&mut self, dial: DialId) {
        let (engine, mut io) = engine!(self);
        engine.hang_up(dial, &mut io);
    }

    /// Hands a client's stream, which this loop polls, over to the engine. A stream that the
    /// system has no room for is closed, and its guest sees a reset.
    pub(crate) fn attach(&mut self, dial: DialId, stream: OwnedFd, early: &[u8]) {
        match self.sockets.adopt(dial.token(), stream) {
            Some(sock) => {
                let (engine, mut io) = engine!(self);
                engine.attach(dial, sock, early, &mut io);
            }
            None => self.hang_up(dial),
        }
    }

    /// Sends a guest a datagram for a client of the host's.
    pub(crate) fn relay(
        &mut self,
        relay: RelayId,
        port: u16,
        guest: SocketAddr,
        data: &[u8],
    ) -> Result<(), Failure> {
        let (engine, mut io) = engine!(self);
        engine.relay(relay, port, guest, data, &mut io)
    }

    /// Asks the network's resolver; the answer will be in `resolved`. False if it is a question
    /// that nobody answers.
    pub(crate) fn resolve(&mut self, number: u64, message: &[u8]) -> bool {
        self.sockets.resolver().call(number, TUNNEL_GUEST, message, SystemInstant::now())
    }

    /// Asks the resolver what a guest would. The answer comes under the number; there is none if
    /// nobody answers such a message.
    pub(crate) fn ask(&mut self, message: &[u8], now: SystemInstant) -> Option<u64> {
        self.asked += 1;
        let number = ASKED | self.asked;
        self.sockets.resolver().call(number, ASKED_GUEST, message, now).then_some(number)
    }
}
