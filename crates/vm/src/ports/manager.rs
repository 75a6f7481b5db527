//! The thread that has the ports be what they ought to be: whatever happens, it looks at what is
//! wanted and at what is open, and mends the difference, as fast as its allowance permits.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmlan_agent::message::{Lift, Listener, Orders, Report, State, Target};
use vmlan_config::instance::forwards::Forwards;

use super::forwards::{Failure, Network};
use super::plan::{Place, Wanted, lifts, plan};
use super::reverse::Streams;
use super::ssh::Session;
use super::{Config, Local, Port, PortEvent, PortState, Ssh};

/// Between two questions to an agent that answers, and to one that has not answered yet.
const PING: Duration = Duration::from_secs(10);
const KNOCK: Duration = Duration::from_secs(1);

/// An agent that says nothing for as long is not there.
const SILENCE: Duration = Duration::from_secs(30);

/// Until a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(3);

/// For the machine to take what it is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ports opened or closed at once, and how soon the next one may be: a machine that changes its
/// mind all the time costs no more than that.
const ALLOWANCE: u32 = 1000;
const REFILL: Duration = Duration::from_millis(20);

/// What the thread hears.
#[derive(Debug)]
pub(super) enum Input {
    /// The channel is there; this end is for writing.
    Up(UnixStream),
    Down,
    Report(Report),
    /// What listens, without an agent.
    Listed(Vec<Listener>),
    /// The connection is gone, and what it forwarded.
    SshEnded,
    NewNetwork,
    /// The machine lets its user in.
    Ready,
    Stop,
}

pub(super) type Events = Box<dyn FnMut(PortEvent) + Send>;

pub(super) struct Manager {
    forwards: Forwards,
    guest: Ipv4Addr,
    orders: Orders,
    /// Sockets of the guest that lead to the host's.
    doors: BTreeMap<String, PathBuf>,
    network: Option<Network>,
    ssh: Option<Ssh>,
    is_ready: bool,
    /// Where its connection's socket is.
    dir: PathBuf,
    session: Option<Session>,
    input: SyncSender<Input>,
    streams: Streams,
    events: Events,
    /// What is to be told when the list says it too.
    news: Vec<PortEvent>,
    shared: Arc<Mutex<Vec<PortState>>>,
    channel: Option<UnixStream>,
    next_orders: Instant,
    /// When the agent was last heard, if it counts as there.
    agent: Option<Instant>,
    /// Since when it does not.
    alone: Instant,
    state: State,
    entries: BTreeMap<Port, Entry>,
    allowance: u32,
    refilled: Instant,
}

/// A port that is wanted, or still open.
#[derive(Debug)]
struct Entry {
    /// Which way it leads, if it is open.
    open: Option<Way>,
    problem: Option<String>,
    retry: Option<Instant>,
}

/// How a port leads to its place in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// Through the network, to this address.
    Network(SocketAddr),
    Ssh(Target),
}

impl Manager {
    pub(super) fn new(
        config: Config,
        events: Events,
        shared: Arc<Mutex<Vec<PortState>>>,
        input: SyncSender<Input>,
    ) -> Self {
        let reverse = config.forwards.sockets.iter().filter(|sockets| sockets.reverse);
        let doors: BTreeMap<_, _> = reverse
            .filter_map(|sockets| Some((sockets.guest.to_str()?.to_owned(), sockets.host.clone())))
            .collect();
        // An agent leads nowhere but to a network of vmlan's.
        let of_agent = config.control.as_ref().map(|_| doors.keys().cloned().collect());
        let now = Instant::now();
        Self {
            orders: Orders {
                number: 0,
                at: config.guest,
                from: config.gateways,
                lifts: Vec::new(),
                doors: of_agent.unwrap_or_default(),
                uid: config.uid,
            },
            forwards: config.forwards,
            guest: config.guest,
            doors,
            network: config.control.map(|client| Network { client, name: config.name }),
            ssh: config.ssh,
            is_ready: false,
            dir: config.channel.parent().map(PathBuf::from).unwrap_or_default(),
            session: None,
            input,
            streams: Streams::default(),
            events,
            news: Vec::new(),
            shared,
            channel: None,
            next_orders: now,
            agent: None,
            alone: now,
            state: State::default(),
            entries: BTreeMap::new(),
            allowance: ALLOWANCE,
            refilled: now,
        }
    }

