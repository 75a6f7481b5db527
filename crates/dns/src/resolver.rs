//! The resolver with its sockets, files and threads. One owner, who tells it of events and of the
//! time and takes the answers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::Registry;
use mio::event::Event;

use crate::answers::Answers;
use crate::core::{Asker, Client, Core, Step};
use crate::hosts::Hosts;
use crate::ipv6;
use crate::name;
use crate::names::Names;
use crate::native::Native;
use crate::nsswitch::{Machine, Sources};
use crate::servers::{ResolvConf, Servers};
use crate::streams::{NoRoom, Streams};
use crate::token::{Class, Key};
use crate::upstream::{Datagrams, Poll, Upstream};
use crate::watched::Watched;

/// How often the machine's files are looked at while there are queries, and while there are none.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_IDLE: Duration = Duration::from_secs(5);

/// Who knows the names that are not the network's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The machine, as its programs find them.
    Host(Files),
    /// The nameservers of a resolv.conf(5) alone. macOS writes there those of its first service.
    ResolvConf(PathBuf),
    /// These nameservers alone; the public ones if there are none.
    Servers(Vec<SocketAddr>),
}

/// Where the machine's programs look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
    pub nsswitch: PathBuf,
}

/// Whether outside names have IPv6 addresses. The network's own always have theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6 {
    /// When this machine has a global one itself.
    #[default]
    Auto,
    Always,
    Never,
}

/// How the resolver behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub source: Source,
    pub names: Names,
    pub ipv6: Ipv6,
}

#[derive(Debug)]
pub struct Resolver {
    core: Core,
    poll: Poll,
    upstream: Upstream,
    streams: Streams,
    native: Native,
    ipv6: Ipv6,
    watch: Option<Watch>,
    started: Instant,
    /// When the files were last looked at since then: the first query has them looked at anew.
    looked: Option<Instant>,
    /// Goes up when the search domains change.
    search_changes: u32,
    answers: Answers<u64>,
}

/// The machine's files.
#[derive(Debug)]
struct Watch {
    resolv_conf: Watched,
    others: Option<(Watched, Watched)>,
}

impl Resolver {
    /// Tokens under which sockets are registered have the bits of `base` set, which are among the
    /// upper six, and nothing else there.
    pub fn new(registry: Registry, base: usize, options: Options, now: Instant) -> Self {
        let watch = Watch::new(&options.source);
        let servers = match options.source {
            Source::Servers(servers) => Servers::given(servers),
            _ => Servers::given(Vec::new()),
        };
        let mut resolver = Self {
            core: Core::new(options.names, servers),
            poll: Poll::new(registry, base),
            upstream: Upstream::new(),
            streams: Streams::default(),
            native: Native::default(),
            ipv6: options.ipv6,
            watch,
            started: now,
            looked: None,
            search_changes: 0,
            answers: Answers::default(),
        };
        resolver.look();
        resolver
    }

    /// The network's own names, to be changed at any time.
    pub fn names_mut(&mut self) -> &mut Names {
        &mut self.core.names
    }

    /// Whether outside names have IPv6 addresses for a guest; `None` as for all.
    pub fn set_ipv6_of(&mut self, guest: u32, ipv6: Option<bool>) {
        match ipv6 {
            Some(ipv6) => self.core.ipv6_of.insert(guest, ipv6),
            None => self.core.ipv6_of.remove(&guest),
        };
    }

    /// Whether a guest's questions about outside names go to the nameservers alone, although the
    /// machine's own way counts for others.
    pub fn set_plain(&mut self, guest: u32, plain: bool) {
        if plain {
            self.core.plain.insert(guest);
        } else {
            self.core.plain.remove(&guest);
        }
    }

    /// The machine's search domains.
    pub fn search(&self) -> &[String] {
        self.core.servers.search()
    }

    /// Goes up whenever [`Resolver::search`] changes.
    pub fn search_changes(&self) -> u32 {
        self.search_changes
    }

    /// A message of a client. Its answer comes with `client`'s number, at most once; `guest` is on
    /// whose account it is. False if it is a message that nobody answers.
    pub fn query(&mut self, client: u64, guest: u32, message: &[u8], now: Instant) -> bool {
        self.ask(Client::Datagram(client), guest, message, now)
    }

    /// The same for a client that takes answers of any length, as over TCP.
    pub fn call(&mut self, client: u64, guest: u32, message: &[u8], now: Instant) -> bool {
        self.ask(Client::Call(client), guest, message, now)
    }

    fn ask(&mut self, client: Client, guest: u32, message: &[u8], now: Instant) -> bool {
        self.refresh(now, LOOK);
        let asked = self.core.query(Asker { client, guest }, message, now);
        self.work(now);
        asked
    }

    /// Serves a client on a stream, which must not block.
    pub fn open_stream(&mut self, fd: OwnedFd, guest: u32, now: Instant) -> Result<(), NoRoom> {
        self.streams.open(&mut self.poll, fd, guest, now)
    }

    /// An event of a socket that the resolver has registered.
    pub fn handle(&mut self, lanes: &mut dyn Datagrams, event: &Event, now: Instant) {
        let key = Key::of(event.token());
        match key.class {
            Class::Udp | Class::Tcp => {
                let Self { core, poll, upstream, .. } = self;
                upstream.handle(core, poll, lanes, (key, event), now);
            }
            Class::Stream => {
                self.refresh(now, LOOK);
                self.streams.handle(&mut self.core, key, now);
            }
            Class::Native => {
                for (number, found) in self.native.results(key) {
                    self.core.found(number, &found, now);
                }
            }
        }
        self.work(now);
    }

