//! A guest's card on a network of somebody else's: a daemon with a UNIX stream socket and QEMU's
//! framing. The process beside the guest passes frames between the card and the socket, gets the
//! guest its address by DHCP and keeps it, and connects again when the daemon comes back.

mod dhcp;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use vmlan_link::stream::StreamLink;
use vmlan_link::tap::TapLink;
use vmlan_link::{Link, Recv};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use crate::relay::{RECONNECT, deliver, wait};

pub use dhcp::{Answer, Client, Lease};

/// How long the network's DHCP server may take, and how often it is asked meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_secs(1);

/// Why a guest is not on such a network.
#[derive(Debug, thiserror::Error)]
pub enum UnmanagedError {
    #[error("{}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{}: nobody there has given the guest an address by DHCP within {} s", .0.display(),
            PATIENCE.as_secs())]
    NoLease(PathBuf),
    #[error("{}: the daemon has closed the connection", .0.display())]
    Closed(PathBuf),
    #[error("cannot pass frames on: {0}")]
    Io(#[from] io::Error),
}

/// Gets an address for a guest of the network behind the socket at `path`.
pub fn lease(path: &Path, client: &Client) -> Result<Lease, UnmanagedError> {
    let mut link = connect(path)?;
    let end = Instant::now() + PATIENCE;
    let mut batch = FrameBatch::default();
    let mut question = client.discover();
    let mut ask_at = Instant::now();
    while Instant::now() < end {
        if ask_at <= Instant::now() {
            send(&mut link, &question)?;
            ask_at = Instant::now() + AGAIN;
        }
        wait(&[(link.as_fd(), PollFlags::IN)], Some(ask_at))?;
        let frames = match link.recv(&mut batch) {
            Recv::Frames { .. } => batch.iter(),
            Recv::Empty => continue,
            Recv::Closed(_) => return Err(UnmanagedError::Closed(path.into())),
        };
        for answer in frames.filter_map(|frame| client.answer(frame.data)) {
            match answer {
                Answer::Offer(offer) => {
                    question = client.request(&offer);
                    ask_at = Instant::now();
                }
                Answer::Ack(lease) => return Ok(lease),
                Answer::Nak => question = client.discover(),
            }
        }
    }
    Err(UnmanagedError::NoLease(path.into()))
}

/// Passes frames between a guest's card and the socket at `path` until `gone` is readable.
pub fn serve(
    card: OwnedFd,
    path: &Path,
    client: &Client,
    lease: Lease,
    gone: BorrowedFd<'_>,
) -> Result<(), UnmanagedError> {
    let mut bridge = Bridge {
        card: TapLink::without_offload(card)?,
        client,
        renew_at: Instant::now() + lease.time / 2,
        lease,
        batch: FrameBatch::default(),
    };
    loop {
        // One that is gone may come back.
        if let Ok(mut link) = connect(path)
            && bridge.pass(&mut link, gone)? == End::Guest
        {
            return Ok(());
        }
        if wait(&[(gone, PollFlags::IN)], Some(Instant::now() + RECONNECT))? {
            return Ok(());
        }
    }
}

/// Who has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Guest,
    Daemon,
}

struct Bridge<'a> {
    card: TapLink,
    client: &'a Client,
    lease: Lease,
    renew_at: Instant,
    batch: FrameBatch,
}

impl Bridge<'_> {
    fn pass(&mut self, link: &mut StreamLink, gone: BorrowedFd<'_>) -> io::Result<End> {
        loop {
            let fds = [
                (self.card.as_fd(), PollFlags::IN),
                (link.as_fd(), PollFlags::IN),
                (gone, PollFlags::IN),
            ];
            wait(&fds, Some(self.renew_at))?;
            if wait(&[(gone, PollFlags::IN)], Some(Instant::now()))? {
                return Ok(End::Guest);
            }
            if Instant::now() >= self.renew_at {
                self.renew_at = Instant::now() + (self.lease.time / 8).max(AGAIN);
                let question = self.client.renew(&self.lease);
                if !deliver(link, &[OutFrame::whole(&question, Offload::NONE)])? {
                    return Ok(End::Daemon);
                }
            }
            match self.card.recv(&mut self.batch) {
                Recv::Frames { .. } => {
                    let frames: Vec<_> =
                        self.batch.iter().map(|f| OutFrame::whole(f.data, Offload::NONE)).collect();
                    if !deliver(link, &frames)? {
                        return Ok(End::Daemon);
                    }
                }
                Recv::Empty => {}
                Recv::Closed(_) => return Ok(End::Guest),
            }
            match link.recv(&mut self.batch) {
                Recv::Frames { .. } => self.hand_over()?,
                Recv::Empty => {}
                Recv::Closed(_) => return Ok(End::Daemon),
            }
        }
    }

    /// Hands over what has come, but for the answers to this process's own questions.
    fn hand_over(&mut self) -> io::Result<()> {
        let mut frames = Vec::new();
        for frame in self.batch.iter() {
            match self.client.answer(frame.data) {
                None => frames.push(OutFrame::whole(frame.data, Offload::NONE)),
                Some(Answer::Ack(lease)) if lease.address == self.lease.address => {
                    self.renew_at = Instant::now() + lease.time / 2;
                }
                Some(_) => {}
            }
        }
        deliver(&mut self.card, &frames).map(drop)
    }
}

fn connect(path: &Path) -> Result<StreamLink, UnmanagedError> {
    let link = UnixStream::connect(path).and_then(|stream| StreamLink::new(stream.into()));
    link.map_err(|source| UnmanagedError::Connect { path: path.into(), source })
}

fn send(link: &mut StreamLink, frame: &[u8]) -> io::Result<()> {
    deliver(link, &[OutFrame::whole(frame, Offload::NONE)]).map(drop)
}