    /// Until it is told to stop; then all ports are closed.
    pub(super) fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let next = self.go_on();
            let wait = next.saturating_duration_since(Instant::now());
            match inputs.recv_timeout(wait) {
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(input) => self.hear(input),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.allowance = u32::MAX;
        for port in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.close(&port);
        }
        self.publish();
    }

    fn hear(&mut self, input: Input) {
        match input {
            Input::Up(stream) => {
                let bounded = stream.set_write_timeout(Some(PATIENCE));
                self.channel = bounded.is_ok().then_some(stream);
                self.next_orders = Instant::now();
            }
            Input::Down => {
                self.channel = None;
                self.agent_is_gone();
            }
            Input::Report(Report::State(state)) => {
                // Numbers of others before us mean nothing.
                if state.heard == 0 || state.heard > self.orders.number {
                    return;
                }
                if state.cards != self.state.cards {
                    (self.events)(PortEvent::Cards(state.cards.clone()));
                }
                if state.notes != self.state.notes {
                    (self.events)(PortEvent::Notes(state.notes.clone()));
                }
                self.state = state;
                if self.agent.replace(Instant::now()).is_none() {
                    (self.events)(PortEvent::AgentUp);
                }
            }
            Input::Report(Report::Call { door, port }) => {
                if let (Some(host), Some(network)) = (self.doors.get(&door), &self.network) {
                    self.streams.join(&network.client, self.guest, port, host.clone());
                }
            }
            Input::Listed(listeners) if self.agent.is_none() => {
                self.state = State { listeners, ..State::default() };
            }
            Input::Listed(_) => {}
            Input::SshEnded => self.lose(|way| matches!(way, Way::Ssh(_))),
            Input::NewNetwork => self.lose(|way| matches!(way, Way::Network(_))),
            Input::Ready => {
                self.is_ready = true;
                self.alone = Instant::now();
            }
            Input::Stop => {}
        }
    }

    fn agent_is_gone(&mut self) {
        if self.agent.take().is_some() {
            self.alone = Instant::now();
            (self.events)(PortEvent::AgentDown);
        }
    }

    /// Ports that have led these ways are not open any more.
    fn lose(&mut self, is_lost: impl Fn(&Way) -> bool) {
        for (port, entry) in &mut self.entries {
            if entry.open.as_ref().is_some_and(&is_lost) {
                entry.open = None;
                entry.retry = None;
                self.news.push(PortEvent::Closed(port.clone()));
            }
        }
        self.publish();
    }

    /// Has ssh stand in where it has to. Returns when it might have to.
    fn stand_in(&mut self, now: Instant) -> Option<Instant> {
        let ssh = self.ssh.as_ref().filter(|_| self.is_ready)?;
        let has_all = self.agent.is_some() && self.network.is_some();
        let from = if self.network.is_none() { now } else { self.alone + ssh.after };
        if has_all {
            if self.session.take().is_some() {
                self.lose(|way| matches!(way, Way::Ssh(_)));
            }
            return None;
        }
        if self.session.is_some() {
            return None;
        }
        if now < from {
            return Some(from);
        }
        self.session = Session::start(ssh.clone(), &self.dir, self.input.clone()).ok();
        if self.session.is_none() {
            return Some(now + KNOCK);
        }
        // Elsewhere ssh is not there in the place of the agent.
        if self.network.is_some() {
            self.state.lifts.clear();
            (self.events)(PortEvent::SshStandsIn);
        }
        None
    }

    fn way(&self, wanted: &Wanted) -> Option<Way> {
        let by_ssh = |to: Target| {
            (self.session.is_some() && !matches!(to, Target::Udp(_))).then_some(Way::Ssh(to))
        };
        match (&wanted.place, &self.network) {
            (Place::Direct(addr), Some(_)) => Some(Way::Network(*addr)),
            (Place::Direct(_), None) => by_ssh(on_loopback(&wanted.guest)),
            (Place::Lifted(target), Some(_)) => match lift(&self.state.lifts, target) {
                Some(port) => Some(Way::Network((self.guest, port).into())),
                None => by_ssh(target.clone()),
            },
            (Place::Lifted(target), None) => by_ssh(target.clone()),
        }
    }

    /// Does what is due, and says when there will be more.
    fn go_on(&mut self) -> Instant {
        let now = Instant::now();
        if self.agent.is_some_and(|heard| now.duration_since(heard) > SILENCE) {
            self.agent_is_gone();
        }
        let stand_in = self.stand_in(now);
        let plan = plan(&self.forwards, self.guest, &self.state.listeners);
        let lifts = lifts(&plan);
        if lifts != self.orders.lifts {
            self.orders.lifts = lifts;
            self.next_orders = now;
        }
        if self.channel.is_some() && self.next_orders <= now {
            self.send_orders(now);
        }
        let refill = now.duration_since(self.refilled).as_millis() / REFILL.as_millis();
        if refill > 0 {
            let refill = u32::try_from(refill).unwrap_or(ALLOWANCE);
            self.allowance = self.allowance.saturating_add(refill).min(ALLOWANCE);
            self.refilled = now;
        }
        let retry = self.mend(&plan, now);
        let orders = self.channel.as_ref().map(|_| self.next_orders);
        // Without anything to do it is enough to look now and then.
        [retry, orders, stand_in].into_iter().flatten().min().unwrap_or(now + PING)
    }

    fn send_orders(&mut self, now: Instant) {
        self.orders.number += 1;
        let is_answered = self.agent.is_some();
        self.next_orders = now + if is_answered { PING } else { KNOCK };
        let Ok(mut line) = serde_json::to_vec(&self.orders) else { return };
        // What somebody else may have left half said ends here.
        line.insert(0, b'\n');
        line.push(b'\n');
        // Half a line, if the machine takes no more, is ended by the next one.
        let sent = self.channel.as_mut().map(|channel| channel.write_all(&line));
        if let Some(Err(error)) = sent
            && !matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            )
        {
            // Whoever reads the channel sees its end as well.
            self.channel = None;
        }
    }

    /// Closes what is not wanted, or not there, and opens what is wanted. Returns when something is
    /// to be tried again.
    fn mend(&mut self, plan: &BTreeMap<Local, Wanted>, now: Instant) -> Option<Instant> {
        let wanted = self.wanted(plan);
        let mut changed = false;
        let stale: Vec<Port> = self
            .entries
            .iter()
            .filter(|(port, entry)| match (wanted.get(*port), &entry.open) {
                (None, _) => true,
                (Some(way), open) => open.as_ref().is_some_and(|open| open != way),
            })
            .map(|(port, _)| port.clone())
            .collect();
        for port in stale {
            if self.allowance == 0 {
                break;
            }
            changed = true;
            self.close(&port);
        }
        for (port, way) in wanted {
            let waits = self.entries.get(&port).is_some_and(|entry| {
                entry.open.is_some() || entry.retry.is_some_and(|at| at > now)
            });
            if !waits && self.allowance > 0 {
                changed = true;
                self.open(port, way, now);
            }
        }
        if changed {
            self.publish();
        }
        let spent = (self.allowance == 0).then(|| now + REFILL);
        let retries = self.entries.values().filter_map(|entry| entry.retry);
        retries.chain(spent).min()
    }

    /// Which ports there ought to be now, and which way each leads.
    fn wanted(&self, plan: &BTreeMap<Local, Wanted>) -> BTreeMap<Port, Way> {
        let forwards = plan.iter().filter_map(|(local, wanted)| {
            let (local, guest) = (local.clone(), wanted.guest.clone());
            Some((Port { local, guest, reverse: false }, self.way(wanted)?))
        });
        // Those that an agent leads to the host are its own.
        let doors = self.doors.iter().filter(|_| self.session.is_some()).map(|(guest, host)| {
            let guest = Target::Unix(guest.clone());
            let local = Local::Unix(host.clone());
            (Port { local, guest: guest.clone(), reverse: true }, Way::Ssh(guest))
        });
        forwards.chain(doors).collect()
    }

    fn open(&mut self, port: Port, way: Way, now: Instant) {
        self.allowance -= 1;
        let opened = match (&way, &self.network, &self.session) {
            (Way::Network(to), Some(network), _) => network.open(&port.local, *to),
            (Way::Ssh(_), _, Some(session)) if port.reverse => session.open_back(&port),
            (Way::Ssh(to), _, Some(session)) => session.open(&port.local, to),
            _ => Err(Failure::NotYet),
        };
        let before = self.entries.remove(&port).and_then(|entry| entry.problem);
        let (open, problem, retry) = match opened {
            Ok(()) => {
                self.news.push(PortEvent::Opened(port.clone()));
                (Some(way), None, None)
            }
            // The host agent brings the network back, and the machine to it.
            Err(Failure::NotYet) => (None, before, Some(now + KNOCK)),
            Err(Failure::Refused(why)) => {
                if before.as_ref() != Some(&why) {
                    let (port, why) = (port.clone(), why.clone());
                    self.news.push(PortEvent::Conflict { port, why });
                }
                (None, Some(why), Some(now + RETRY))
            }
        };
        self.entries.insert(port, Entry { open, problem, retry });
    }

    fn close(&mut self, port: &Port) {
        let Some(entry) = self.entries.remove(port) else { return };
        if let Some(way) = &entry.open {
            self.allowance -= 1;
            match (way, &self.network, &self.session) {
                (Way::Network(_), Some(network), _) => network.close(&port.local),
                (Way::Ssh(_), _, Some(session)) if port.reverse => session.close_back(port),
                (Way::Ssh(to), _, Some(session)) => session.close(&port.local, to),
                _ => {}
            }
            self.news.push(PortEvent::Closed(port.clone()));
        }
    }

    fn publish(&mut self) {
        let states = self
            .entries
            .iter()
            .map(|(port, entry)| PortState { port: port.clone(), problem: entry.problem.clone() });
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = states.collect();
        for event in std::mem::take(&mut self.news) {
            (self.events)(event);
        }
    }
}

fn lift(lifts: &[Lift], to: &Target) -> Option<u16> {
    lifts.iter().find(|lift| lift.to == *to && lift.port != 0).map(|lift| lift.port)
}

/// A listener as the machine's own programs reach it.
fn on_loopback(guest: &Target) -> Target {
    match guest {
        Target::Tcp(addr) if addr.ip().is_unspecified() => {
            let ip: IpAddr = match addr.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            Target::Tcp(SocketAddr::new(ip, addr.port()))
        }
        other => other.clone(),
    }
}
