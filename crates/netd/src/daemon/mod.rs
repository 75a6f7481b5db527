//! A network's daemon: put together piece by piece, then run until something stops it.

mod files;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant as SystemInstant};

use mio::event::Event;
use mio::{Events, Poll};
use vmlan_api::Response;
use vmlan_config::Reservation;
use vmlan_engine::{Config, Engine, Forward, ForwardId, Instant};
use vmlan_host::Sockets;
use vmlan_link::Link;
use vmlan_link::datagram::DatagramLink;
use vmlan_link::fault::Faults;
use vmlan_link::framing::Framing;
use vmlan_link::stream::StreamLink;
#[cfg(target_os = "linux")]
use vmlan_link::vhost_user::VhostUserLink;

use crate::additions::AdditionsFile;
use crate::alarm::Alarm;
use crate::clock::Clock;
use crate::control::{Control, Handed, Handover};
use crate::core::{Cards, Core, Lan};
use crate::crowd::{Admission, Crowd};
use crate::dns;
use crate::leases::LeaseFile;
use crate::listener::Listeners;
use crate::managed::Joins;
use crate::ports::Ports;
use crate::returning::ReturningFile;
use crate::state::{StateFile, Wishes};
use crate::token::Owner;
use crate::tunnel::Tunnels;
use crate::unix_path::{self, BindError, SocketPath};
use crate::watch::{Next, Watches};
use crate::wrappers::Wrappers;
use crate::{DaemonError, peer, resident, signals};

/// Events that one pass takes from the system.
const EVENTS: usize = 256;

/// How long a network whose guests are gone tries to pass on what they have sent.
const FINISH: Duration = Duration::from_millis(2500);

/// One network: its engine, its guests' links and the host's sockets, in one thread.
#[derive(Debug)]
pub struct Daemon {
    poll: Poll,
    alarm: Alarm,
    core: Core,
    listeners: Listeners,
    crowd: Option<Crowd>,
    watches: Watches,
    control: Option<Control>,
    joins: Option<Joins>,
    tunnels: Tunnels,
    idle: Option<Idle>,
    leases: Option<LeaseFile>,
    returning: Option<ReturningFile>,
    wishes: Option<StateFile<Wishes>>,
    additions: Option<AdditionsFile>,
    /// What decides whether the file is up to date.
    wished: (bool, u32),
    wrappers: Wrappers,
    /// Removed at the end.
    datagram_paths: Vec<SocketPath>,
}

/// How long the network is there without anybody on it.
#[derive(Clone, Copy, Debug)]
struct Idle {
    grace: Duration,
    /// Since when there has been nobody, if there is nobody.
    since: Option<SystemInstant>,
}

impl Daemon {
    /// A network without guests, whose names are also those that `dns` says.
    pub fn new(mut config: Config, mut dns: vmlan_dns::Options) -> Result<Self, DaemonError> {
        let failed = || DaemonError::io("cannot poll");
        let poll = Poll::new().map_err(failed())?;
        let clock = Clock::start();
        let registry = || poll.registry().try_clone();
        let ports = Ports::new(registry().map_err(failed())?, config.mtu);
        dns::add_names(&mut dns.names, &config);
        let mut sockets = Sockets::new(registry().map_err(failed())?, dns).map_err(failed())?;
        config.search = sockets.resolver().search().to_vec();
        let tunnels = Tunnels::new(registry().map_err(failed())?);
        let engine = Engine::new(config, clock.now());
        Ok(Self {
            core: Core::new(engine, sockets, ports, clock),
            alarm: Alarm::new(poll.registry()),
            poll,
            listeners: Listeners::default(),
            crowd: None,
            watches: Watches::default(),
            control: None,
            joins: None,
            tunnels,
            idle: None,
            leases: None,
            returning: None,
            wishes: None,
            additions: None,
            wished: (false, 0),
            wrappers: Wrappers::default(),
            datagram_paths: Vec::new(),
        })
    }

    pub fn engine(&self) -> &Engine {
        &self.core.engine
    }

    /// Lets guests with QEMU's framing connect at `path`, any number of them.
    pub fn listen_qemu(&mut self, path: &Path) -> Result<(), DaemonError> {
        Ok(self.listeners.add(self.poll.registry(), path, of_stream)?)
    }

