//! Frames between a guest's card and a UNIX stream socket with QEMU's framing, whose daemon is
//! somebody else's: in order, without a queue, and from a daemon to the one that takes its place.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use vmlan_link::packet::PacketLink;
use vmlan_link::stream::StreamLink;
use vmlan_link::{Flushed, Link, PeerId, Recv};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

/// Between attempts to reach a daemon that is gone, as QEMU does it.
pub(crate) const RECONNECT: Duration = Duration::from_millis(500);

/// How long one side may keep frames from the other. What it has not taken then is lost.
const SLOW: Duration = Duration::from_millis(100);

/// Passes frames between a card, which is a connected datagram socket, and the socket at `path`, until
/// the card's other end has gone. Without a daemon, what the guest sends is lost.
pub fn relay(card: OwnedFd, mtu: u16, path: &Path) -> io::Result<()> {
    let mut card = PacketLink::new(card, mtu)?;
    let mut batch = FrameBatch::default();
    loop {
        if let Ok(mut link) = UnixStream::connect(path).and_then(|s| StreamLink::new(s.into())) {
            while both_are_there(&mut card, &mut link, &mut batch)? {}
        }
        let again = Instant::now() + RECONNECT;
        while wait(&[(card.as_fd(), PollFlags::IN)], Some(again))? {
            if matches!(card.recv(&mut batch), Recv::Closed(_)) {
                return Ok(());
            }
        }
    }
}

/// Passes on what there is, once something is.
fn both_are_there(
    card: &mut PacketLink,
    link: &mut StreamLink,
    batch: &mut FrameBatch,
) -> io::Result<bool> {
    wait(&[(card.as_fd(), PollFlags::IN), (link.as_fd(), PollFlags::IN)], None)?;
    Ok(pass(card, link, batch)? && pass(link, card, batch)?)
}

/// Passes on a batch. False once one of both has gone.
fn pass(from: &mut impl Link, to: &mut impl Link, batch: &mut FrameBatch) -> io::Result<bool> {
    match from.recv(batch) {
        Recv::Frames { .. } => {
            let frames: Vec<_> =
                batch.iter().map(|frame| OutFrame::whole(frame.data, Offload::NONE)).collect();
            deliver(to, &frames)
        }
        Recv::Empty => Ok(true),
        Recv::Closed(_) => Ok(false),
    }
}

/// Sends frames in order, as far as the other side takes them in time. False once it is gone.
pub(crate) fn deliver(link: &mut impl Link, frames: &[OutFrame<'_>]) -> io::Result<bool> {
    let mut rest = frames;
    let mut end = Instant::now() + SLOW;
    loop {
        let taken = link.send(PeerId(0), rest);
        rest = rest.get(taken..).unwrap_or_default();
        if taken > 0 {
            end = Instant::now() + SLOW;
        }
        match link.flush() {
            Flushed::Done if rest.is_empty() => return Ok(true),
            Flushed::Done => {}
            Flushed::Blocked if Instant::now() >= end => return Ok(true),
            Flushed::Blocked => match link.next_timeout() {
                // No event tells of room.
                Some(at) => thread::sleep(at.saturating_duration_since(Instant::now())),
                None => drop(wait(&[(link.as_fd(), PollFlags::OUT)], Some(end))?),
            },
            Flushed::Closed => return Ok(false),
        }
    }
}

/// Waits until something happens to one of these; false if nothing did before `end`.
pub(crate) fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], end: Option<Instant>) -> io::Result<bool> {
    let mut fds: Vec<_> =
        fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn framed(frame: &[u8]) -> Vec<u8> {
        let len = u32::try_from(frame.len()).unwrap();
        [&len.to_be_bytes(), frame].concat()
    }

    #[test]
    fn a_card_finds_the_next_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (guest, card) = UnixDatagram::pair().unwrap();
        let of_relay = path.clone();
        thread::spawn(move || relay(card.into(), 1500, &of_relay));
        let (out, back) = ([1; 60], [2; 1514]);
        for _ in 0..2 {
            let listener = UnixListener::bind(&path).unwrap();
            let (mut daemon, _) = listener.accept().unwrap();
            guest.send(&out).unwrap();
            let mut heard = vec![0; 4 + out.len()];
            daemon.read_exact(&mut heard).unwrap();
            assert_eq!(heard, framed(&out));
            daemon.write_all(&framed(&back)).unwrap();
            let mut frame = [0; 2000];
            let n = guest.recv(&mut frame).unwrap();
            assert_eq!(frame.get(..n), Some(&back[..]));
            drop((daemon, listener));
            std::fs::remove_file(&path).unwrap();
        }
    }
}
