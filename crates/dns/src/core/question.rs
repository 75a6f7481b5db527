//! A question at the nameservers, and who waits for its answer.

use std::net::SocketAddr;
use std::time::Instant;

use arrayvec::ArrayVec;

use super::{Asker, Client};
use crate::answers::{Answers, Origin};
use crate::cache;
use crate::message::{self, Alias, Checked, HEADER, Query};

/// Questions that may be under way at once for one answer.
pub(crate) const MAX_TRIES: usize = 15;

#[derive(Debug)]
pub(crate) struct Question {
    /// As it came, but for the id that it was sent with last.
    pub(crate) message: Vec<u8>,
    /// To be asked over UDP first.
    pub(crate) udp: bool,
    pub(crate) asked_at: Instant,
    pub(crate) tries: Tries,
    /// The client whose message it is, and the id that it came with.
    pub(super) first: Option<(Asker, [u8; 2])>,
    pub(super) others: Vec<Waiter>,
    /// Bytes that the message says there is room for.
    pub(super) limit: usize,
    /// The key's hash and flags, if there may be others who ask the same.
    pub(super) key: Option<(u64, u8)>,
    /// Others who ask the same may wait for the same answer.
    pub(super) shared: bool,
}

/// How far the asking has come.
#[derive(Debug)]
pub(crate) struct Tries {
    /// Position in the list of nameservers of the next one.
    pub(crate) next: usize,
    /// How often it was sent, or could not be.
    pub(crate) count: usize,
    /// Those of them that have failed.
    pub(crate) failed: usize,
    pub(crate) last: Instant,
    /// Where answers may come from.
    pub(crate) open: ArrayVec<Way, MAX_TRIES>,
    /// What a nameserver said that gave up.
    pub(crate) refusal: Option<Box<Refusal>>,
}

/// A UDP socket and the id of a message on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Way(u32);

/// What a nameserver said that gave up.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reply: Box<[u8]>,
    pub(crate) server: SocketAddr,
}

/// A client whose answer is made from that to somebody else's message.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) asker: Asker,
    pub(super) message: Box<[u8]>,
    limit: usize,
    pub(super) alias: Alias,
}

impl Question {
    pub(super) fn new(message: &[u8], limit: usize, udp: bool, now: Instant) -> Self {
        Self {
            message: message.to_vec(),
            udp,
            asked_at: now,
            tries: Tries {
                next: 0,
                count: 0,
                failed: 0,
                last: now,
                open: ArrayVec::new(),
                refusal: None,
            },
            first: None,
            others: Vec::new(),
            limit,
            key: None,
            shared: false,
        }
    }
}

impl Way {
    /// `None` with more sockets than there ever are.
    pub(crate) fn new(socket: usize, id: u16) -> Option<Self> {
        Some(Self(u32::from(u16::try_from(socket).ok()?) << 16 | u32::from(id)))
    }

    pub(crate) fn socket(self) -> usize {
        (self.0 >> 16) as usize
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(crate) fn id(self) -> u16 {
        self.0 as u16
    }
}

impl Waiter {
    pub(super) fn new(asker: Asker, message: &[u8], limit: usize, alias: Alias) -> Self {
        Self { asker, message: message.into(), limit, alias }
    }

    /// Makes its answer of a reply. False if it must be asked on its own.
    pub(super) fn give(&self, answers: &mut Answers<Client>, reply: &[u8], origin: Origin) -> bool {
        let Checked::Query(query) = message::check(&self.message) else { return true };
        answers.write(self.asker.client, origin, |out| {
            if message::question_end(reply) == Some(HEADER) {
                // An error without the question.
                query.rcode(reply, out);
                return true;
            }
            if !self.alias.is_empty() {
                let made = message::with_alias(&query, &self.alias, reply, self.limit, out);
                if made.is_none() {
                    query.error(message::Rcode::ServFail, out);
                }
                return true;
            }
            self.readdressed(&query, reply, out)
        })
    }

    fn readdressed(&self, query: &Query<'_>, reply: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(kept) = cache::without_opt(reply) else { return false };
        let start = out.len();
        out.extend_from_slice(&kept);
        cache::readdress(out, start, query);
        out.len() - start <= self.limit
    }
}