    /// Lets machines connect at `path` whose network card is a vhost-user device, any number of
    /// them.
    #[cfg(target_os = "linux")]
    pub fn listen_vhost_user(&mut self, path: &Path) -> Result<(), DaemonError> {
        let added = self
            .listeners
            .add(self.poll.registry(), path, |stream| Ok(Box::new(VhostUserLink::new(stream)?)));
        Ok(added?)
    }

    /// Lets guests with QEMU's framing connect at a socket that listens already. They may be anybody's:
    /// there is a limit to how many of one process there are, and of all.
    pub fn serve_crowd(&mut self, socket: UnixListener) -> Result<(), DaemonError> {
        let added = self.listeners.adopt(self.poll.registry(), socket, None, of_stream);
        self.crowd = Some(Crowd::default());
        added.map_err(DaemonError::io("cannot poll a listener"))
    }

    /// Lets guests exchange frames with the datagram socket at `path`, each from a socket with a
    /// path of its own.
    pub fn listen_dgram(&mut self, path: &Path) -> Result<(), DaemonError> {
        let (socket, socket_path) = unix_path::datagram(path)?;
        let link = DatagramLink::new(socket.into(), self.engine().config().mtu);
        let failed = |source| BindError::Io { path: path.into(), source };
        self.add_link(Box::new(link.map_err(failed)?))?;
        self.datagram_paths.push(socket_path);
        Ok(())
    }

    /// Attaches a guest, or several that share a link.
    pub fn add_link(&mut self, link: Box<dyn Link>) -> Result<(), DaemonError> {
        self.core.add_link(self.wrappers.wrap(link)).map(drop)
    }

    /// Attaches a bridge, behind which guests are that nobody hands over. It is no guest itself; the
    /// network ends with it.
    pub fn add_bridge(&mut self, link: Box<dyn Link>) -> Result<(), DaemonError> {
        let (_, port) = self.core.add_link(self.wrappers.wrap(link))?;
        self.core.bridge = Some(port);
        self.core.engine.set_uplink(port, self.core.now());
        Ok(())
    }

    /// Keeps a network that the host only carries: guests have addresses, names and their way out
    /// from it, and join so that it is there as long as they are. `warnings` is what they are told,
    /// and `cards` takes away what they leave where it does not go with them.
    pub fn keep_lan(&mut self, warnings: Vec<String>, cards: Option<Box<dyn Cards>>) {
        self.core.lan = Some(Lan { warnings, cards });
    }

    /// Writes the frames of all guests to a new file, in pcapng.
    pub fn capture(&mut self, path: &Path) -> Result<(), DaemonError> {
        let added = self.core.ports.captures.add_file(path);
        added.map_err(|source| DaemonError::Capture { path: path.into(), source })
    }

    /// Makes all links that are attached from now on bad ones, for tests.
    pub fn inject_faults(&mut self, faults: Faults) {
        self.wrappers.faults = Some(faults);
    }

    /// Opens a port of the host that leads to a guest.
    pub fn add_forward(&mut self, forward: Forward) -> Result<ForwardId, DaemonError> {
        Ok(self.core.add_forward(forward)?)
    }

    /// Serves the control API at `path`.
    pub fn listen_control(&mut self, path: &Path) -> Result<(), DaemonError> {
        self.control = Some(Control::new(self.poll.registry(), path)?);
        Ok(())
    }

    /// Lets guests join at `path` with the descriptors of their network cards.
    pub fn listen_join(&mut self, path: &Path) -> Result<(), DaemonError> {
        self.joins = Some(Joins::new(self.poll.registry(), path)?);
        Ok(())
    }

    /// Ends [`Daemon::run`] when there has been no guest for this long, and nobody has asked over
    /// the control API that the network stay.
    pub fn stop_when_idle(&mut self, grace: Duration) {
        self.idle = Some(Idle { grace, since: Some(SystemInstant::now()) });
    }

    /// Keeps addresses and names for guests. To be called before leases are taken over.
    pub fn reserve(&mut self, reservations: Vec<Reservation>) {
        self.core.reserve(reservations);
    }

