//! What is so about the machine at the moment, for whoever asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::info::{Health, Info, Network, Port};
use crate::ports::{Card, MAX_NOTE, MAX_NOTES, Ports};

/// Most addresses of a card that are told of.
const MAX_SEEN: usize = 16;

/// Shared between the threads.
#[derive(Debug, Default)]
pub(super) struct State {
    info: Mutex<Info>,
    ports: Mutex<Option<Ports>>,
    /// As the machine's agent tells of them.
    cards: Mutex<Vec<Card>>,
    notes: Mutex<Vec<String>>,
    /// Why the machine stands still.
    paused: Mutex<Option<String>>,
    over: AtomicBool,
}

impl State {
    fn info(&self) -> MutexGuard<'_, Info> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> MutexGuard<'_, Option<Ports>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cards(&self) -> MutexGuard<'_, Vec<Card>> {
        self.cards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self) -> Info {
        let ports = self.ports().as_ref().map(Ports::list).unwrap_or_default();
        let ports = ports.into_iter().map(|state| Port {
            host: state.port.local.to_string(),
            guest: state.port.guest_text(),
            reverse: state.port.reverse,
            problem: state.problem,
        });
        let mut info = Info { ports: ports.collect(), ..self.info().clone() };
        info.problems.extend(self.notes().iter().cloned());
        if let Some(why) = &*self.paused.lock().unwrap_or_else(PoisonError::into_inner) {
            info.problems.push(why.clone());
            if info.health == Health::Ready {
                info.health = Health::Degraded;
            }
        }
        let cards = self.cards();
        // Where vmlan gives no addresses, the machine is believed.
        for network in info.networks.iter_mut().filter(|network| network.addresses.is_empty()) {
            let own = cards.iter().filter(|card| card.mac == network.mac);
            network.addresses =
                own.flat_map(|card| &card.addresses).take(MAX_SEEN).copied().collect();
        }
        info
    }

    pub(super) fn set_ports(&self, ports: Ports) {
        *self.ports() = Some(ports);
    }

    /// The machine is gone: nobody needs its networks any more.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
        *self.ports() = None;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The first network has a new daemon.
    pub(super) fn network_is_new(&self) {
        if let Some(ports) = &*self.ports() {
            ports.network_is_new();
        }
    }

    pub(super) fn ssh_port(&self) -> u16 {
        self.info().ssh_local_port
    }

    pub(super) fn health(&self) -> Health {
        self.info().health
    }

    pub(super) fn set_ssh_port(&self, port: u16) {
        self.info().ssh_local_port = port;
    }

    pub(super) fn set_driver(&self, pid: u32, accel: &str) {
        let mut info = self.info();
        info.driver_pid = pid;
        info.accel = accel.into();
    }

    pub(super) fn set_size(&self, cpus: u32, memory: u64) {
        let mut info = self.info();
        (info.cpus, info.memory) = (cpus, memory);
    }

    pub(super) fn add_network(&self, network: Network) {
        self.info().networks.push(network);
    }

    pub(super) fn set_problem(&self, card: usize, problem: Option<String>) {
        let mut info = self.info();
        if let Some(network) = info.networks.get_mut(card) {
            network.problem = problem;
        }
        info.judge();
    }

    /// What people should know as long as it is so.
    pub(super) fn set_note(&self, note: Option<String>) {
        self.info().problems = note.into_iter().collect();
    }

    pub(super) fn set_paused(&self, why: Option<String>) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(super) fn set_cards(&self, cards: Vec<Card>) {
        *self.cards() = cards;
    }

    /// What the machine says of itself, which may be anything. Returns what it has not said before.
    pub(super) fn set_notes(&self, notes: &[String]) -> Vec<String> {
        let shown = |note: &String| note.escape_debug().take(MAX_NOTE).collect::<String>();
        let notes: Vec<_> = notes.iter().take(MAX_NOTES).map(shown).collect();
        let before = std::mem::replace(&mut *self.notes(), notes.clone());
        notes.into_iter().filter(|note| !before.contains(note)).collect()
    }

    pub(super) fn set_ready(&self) {
        let mut info = self.info();
        info.health = Health::Ready;
        info.judge();
        drop(info);
        if let Some(ports) = &*self.ports() {
            ports.machine_is_ready();
        }
    }

    pub(super) fn set_stopping(&self) {
        self.info().health = Health::Stopping;
    }
}

impl Info {
    /// Ready or degraded.
    fn judge(&mut self) {
        if matches!(self.health, Health::Ready | Health::Degraded) {
            let missing = self.networks.iter().any(|network| network.problem.is_some());
            self.health = if missing { Health::Degraded } else { Health::Ready };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_card_has_the_addresses_that_the_machine_tells_where_vmlan_gives_none() {
        let state = State::default();
        let given: Vec<IpAddr> = vec![[192, 168, 5, 15].into()];
        for (mac, addresses) in
            [("52:55:55:00:00:01", given.clone()), ("52:55:55:00:00:02", vec![])]
        {
            state.add_network(Network {
                network: "socket:/n".into(),
                interface: "lima0".into(),
                mac: mac.into(),
                addresses,
                problem: None,
            });
        }
        let many = (0..100).map(|n| [10, 9, 0, n].into()).collect();
        let card = |mac: &str, addresses| Card { mac: mac.into(), addresses };
        let known = |state: &State| -> Vec<Vec<IpAddr>> {
            state.snapshot().networks.into_iter().map(|network| network.addresses).collect()
        };
        state.set_cards(vec![card("52:55:55:00:00:01", vec![[1, 1, 1, 1].into()])]);
        assert_eq!(known(&state), [given.clone(), vec![]]);
        state.set_cards(vec![card("52:55:55:00:00:02", vec![[10, 9, 0, 2].into()])]);
        assert_eq!(known(&state), [given.clone(), vec![[10, 9, 0, 2].into()]]);
        state.set_cards(vec![card("52:55:55:00:00:02", many)]);
        assert_eq!(known(&state)[1].len(), MAX_SEEN);
        state.set_cards(Vec::new());
        assert_eq!(known(&state), [given, vec![]]);
    }

    #[test]
    fn what_the_machine_notes_is_shown_bounded_and_told_once() {
        let state = State::default();
        state.set_note(Some("ours".into()));
        let notes = ["a\u{1b}[2J".to_owned(), "b".repeat(10 * MAX_NOTE)];
        let new = state.set_notes(&notes);
        assert_eq!(new, [r"a\u{1b}[2J".to_owned(), "b".repeat(MAX_NOTE)]);
        assert_eq!(state.set_notes(&notes), Vec::<String>::new());
        assert_eq!(state.snapshot().problems, [vec!["ours".to_owned()], new].concat());
        state.set_notes(&vec!["x".into(); 10 * MAX_NOTES]);
        assert_eq!(state.snapshot().problems.len(), 1 + MAX_NOTES);
        state.set_notes(&[]);
        assert_eq!(state.snapshot().problems, ["ours"]);
    }

    #[test]
    fn a_network_that_is_missing_degrades_a_machine_that_is_ready() {
        let state = State::default();
        state.add_network(Network {
            network: "default".into(),
            interface: "eth0".into(),
            mac: String::new(),
            addresses: Vec::new(),
            problem: None,
        });
        state.set_problem(0, Some("gone".into()));
        assert_eq!(state.health(), Health::Booting);
        state.set_ready();
        assert_eq!(state.health(), Health::Degraded);
        state.set_problem(0, None);
        assert_eq!(state.health(), Health::Ready);
        state.set_stopping();
        state.set_problem(0, Some("gone".into()));
        assert_eq!(state.health(), Health::Stopping);
    }
}
