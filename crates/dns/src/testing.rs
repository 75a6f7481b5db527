//! The resolver's core between a client and a nameserver that are whatever the caller says, in a
//! time of its own: for tests and fuzzers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::answers::Origin;
use crate::core::{Asker, Client, Core, Found, HostFiles, Step, Wanted};
use crate::hosts::Hosts;
use crate::message;
use crate::names::Names;
use crate::nsswitch::{Machine, Sources};
use crate::servers::Servers;

/// What the core left to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Todo {
    /// A question for the nameserver.
    Ask(usize, Vec<u8>),
    /// A lookup by the machine's functions.
    Look(usize),
}

/// The core in a rig.
#[derive(Debug)]
pub struct Rig {
    pub(crate) core: Core,
    now: Instant,
    pub todo: VecDeque<Todo>,
    /// Who asked, what the answer is and where it came from.
    pub answers: VecDeque<(u64, Vec<u8>, Origin)>,
}

pub const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 53)), 53);

impl Rig {
    pub fn new(names: Names) -> Self {
        Self {
            core: Core::new(names, Servers::given(vec![SERVER])),
            now: Instant::now(),
            todo: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    /// With these files of the machine's.
    pub fn with_host(mut self, hosts: &str, nsswitch: &str) -> Self {
        self.core.host = Some(HostFiles {
            hosts: Hosts::parse(hosts),
            sources: Sources::parse(nsswitch),
            machine: Machine::default(),
        });
        self
    }

    pub fn set_ipv6(&mut self, ipv6: bool) {
        self.core.ipv6 = ipv6;
    }

    pub fn set_plain(&mut self, guest: u32) {
        self.core.plain.insert(guest);
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// A message over UDP, or as over TCP.
    pub fn query(&mut self, client: u64, guest: u32, message: &[u8], udp: bool) -> bool {
        let client = if udp { Client::Datagram(client) } else { Client::Call(client) };
        let asked = self.core.query(Asker { client, guest }, message, self.now);
        self.collect();
        asked
    }

    /// What the nameserver says to a question, if it is an answer to that.
    pub fn reply(&mut self, number: usize, reply: &[u8], tcp: bool) -> bool {
        let Some(question) = self.core.questions.get(number) else { return false };
        let taken = message::answers(reply, &question.message) && message::is_sound(reply);
        if taken {
            self.core.replied(number, reply, SERVER, tcp, self.now);
            self.collect();
        }
        taken
    }

    /// No nameserver answers.
    pub fn fail(&mut self, number: usize) {
        self.core.failed(number);
        self.collect();
    }

    /// The machine's functions have found these, or nothing, or could not look.
    pub fn found(&mut self, number: usize, addresses: Option<&[&str]>) {
        let found = match addresses {
            Some(list) => {
                let list = list.iter().filter_map(|text| text.parse().ok()).collect();
                Found::Addresses(list)
            }
            None => Found::Nothing,
        };
        self.core.found(number, &found, self.now);
        self.collect();
    }

    /// What the machine's functions are asked.
    pub fn wanted(&self, number: usize) -> Option<String> {
        match &self.core.lookups.running.get(number)?.wanted {
            Wanted::Addresses(name) | Wanted::Record(name, _) => Some(name.clone()),
            Wanted::Name(address) => Some(address.to_string()),
        }
    }

    /// Whether nobody waits for anything, and nothing is held for anybody.
    pub fn is_idle(&self) -> bool {
        self.core.questions.is_empty() && self.core.is_idle()
    }

    fn collect(&mut self) {
        while let Some(step) = self.core.steps.pop() {
            self.todo.push_back(match step {
                Step::Ask(number) => {
                    let message = self.core.questions.get(number).map(|q| q.message.clone());
                    Todo::Ask(number, message.unwrap_or_default())
                }
                Step::Look(number) => Todo::Look(number),
            });
        }
        for answer in self.core.answers.iter() {
            if let Client::Datagram(client) | Client::Call(client) = answer.to {
                self.answers.push_back((client, answer.message.to_vec(), answer.origin));
            }
        }
        self.core.answers.clear();
    }
}
