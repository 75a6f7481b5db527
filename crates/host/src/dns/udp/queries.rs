//! The queries that are on their way over UDP, and their answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant as Moment;

use slab::Slab;
use vmlan_engine::Token;

use crate::dns::Shared;
use crate::dns::message::{self, Checked, Rcode};

#[derive(Debug, Default)]
pub(super) struct Queries {
    pub(super) pending: Slab<Pending>,
    /// By socket and id.
    pub(super) by_id: HashMap<(usize, u16), usize>,
    /// Buffers to be used again.
    pub(super) spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) token: Token,
    /// As it came, but for the id that it was sent with last.
    pub(super) message: Vec<u8>,
    /// The id that the guest gave it.
    pub(super) id: [u8; 2],
    pub(super) sent: Option<(usize, u16)>,
    pub(super) sent_at: Moment,
    pub(super) asked_at: Moment,
    /// Position in the list of nameservers of the next attempt.
    pub(super) next: usize,
    /// Nameservers that could not be asked, in a row.
    pub(super) errors: usize,
    /// Nameservers that failed or were silent.
    pub(super) failures: usize,
}

impl Queries {
    /// Takes a reply. What is returned has to be asked again.
    pub(super) fn reply(
        &mut self,
        shared: &mut Shared,
        socket: usize,
        server: SocketAddr,
        reply: &[u8],
        now: Moment,
    ) -> Option<usize> {
        let id = u16::from_be_bytes(reply.get(..2)?.try_into().ok()?);
        let index = *self.by_id.get(&(socket, id))?;
        let pending = self.pending.get_mut(index)?;
        if !message::answers(reply, &pending.message) {
            return None;
        }
        if message::is_failure(reply) && pending.failures + 1 < shared.servers.len() {
            pending.failures += 1;
            pending.errors = 0;
            return Some(index);
        }
        if pending.failures + pending.errors > 0 && !message::is_failure(reply) {
            shared.servers.prefer(server, now);
        }
        let mut answer = reply.to_vec();
        if let Some(place) = answer.get_mut(..2) {
            place.copy_from_slice(&pending.id);
        }
        shared.answer(pending.token, answer);
        self.remove(index);
        None
    }

    /// What was sent on a socket has come back, and goes to the next nameserver.
    pub(super) fn refused(&mut self, socket: usize, moved: &mut Vec<usize>) {
        for (index, pending) in &mut self.pending {
            if pending.sent.is_some_and(|(sent, _)| sent == socket) {
                pending.errors += 1;
                moved.push(index);
            }
        }
    }

    /// All nameservers have failed at once.
    pub(super) fn fail(&mut self, shared: &mut Shared, index: usize) {
        let Some(pending) = self.pending.get_mut(index) else { return };
        if let Some(place) = pending.message.get_mut(..2) {
            place.copy_from_slice(&pending.id);
        }
        if let Checked::Query(query) = message::check(&pending.message) {
            shared.answer(pending.token, query.error(Rcode::ServFail));
        }
        self.remove(index);
    }

    pub(super) fn remove(&mut self, index: usize) {
        const MAX_SPARE: usize = 64;
        self.unsend(index);
        if let Some(pending) = self.pending.try_remove(index)
            && self.spare.len() < MAX_SPARE
        {
            self.spare.push(pending.message);
        }
    }

    /// Forgets where a query was sent last; an answer from there is no longer one.
    pub(super) fn unsend(&mut self, index: usize) {
        let sent = self.pending.get_mut(index).and_then(|pending| pending.sent.take());
        if let Some(sent) = sent {
            self.by_id.remove(&sent);
        }
    }
}
