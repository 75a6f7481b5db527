//! A machine's card on a network with a daemon: a pair of datagram sockets, one end QEMU's, the other
//! lent to the daemon and, when that one dies, to its successor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt;
use vmlan_netd::managed::{self, Hello, Joined, Welcome};

use super::state::State;
use super::{Lan, Message, spawn};

/// Between attempts to have a network back.
const AGAIN: Duration = Duration::from_secs(2);

/// A card that has joined.
#[derive(Debug)]
pub(super) struct Joining {
    lan: Arc<dyn Lan>,
    hello: Hello,
    /// Not of a card on a bridge.
    ours: Option<OwnedFd>,
    joined: Joined,
}

/// A pair of sockets for a card: ours, and the machine's.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), String> {
    let failed = |e: io::Error| format!("cannot make a socket: {e}");
    let (ours, theirs) = UnixDatagram::pair().map_err(failed)?;
    // Elsewhere they hold the longest frames from the start.
    if cfg!(target_os = "macos") {
        make_room(&ours).and_then(|()| make_room(&theirs)).map_err(failed)?;
    }
    Ok((ours.into(), theirs.into()))
}

/// Gives a socket buffers that the longest frames fit into. Apple's framework recommends to receive
/// into four times what is sent from.
fn make_room(socket: &UnixDatagram) -> io::Result<()> {
    const SEND: usize = 1 << 20;
    sockopt::set_socket_send_buffer_size(socket, SEND)?;
    Ok(sockopt::set_socket_recv_buffer_size(socket, 4 * SEND)?)
}

impl Joining {
    /// Joins with our end of the card, or with one that is on the network's bridge.
    pub(super) fn new(
        lan: Arc<dyn Lan>,
        hello: Hello,
        ours: Option<OwnedFd>,
    ) -> Result<Self, String> {
        let joined = join(&*lan, &hello, ours.as_ref())?;
        Ok(Self { lan, hello, ours, joined })
    }

    pub(super) fn welcome(&self) -> &Welcome {
        &self.joined.welcome
    }

    /// Joins again whenever the daemon has gone, for as long as the machine is there.
    pub(super) fn keep(
        mut self,
        card: usize,
        state: &Arc<State>,
        tell: Sender<Message>,
    ) -> Result<(), String> {
        let welcome = &self.joined.welcome;
        self.hello.addresses = Some((welcome.address, welcome.address6));
        let state = Arc::clone(state);
        let work = move || {
            loop {
                wait_for_end(&self.joined);
                if state.is_over() {
                    return;
                }
                let mut told: Option<String> = None;
                loop {
                    let joined = match self.lan.is_configured() {
                        true => join(&*self.lan, &self.hello, self.ours.as_ref()),
                        false => Err(format!("network {} has been deleted", self.lan.label())),
                    };
                    let result = match joined {
                        Ok(joined) => {
                            self.joined = joined;
                            Ok(())
                        }
                        Err(why) => Err(why),
                    };
                    let back = result.is_ok();
                    if (back || told.as_ref() != result.as_ref().err())
                        && tell.send(Message::Network { card, result: result.clone() }).is_err()
                    {
                        return;
                    }
                    if back {
                        break;
                    }
                    told = result.err();
                    thread::sleep(AGAIN);
                }
            }
        };
        spawn("network", work).map_err(|e| format!("cannot start a thread: {e}"))
    }
}

fn join(lan: &dyn Lan, hello: &Hello, card: Option<&OwnedFd>) -> Result<Joined, String> {
    managed::until_joined(
        || lan.connect(),
        |stream| match card {
            Some(card) => managed::join(stream, hello, card.as_fd()),
            None => managed::stay(stream, hello),
        },
    )
}

fn wait_for_end(joined: &Joined) {
    loop {
        let mut fds = [PollFd::new(joined, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_frame_goes_through_in_both_directions() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        make_room(&ours).and_then(|()| make_room(&theirs)).unwrap();
        let frame = vec![7; usize::from(u16::MAX) + 18];
        let mut buffer = vec![0; frame.len() + 1];
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            assert_eq!(from.send(&frame).unwrap(), frame.len());
            assert_eq!(to.recv(&mut buffer).unwrap(), frame.len());
        }
    }
}