    /// Whether [`Resolver::flush`] has something to do.
    pub fn has_unsent(&self) -> bool {
        self.upstream.has_unsent()
    }

    /// Sends what is to be sent. To be called after every event and query, or after a few.
    pub fn flush(&mut self, lanes: &mut dyn Datagrams, now: Instant) {
        let Self { core, poll, upstream, .. } = self;
        upstream.flush(core, poll, lanes, now);
        self.work(now);
    }

    pub fn handle_timeout(&mut self, lanes: &mut dyn Datagrams, now: Instant) {
        if now.saturating_duration_since(self.looked.unwrap_or(self.started)) >= LOOK_IDLE {
            self.refresh(now, LOOK_IDLE);
        }
        if !self.core.questions.is_empty() {
            self.refresh(now, LOOK);
        }
        let Self { core, poll, upstream, streams, .. } = self;
        upstream.handle_timeout(core, poll, lanes, now);
        core.expire_lookups(now);
        streams.handle_timeout(core, now);
        self.work(now);
        self.flush(lanes, now);
    }

    /// When [`Resolver::handle_timeout`] has to be called next; a time in the past means at once.
    pub fn next_timeout(&self) -> Option<Instant> {
        let look = self.watch.as_ref().map(|_| self.looked.unwrap_or(self.started) + LOOK_IDLE);
        let streams = self.streams.next_timeout();
        let lookups = self.core.lookups.next_timeout();
        [self.upstream.next_timeout(), streams, lookups, look].into_iter().flatten().min()
    }

    /// Whether there are answers to be taken.
    pub fn is_unfinished(&self) -> bool {
        !self.answers.is_empty()
    }

    /// What has been answered since the last call, to be cleared when it is taken.
    pub fn answers(&mut self) -> &mut Answers<u64> {
        &mut self.answers
    }

    /// Does what the core wants done, and gives answers to those on streams.
    fn work(&mut self, now: Instant) {
        let Self { core, poll, upstream, streams, native, answers, .. } = self;
        loop {
            while let Some(step) = core.steps.pop() {
                match step {
                    Step::Ask(index) => upstream.ask(core, poll, index, now),
                    Step::Look(index) => {
                        let lookup = core.lookups.running.get(index);
                        let started = lookup.is_some_and(|lookup| {
                            native.start(poll, index, lookup.guest, lookup.wanted.clone())
                        });
                        if !started {
                            core.found(index, &crate::core::Found::Failed, now);
                        }
                    }
                }
            }
            if core.answers.is_empty() {
                return;
            }
            for answer in core.answers.iter() {
                match answer.to {
                    Client::Datagram(client) | Client::Call(client) => {
                        answers.write(client, answer.origin, |out| {
                            out.extend_from_slice(answer.message);
                            true
                        });
                    }
                    Client::Stream { index, generation } => {
                        streams.answer(index, generation, &answer);
                    }
                }
            }
            core.answers.clear();
            streams.go_on(core, now);
        }
    }

    /// Looks at the machine's files, if that is longer ago than `after`.
    fn refresh(&mut self, now: Instant, after: Duration) {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < after) {
            return;
        }
        self.looked = Some(now);
        self.look();
    }

    fn look(&mut self) {
        let Self { core, watch, .. } = self;
        let mut changed = false;
        if let Some(watch) = watch {
            if let Some(text) = watch.resolv_conf.changed() {
                let servers = Servers::new(ResolvConf::parse(&text));
                self.search_changes += u32::from(servers.search() != core.servers.search());
                core.servers = servers;
                changed = true;
            }
            if let Some((hosts, nsswitch)) = &mut watch.others {
                let host = core.host.get_or_insert_default();
                if let Some(text) = hosts.changed() {
                    host.hosts = Hosts::parse(&text);
                    changed = true;
                }
                if let Some(text) = nsswitch.changed() {
                    host.sources = Sources::parse(&text);
                    changed = true;
                }
                let machine =
                    Machine { hostname: hostname(), resolved: core.servers.is_resolved() };
                changed |= machine != host.machine;
                host.machine = machine;
            }
        }
        if changed {
            core.forget();
        }
        core.ipv6 = match self.ipv6 {
            Ipv6::Always => true,
            Ipv6::Never => false,
            Ipv6::Auto => !core.servers.no_aaaa() && ipv6::is_global(),
        };
    }
}

impl Watch {
    fn new(source: &Source) -> Option<Self> {
        match source {
            Source::Host(files) => Some(Self {
                resolv_conf: Watched::new(&files.resolv_conf),
                others: Some((Watched::new(&files.hosts), Watched::new(&files.nsswitch))),
            }),
            Source::ResolvConf(path) => {
                Some(Self { resolv_conf: Watched::new(path), others: None })
            }
            Source::Servers(_) => None,
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self::Host(Files::default())
    }
}

impl Default for Files {
    fn default() -> Self {
        let path = |path: &str| Path::new(path).into();
        Self {
            resolv_conf: path("/etc/resolv.conf"),
            hosts: path("/etc/hosts"),
            nsswitch: path("/etc/nsswitch.conf"),
        }
    }
}

/// The machine's name in wire form; empty if it is none.
fn hostname() -> Box<[u8]> {
    let uname = rustix::system::uname();
    let text = uname.nodename().to_string_lossy();
    name::from_text(&text).unwrap_or_default()
}