    /// Calls `handler` when `fd` becomes readable. It is told once for each time that something
    /// arrives, so it has to read all there is.
    pub fn watch<F: AsFd + 'static>(
        &mut self,
        fd: F,
        handler: impl FnMut(&F) -> Next + 'static,
    ) -> Result<(), DaemonError> {
        let added = self.watches.add(self.poll.registry(), fd, handler);
        added.map_err(DaemonError::io("cannot poll a descriptor"))
    }

    /// Makes SIGTERM, SIGINT and SIGHUP end [`Daemon::run`].
    pub fn stop_on_signals(&mut self) -> Result<(), DaemonError> {
        let pipe = signals::termination().map_err(DaemonError::io("cannot handle signals"))?;
        self.watch(pipe, |pipe| if signals::came(pipe) { Next::Stop } else { Next::Continue })
    }

    /// Serves the network until a handler or a signal stops it; then resets what is left of its
    /// flows.
    pub fn run(&mut self) -> Result<(), DaemonError> {
        let mut events = Events::with_capacity(EVENTS);
        let mut finish_by = None;
        resident::let_code_go();
        self.core.tick();
        loop {
            let now = self.core.end_pass();
            let deadline = match finish_by {
                Some(_) if self.core.is_settled() => Some(Instant::ZERO),
                _ => [self.next_timeout(), finish_by].into_iter().flatten().min(),
            };
            let timeout = self.alarm.wait(deadline, now);
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    self.core.tick();
                    continue;
                }
                Err(e) => return Err(DaemonError::io("cannot poll")(e)),
            }
            self.core.tick();
            let mut next = Next::Continue;
            for event in &events {
                next = next.max(self.handle(event));
            }
            self.handle_timeout();
            self.core.work();
            if let Some(control) = &mut self.control {
                control.give_resolved(self.poll.registry(), &mut self.core);
            }
            self.tunnels.work(&mut self.core);
            let settled = events.is_empty() && self.core.is_settled();
            match (next, finish_by) {
                (Next::Stop, _) => break,
                (_, Some(by)) if settled || by <= self.core.now() => break,
                (Next::Finish, None) => finish_by = Some(self.core.now() + FINISH),
                _ => {}
            }
            self.save();
            if self.is_over() {
                break;
            }
        }
        if !self.is_used()
            && let Some(additions) = &mut self.additions
        {
            additions.finish();
        }
        self.core.shutdown();
        if let Some(joins) = &mut self.joins {
            joins.hang_up();
        }
        if let Some(leases) = self.leases.take() {
            leases.finish(&self.core.engine, self.core.clock.now());
        }
        if let Some(returning) = self.returning.take() {
            returning.finish();
        }
        Ok(())
    }

    fn handle(&mut self, event: &Event) -> Next {
        let registry = self.poll.registry();
        match Owner::of(event.token()) {
            Some(Owner::Engine(token)) => self.core.host_event(token, event),
            Some(Owner::Host) => self.core.internal_event(event),
            Some(Owner::Link(index)) => self.core.ports.event(index, event),
            Some(Owner::Listener(index)) => self.accept(index),
            Some(Owner::Watch(index)) => return self.watches.handle(index),
            Some(Owner::ControlListener) => {
                if let Some(control) = &mut self.control {
                    control.accept(registry);
                }
            }
            Some(Owner::Control(index)) => {
                if let Some(control) = &mut self.control
                    && let Some(handed) =
                        control.handle(registry, index, &mut self.core, &mut self.tunnels)
                {
                    self.take_over(handed);
                }
            }
            Some(Owner::JoinListener) => {
                if let Some(joins) = &mut self.joins {
                    joins.accept(registry);
                }
            }
            Some(Owner::Join(index)) => {
                if let Some(joins) = &mut self.joins {
                    joins.handle(registry, index, &mut self.core, &mut self.wrappers);
                }
            }
            Some(Owner::TunnelListener(index)) => self.tunnels.accept(index, &mut self.core),
            Some(Owner::Tunnel(index)) => self.tunnels.handle(index, event, &mut self.core),
            Some(Owner::TunnelRelay(index)) => self.tunnels.handle_relay(index, &mut self.core),
            Some(Owner::Capture(index)) => self.core.ports.captures.handle(index),
            Some(Owner::Alarm) | None => {}
        }
        Next::Continue
    }

    /// Whether somebody is there, or wants the network without being there.
    fn is_used(&self) -> bool {
        let joining = self.joins.as_ref().is_some_and(|joins| joins.len() > 0);
        let links = self.core.ports.len();
        joining || self.core.held || !self.tunnels.is_empty() || links > self.bridges()
    }

    fn bridges(&self) -> usize {
        usize::from(self.core.bridge.is_some())
    }

    /// Whether there has been nobody for long enough.
    fn is_over(&mut self) -> bool {
        if self.core.ports.len() < self.bridges() {
            return true;
        }
        let used = self.is_used();
        let Some(idle) = &mut self.idle else { return false };
        if used {
            idle.since = None;
            return false;
        }
        idle.since.get_or_insert_with(SystemInstant::now).elapsed() >= idle.grace
    }

    fn accept(&mut self, index: u32) {
        while let Some((stream, attach)) = self.listeners.accept(index) {
            // A guest that cannot be served sees its connection close.
            let peer = peer::process(&stream);
            if let Some(crowd) = &mut self.crowd {
                match crowd.admit(peer, &self.core.ports) {
                    Admission::Free => {}
                    Admission::InPlaceOf(link) => self.core.close_link(link.index),
                    Admission::Refused => continue,
                }
            }
            let Ok(link) = attach(stream) else { continue };
            let added = self.core.add_link(self.wrappers.wrap(link));
            if let (Some(crowd), Ok((link, _))) = (&mut self.crowd, added) {
                crowd.add(link, peer);
            }
        }
    }

    /// Goes on with a connection that began at the control API.
    fn take_over(&mut self, Handed { stream, early, to }: Handed) {
        match to {
            Handover::Stream(guest) => {
                self.tunnels.connect(stream.into(), early, guest, &mut self.core);
            }
            Handover::Link => {
                // As at the listeners, who cannot be served sees the connection close.
                let link = StreamLink::after(stream.into(), Framing::Hyperkit, early);
                if let Ok(link) = link {
                    let _ = self.add_link(Box::new(link));
                }
            }
            Handover::Capture(filter) => {
                let captures = &mut self.core.ports.captures;
                let head = Response::head_of_stream("application/x-pcapng");
                let _ = captures.add_reader(self.poll.registry(), stream, filter, &head);
            }
        }
    }

    /// When there is something to do even without an event; a time in the past means at once.
    fn next_timeout(&self) -> Option<Instant> {
        let control = self.control.as_ref().and_then(Control::next_timeout);
        let joins = self.joins.as_ref().and_then(Joins::next_timeout);
        let over = self.idle.and_then(|idle| Some(idle.since? + idle.grace));
        let tunnels = self.tunnels.next_timeout();
        let captures = self.core.ports.captures.next_timeout();
        let additions = self.additions.as_ref().and_then(AdditionsFile::next_timeout);
        let listeners = self.listeners.next_timeout();
        let own = [control, joins, over, tunnels, captures, additions, listeners];
        let own = own.into_iter().flatten().min();
        let own = own.map(|at| self.core.clock.at(at));
        let leases = self.leases.as_ref().and_then(|l| l.next_timeout(&self.core.engine));
        let returning = self.returning.as_ref().and_then(|r| r.next_timeout(&self.core.engine));
        [own, leases, returning, self.core.next_timeout()].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self) {
        if let Some(control) = &mut self.control
            && control.next_timeout().is_some()
        {
            control.handle_timeout(self.poll.registry(), SystemInstant::now());
        }
        if let Some(joins) = &mut self.joins
            && joins.next_timeout().is_some()
        {
            joins.handle_timeout(self.poll.registry(), SystemInstant::now());
        }
        if self.tunnels.next_timeout().is_some() {
            self.tunnels.handle_timeout(&mut self.core, SystemInstant::now());
        }
        if self.core.ports.captures.next_timeout().is_some() {
            self.core.ports.captures.handle_timeout(SystemInstant::now());
        }
        if let Some(additions) = &mut self.additions
            && additions.next_timeout().is_some()
        {
            additions.handle_timeout(&mut self.core, SystemInstant::now());
        }
        if self.listeners.next_timeout().is_some()
            && let Some(index) = self.listeners.rested(SystemInstant::now())
        {
            self.accept(index);
        }
    }
}

/// The link of a guest with QEMU's framing.
fn of_stream(stream: UnixStream) -> io::Result<Box<dyn Link>> {
    Ok(Box::new(StreamLink::new(stream.into())?))
}
