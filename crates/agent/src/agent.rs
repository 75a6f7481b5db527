//! The loop: what has happened, then what is different from what the host was told.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmlan_agent::message::{Orders, Report, State};

use crate::cards;
use crate::channel::{Channel, TOKEN};
use crate::lifts::Lifts;
use crate::listeners::Watch;
use crate::notes;
use crate::poll::Poll;

/// Between two looks at what listens.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Agent {
    poll: Poll,
    channel: Channel,
    watch: Watch,
    lifts: Lifts,
    /// The last that the host wanted.
    orders: Option<Orders>,
    state: State,
    /// The host is to be told the state.
    is_news: bool,
}

impl Agent {
    pub(crate) fn new(channel: Channel) -> io::Result<Self> {
        let limit = getrlimit(Resource::Nofile);
        // If it stays low, fewer connections are accepted at once.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        Ok(Self {
            poll: Poll::new()?,
            channel,
            watch: Watch::new(),
            lifts: Lifts::new(),
            orders: None,
            state: State::default(),
            is_news: false,
        })
    }

    /// Until a channel that cannot come back has ended.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut next_look = Instant::now();
        loop {
            for (token, _) in self.poll.wait(next_look.saturating_duration_since(Instant::now()))? {
                match token {
                    TOKEN if !self.hear()? => return Ok(()),
                    TOKEN => {}
                    token => self.lifts.handle(&self.poll, token),
                }
            }
            if Instant::now() >= next_look {
                next_look = Instant::now() + INTERVAL;
                if !self.channel.is_there() && !self.hear()? {
                    return Ok(());
                }
                self.look();
            }
            self.tell()?;
        }
    }

    /// Reads what the host says; false at the end.
    fn hear(&mut self) -> io::Result<bool> {
        match self.channel.read(&self.poll) {
            Ok(None) => {}
            Ok(Some(orders)) => {
                self.lifts.follow(&self.poll, &orders);
                self.state.heard = orders.number;
                if self.orders.is_none() {
                    self.state.listeners = self.watch.list(|listener| self.lifts.owns(listener));
                    self.state.cards = cards::list();
                    self.state.notes = notes::list();
                }
                self.state.lifts = self.lifts.list();
                self.orders = Some(orders);
                self.is_news = true;
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
        if !self.channel.is_there() {
            // Nobody is there to be told.
            self.is_news = false;
        }
        self.channel_flush()?;
        Ok(true)
    }

    fn channel_flush(&mut self) -> io::Result<()> {
        if self.channel.is_there() { self.channel.flush(&self.poll) } else { Ok(()) }
    }

    /// Looks at what listens, and mends what could not be opened.
    fn look(&mut self) {
        self.lifts.tidy(&self.poll);
        let Some(orders) = self.orders.as_ref().filter(|_| self.channel.is_there()) else { return };
        self.lifts.follow(&self.poll, orders);
        let listeners = self.watch.list(|listener| self.lifts.owns(listener));
        let (lifts, cards, notes) = (self.lifts.list(), cards::list(), notes::list());
        let state = State { heard: orders.number, listeners, lifts, cards, notes };
        self.is_news |= state != self.state;
        self.state = state;
    }

    /// Tells the host, if it has read what it was told before.
    fn tell(&mut self) -> io::Result<()> {
        for (door, port) in self.lifts.take_calls() {
            if self.channel.is_there() {
                self.channel.send(&self.poll, &Report::Call { door, port })?;
            }
        }
        if self.is_news && self.channel.is_there() && self.channel.is_idle() {
            self.is_news = false;
            self.channel.send(&self.poll, &Report::State(self.state.clone()))?;
        }
        Ok(())
    }
}
