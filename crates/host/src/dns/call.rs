//! One question to a resolver of its own.

use std::io;
use std::time::Instant;

use mio::{Events, Poll};
use vmlan_dns::{Options, Origin, Resolver};

use super::Lanes;
use crate::sys::Batches;
use crate::token;

/// Asks what a guest would, over TCP or UDP, and waits for the answer. `None` if the message is one
/// that nobody answers.
pub fn resolve(options: Options, message: &[u8]) -> io::Result<Option<(Origin, Vec<u8>)>> {
    let mut poll = Poll::new()?;
    let registry = poll.registry().try_clone()?;
    let mut now = Instant::now();
    let mut resolver = Resolver::new(registry, token::DNS, options, now);
    let mut batches = Batches::default();
    let mut events = Events::with_capacity(64);
    if !resolver.call(0, 0, message, now) {
        return Ok(None);
    }
    loop {
        resolver.flush(&mut Lanes(&mut batches), now);
        if let Some(answer) = resolver.answers().iter().next() {
            return Ok(Some((answer.origin, answer.message.to_vec())));
        }
        let due = resolver.next_timeout().map(|due| due.saturating_duration_since(now));
        match poll.poll(&mut events, due) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        now = Instant::now();
        for event in &events {
            resolver.handle(&mut Lanes(&mut batches), event, now);
        }
        if resolver.next_timeout().is_some_and(|due| due <= now) {
            resolver.handle_timeout(&mut Lanes(&mut batches), now);
        }
    }
}
