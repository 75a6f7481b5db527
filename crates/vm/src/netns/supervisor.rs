//! The caller's own process while the command runs. To the shell that started it, it behaves as
//! the command does: it stops when the command stops, goes on with it, passes on what it is sent,
//! and keeps the network alive beside it.

use std::io;

use rustix::event::{PollFd, PollFlags};

use super::Ending;
use super::channel::{Channel, Message};
use super::network::{self, Place, Serve};
use super::sys::{self, Change, Signals};
use super::terminal::Terminal;

pub(super) struct Watch<'a> {
    init: i32,
    signals: Signals,
    terminal: Terminal,
    places: Vec<Place>,
    serve: Serve<'a>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        init: i32,
        terminal: Terminal,
        places: Vec<Place>,
        serve: Serve<'a>,
    ) -> io::Result<Self> {
        Ok(Self { init, signals: Signals::new()?, terminal, places, serve })
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
        network::finish(self.places);
        ending
    }

    /// Waits for something to happen and deals with it.
    fn pass(&mut self, line: &Channel) -> Option<Ending> {
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(line, PollFlags::IN)];
        let places = self.places.iter().filter_map(Place::fd);
        fds.extend(places.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let _ = rustix::event::poll(&mut fds, None);
        self.pass_signals_on(line);
        for place in &mut self.places {
            place.look_after(self.serve);
        }
        let own = self.places.iter().filter_map(Place::pid).chain([self.init]);
        sys::reap_others(&own.collect::<Vec<_>>());
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
}
