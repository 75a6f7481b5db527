//! A guest's side: asking a daemon for addresses, and joining with a card.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::message::{Answer, Hello, MAX_LINE, Welcome};

/// Longest wait for a daemon that is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long daemons may come and go under a guest that wants to join.
const COMINGS: Duration = Duration::from_secs(20);

/// Why a guest has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The daemon's word.
    #[error("{0}")]
    Refused(String),
    /// The daemon went away: another may come.
    #[error("the network's daemon has ended")]
    Ended,
    #[error("the network's daemon does not answer: {0}")]
    Io(#[from] io::Error),
}

/// A guest's stay: it ends when this is dropped. Readable when the daemon has ended.
#[derive(Debug)]
pub struct Joined {
    pub welcome: Welcome,
    stream: UnixStream,
}

impl AsFd for Joined {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks which addresses a guest will have.
pub fn ask(stream: UnixStream, hello: &Hello) -> Result<Welcome, JoinError> {
    talk(stream, hello, None).map(|joined| joined.welcome)
}

/// Joins with a card that is on the network's bridge already.
pub fn stay(stream: UnixStream, hello: &Hello) -> Result<Joined, JoinError> {
    talk(stream, hello, None)
}

/// Joins with a network card.
pub fn join(stream: UnixStream, hello: &Hello, card: BorrowedFd<'_>) -> Result<Joined, JoinError> {
    talk(stream, hello, Some(card))
}

/// Talks to the network's daemon, or to its successor if it ends in between. `connect` starts one if
/// there is none.
pub fn until_joined<T>(
    connect: impl Fn() -> Result<UnixStream, String>,
    talk: impl Fn(UnixStream) -> Result<T, JoinError>,
) -> Result<T, String> {
    let end = Instant::now() + COMINGS;
    loop {
        match talk(connect()?) {
            Err(JoinError::Ended) if Instant::now() < end => {}
            talked => return talked.map_err(|e| e.to_string()),
        }
    }
}

fn talk(
    mut stream: UnixStream,
    hello: &Hello,
    card: Option<BorrowedFd<'_>>,
) -> Result<Joined, JoinError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(hello).map_err(io::Error::from)?;
    line.push(b'\n');
    let cards: Vec<_> = card.into_iter().collect();
    let sent = match cards.as_slice() {
        [] => 0,
        cards => vmlan_link::scm::send_fds(&stream, &line, cards).map_err(ended)?,
    };
    stream.write_all(line.get(sent..).unwrap_or_default()).map_err(ended)?;
    let mut answer = String::new();
    let limit = MAX_LINE as u64;
    BufReader::new((&stream).take(limit)).read_line(&mut answer).map_err(ended)?;
    if answer.is_empty() {
        return Err(JoinError::Ended);
    }
    match serde_json::from_str(&answer).map_err(io::Error::from)? {
        Answer::Welcome(welcome) => Ok(Joined { welcome, stream }),
        Answer::Refused(why) => Err(JoinError::Refused(why)),
    }
}

fn ended(error: io::Error) -> JoinError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => JoinError::Ended,
        _ => JoinError::Io(error),
    }
}
