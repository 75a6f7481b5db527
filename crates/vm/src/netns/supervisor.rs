//! The caller's own process while the command runs. To the shell that started it, it behaves as
//! the command does: it stops when the command stops, goes on with it, passes on what it is sent,
//! and keeps the network alive beside it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::channel::{Channel, Message};
use super::network::{Network, Serve};
use super::sys::{self, Change, Signals};
use super::terminal::Terminal;
use super::{Ending, tell};

/// A network process that lived shorter than this is not started again.
const TOO_SHORT: Duration = Duration::from_secs(1);

pub(super) struct Watch<'a> {
    init: i32,
    signals: Signals,
    terminal: Terminal,
    card: OwnedFd,
    serve: Serve<'a>,
    network: Option<Network>,
    network_started: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        init: i32,
        terminal: Terminal,
        card: OwnedFd,
        network: Network,
        serve: Serve<'a>,
    ) -> io::Result<Self> {
        Ok(Self {
            init,
            signals: Signals::new()?,
            terminal,
            card,
            serve,
            network: Some(network),
            network_started: Instant::now(),
        })
    }

    /// Waits for the command's end, and until nothing of the guest is left.
    pub(super) fn see_out(mut self, line: &Channel) -> Ending {
        let ending = loop {
            if let Some(ending) = self.pass(line) {
                break ending;
            }
        };
        sys::reap(self.init);
        self.terminal.reclaim();
        if let Some(network) = self.network.take() {
            network.finish();
        }
        ending
    }

    /// Waits for something to happen and deals with it.
    fn pass(&mut self, line: &Channel) -> Option<Ending> {
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(line, PollFlags::IN)];
        if let Some(network) = &self.network {
            fds.push(PollFd::new(network, PollFlags::IN));
        }
        let _ = rustix::event::poll(&mut fds, None);
        self.pass_signals_on(line);
        self.look_after_network();
        self.hear_init(line)
    }

    /// True if the command is to go on, should it have been stopped.
    fn pass_signals_on(&self, line: &Channel) -> bool {
        let mut continued = false;
        while let Some(signal) = self.signals.next() {
            continued |= signal == libc::SIGCONT;
            if signal != libc::SIGCHLD {
                // Changes nothing, but takes the lock under which the kernel sends a signal to a
                // group: after it, init has been sent the signal too if it went to the group.
                sys::touch_process_group();
                let _ = line.send(&Message::Signal(signal));
            }
        }
        continued
    }

    /// Hears what init has to say.
    fn hear_init(&mut self, line: &Channel) -> Option<Ending> {
        let mut stopped = None;
        loop {
            match line.try_recv() {
                Ok(Some((Message::Command(Change::Exited(code)), _))) => {
                    return Some(Ending::Exited(code));
                }
                Ok(Some((Message::Command(Change::Killed(signal)), _))) => {
                    return Some(Ending::Killed(signal));
                }
                Ok(Some((Message::Command(Change::Stopped(signal)), _))) => stopped = Some(signal),
                Ok(Some((Message::Command(Change::Continued), _))) => stopped = None,
                Ok(Some(_)) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // Init is gone, killed from outside, and the kernel has killed the command.
                Ok(None) | Err(_) => return Some(Ending::Killed(libc::SIGKILL)),
            }
        }
        if let Some(signal) = stopped
            && !self.pass_signals_on(line)
        {
            self.stop(signal);
        }
        None
    }

    /// Stops as the command has stopped, so that the caller sees it, and goes on when continued.
    fn stop(&self, signal: i32) {
        let foreground = self.terminal.held_by_guest(self.init);
        let _ = sys::suffer(signal);
        if let Some(group) = foreground {
            self.terminal.hand_to(group);
        }
    }

    /// Starts the network again if its process has died: the guest keeps its card, and connections
    /// that the new process does not know are reset as they go on.
    fn look_after_network(&mut self) {
        let Some(why) = self.network.as_ref().and_then(Network::ended) else { return };
        self.network = None;
        let restarted = if self.network_started.elapsed() < TOO_SHORT {
            Err("at its start".to_owned())
        } else {
            self.card
                .try_clone()
                .and_then(|card| Network::start(card, self.serve))
                .map_err(|e| e.to_string())
                .and_then(|network| network.wait_ready().map(|()| network))
        };
        match restarted {
            Ok(network) => {
                tell(&format!("{why}; another has taken its place"));
                self.network = Some(network);
                self.network_started = Instant::now();
            }
            Err(again) => {
                tell(&format!("{why}; the guest has no network any more ({again})"));
            }
        }
    }
}
