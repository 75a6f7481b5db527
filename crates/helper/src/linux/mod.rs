//! The helper on Linux: bridges, their ports, the packet filter and the kernel's forwarding. Each
//! run does one thing under one lock, leaves in a file what has to be undone, and ends.

mod caller;
mod firewall;
mod interfaces;
mod lan;
mod netlink;
mod network;
mod privilege;
mod state;
mod sysctl;

use std::fmt::Display;
use std::os::fd::AsFd;

use crate::args::{Bridge, Command, Network};
use caller::{Caller, Line};
use network::{Ready, Request};
use state::Store;

pub(super) fn run(command: &Command) -> Result<(), String> {
    let caller = Caller::find()?;
    privilege::settle()?;
    privilege::drop_all_else()?;
    match command {
        Command::Start { bridge, network } => start(caller, bridge, network),
        Command::Stop { bridge } => network::stop(&Store::open()?, caller, bridge),
        Command::Attach { bridge } => attach(caller, bridge),
    }
}

/// Adds to an error what could not be done.
fn doing<E: Display>(what: impl Into<String>) -> impl FnOnce(E) -> String {
    let what = what.into();
    move |e| format!("cannot {what}: {e}")
}

/// Makes the network. With the answer comes a TAP on it, where there are addresses and names to serve.
fn start(caller: Caller, bridge: &Bridge, network: &Network) -> Result<(), String> {
    let line = Line::open(caller)?;
    // Nobody is to wait for a caller that does not listen.
    match network::start(&Store::open()?, caller, bridge, network)? {
        Ready::Serve(tap) => line.tell("ready", Some(tap.as_fd())),
        Ready::Lan => line.tell("lan", None),
        Ready::Beside => line.tell("beside", None),
    }
}

/// Gives a guest a card. `veth NAME MAC` comes with the guest's network namespace, in which the card
/// is made unless it is there already; `tap MAC` is answered by a descriptor; `gone MAC` takes away
/// what a machine has left.
fn attach(caller: Caller, bridge: &Bridge) -> Result<(), String> {
    let line = Line::open(caller)?;
    let (text, fd) = line.hear()?;
    match Request::parse(&text, fd)? {
        Request::Attach(card) => {
            let (text, tap) = network::attach(&Store::open()?, caller, bridge, &card)?;
            line.tell(text, tap.as_ref().map(AsFd::as_fd))
        }
        Request::Gone { mac } => {
            network::detach(&Store::open()?, caller, bridge, mac)?;
            line.tell("gone", None)
        }
    }
}
