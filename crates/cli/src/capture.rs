//! `vmlan capture`: the frames of a running network, as they pass.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::place::{self, Place};
use crate::{Failure, tell};

/// Write the frames of a running network, for Wireshark or tcpdump.
///
/// It ends with Ctrl-C, with whoever reads along, or with the daemon. Who reads slowly does not slow
/// the network: what there is no room for is left out, and counted in the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Live in Wireshark: vmlan capture NETWORK -w - | wireshark -k -i -")]
pub(crate) struct Args {
    /// A network, or a guest by its name.
    #[arg(value_name = "NETWORK|GUEST")]
    place: String,

    /// Only this guest of the network: its name, MAC or IP address.
    guest: Option<String>,

    /// Write pcapng to FILE, or to standard output if it is -.
    #[arg(short, long, value_name = "FILE|-")]
    write: PathBuf,
}

/// How long the daemon may take to say the last word.
const LAST_WORD: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let place = match &args.guest {
        Some(guest) => place::find_guest(&args.place, guest)?,
        None => place::find(&args.place)?,
    };
    let Place { network, client, guest } = place;
    let target = match &guest {
        None => "/v1/capture".to_owned(),
        Some(guest) => match &guest.name {
            Some(name) => format!("/v1/capture?guest={name}"),
            None => format!("/v1/capture?port={}", guest.port),
        },
    };
    if args.write == Path::new("-") && io::stdout().is_terminal() {
        let text = "-w -: standard output is a terminal; pipe it, as in | wireshark -k -i -";
        return Err(Failure::Usage(text.into()));
    }
    let signals = signals().map_err(|e| Failure::Failed(format!("signals: {e}")))?;
    let (stream, early) = client.open("GET", &target).map_err(place::failed(&network))?;
    let out = Output::create(&args.write).map_err(|e| args.failed(&e))?;
    let mut copy = Copy { stream, signals, out, blocks: Blocks::default(), until: None };
    copy.run(early).map_err(|e| args.failed(&e))?;
    let Blocks { frames, left_out, .. } = copy.blocks;
    tell(&format!("{frames} frames, {left_out} left out"));
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn failed(&self, error: &io::Error) -> Failure {
        Failure::Failed(format!("{}: {error}", self.write.display()))
    }
}

/// Readable after the first signal that ends the command; the second one ends it at once.
fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&asked))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// From the daemon to the file.
struct Copy {
    stream: UnixStream,
    signals: UnixStream,
    out: Output,
    blocks: Blocks,
    /// Set once the daemon has been asked to come to an end.
    until: Option<Instant>,
}

impl Copy {
    fn run(&mut self, early: Vec<u8>) -> io::Result<()> {
        let mut chunk = vec![0; 256 * 1024];
        let mut more = early;
        loop {
            let whole = self.blocks.whole(&more);
            match self.out.write_all(whole) {
                // Whoever reads has seen enough.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            self.blocks.forget_whole();
            if !self.wait()? {
                return Ok(());
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => more = chunk.get(..n).unwrap_or_default().to_vec(),
                Err(e) if e.kind() == ErrorKind::Interrupted => more = Vec::new(),
                // The daemon was killed.
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until there is something to read; false if it is time to end.
    fn wait(&mut self) -> io::Result<bool> {
        loop {
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let timeout = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let asked = if self.until.is_some() { PollFlags::empty() } else { PollFlags::IN };
            let mut fds = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(&self.signals, asked),
                // Only that its reader is gone.
                PollFd::from_borrowed_fd(self.out.as_fd(), PollFlags::empty()),
            ];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let [stream, signals, out] = fds.map(|fd| fd.revents());
            if !out.is_empty() {
                return Ok(false);
            }
            if !signals.is_empty() {
                self.until = Some(Instant::now() + LAST_WORD);
                // It may have ended by itself.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            if !stream.is_empty() {
                return Ok(true);
            }
        }
    }
}

enum Output {
    File(File),
    Stdout(io::Stdout),
}

impl Output {
    fn create(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(io::stdout()));
        }
        let mut options = OpenOptions::new();
        // Frames are nobody else's business.
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self::File(file))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Stdout(stdout) => {
                stdout.write_all(bytes)?;
                stdout.flush()
            }
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Stdout(stdout) => stdout.as_fd(),
        }
    }
}

/// The blocks of a pcapng stream: only whole ones reach the file, so that it is good wherever it
/// ends.
#[derive(Debug, Default)]
struct Blocks {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are whole blocks.
    whole: usize,
    frames: u64,
    left_out: u64,
}

/// Block types, and the option of statistics that tells what was left out.
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const DROPPED: u16 = 5;

impl Blocks {
    /// Adds what has come, and returns the blocks that are whole with it.
    fn whole(&mut self, more: &[u8]) -> &[u8] {
        self.bytes.extend_from_slice(more);
        while let Some(rest) = self.bytes.get(self.whole..)
            && let (Some(kind), Some(len)) = (word(rest, 0), word(rest, 4))
            && let Some(block) = rest.get(..usize::try_from(len.max(12)).unwrap_or(usize::MAX))
        {
            match kind {
                PACKET => self.frames += 1,
                STATISTICS => self.left_out += dropped(block).unwrap_or(0),
                _ => {}
            }
            self.whole += block.len();
        }
        self.bytes.get(..self.whole).unwrap_or_default()
    }

    fn forget_whole(&mut self) {
        self.bytes.drain(..self.whole);
        self.whole = 0;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// What an interface's statistics say was left out.
fn dropped(block: &[u8]) -> Option<u64> {
    // Type, length, interface and time.
    let mut options = block.get(20..)?;
    loop {
        let head = word(options, 0)?.to_ne_bytes();
        let code = u16::from_ne_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_ne_bytes([head[2], head[3]]));
        if code == DROPPED {
            return options.get(4..12)?.try_into().ok().map(u64::from_ne_bytes);
        }
        if code == 0 {
            return None;
        }
        options = options.get(4 + len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(12 + body.len()).unwrap().to_ne_bytes();
        [&kind.to_ne_bytes()[..], &len, body, &len].concat()
    }

    #[test]
    fn blocks_are_whole_wherever_they_are_cut() {
        let mut statistics = vec![0; 12];
        for (code, value) in [(4u16, 9u64), (5, 7)] {
            statistics.extend_from_slice(&code.to_ne_bytes());
            statistics.extend_from_slice(&8u16.to_ne_bytes());
            statistics.extend_from_slice(&value.to_ne_bytes());
        }
        statistics.extend_from_slice(&[0; 4]);
        let parts = [block(1, &[0; 8]), block(PACKET, &[1; 100]), block(STATISTICS, &statistics)];
        let stream = parts.concat();
        let ends = [0, parts[0].len(), parts[0].len() + parts[1].len(), stream.len()];
        for cut in 0..=stream.len() {
            let mut blocks = Blocks::default();
            let mut out = blocks.whole(&stream[..cut]).to_vec();
            assert!(ends.contains(&out.len()), "{cut}");
            blocks.forget_whole();
            out.extend_from_slice(blocks.whole(&stream[cut..]));
            assert_eq!(out, stream);
            assert_eq!((blocks.frames, blocks.left_out), (1, 7));
        }
    }
}
