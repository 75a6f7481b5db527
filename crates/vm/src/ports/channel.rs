//! Reads what the machine says. At most a line at a time, each of bounded length, and not more often
//! than somebody can think about it: whoever says more waits.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmlan_agent::message::{MAX_LINE, Report};

use super::manager::Input;

/// Until a channel that is not there is looked for again.
const RETRY: Duration = Duration::from_millis(500);

/// Between two lines.
const PACE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Channel {
    stopping: Arc<Stopping>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stopping {
    flag: AtomicBool,
    /// What the thread may be reading from.
    stream: Mutex<Option<UnixStream>>,
}

impl Channel {
    pub(super) fn start(path: PathBuf, input: SyncSender<Input>) -> io::Result<Self> {
        let stopping = Arc::new(Stopping::default());
        let thread = thread::Builder::new().name("ports-channel".into()).spawn({
            let stopping = Arc::clone(&stopping);
            move || follow(&path, &input, &stopping)
        })?;
        Ok(Self { stopping, thread: Some(thread) })
    }

    /// Has the thread end.
    pub(super) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stopping.flag.store(true, Ordering::Relaxed);
        let stream = self.stopping.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stream) = stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        thread.thread().unpark();
    }
}

impl Stopping {
    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// Connects, reads, and connects again, until told otherwise.
fn follow(path: &Path, input: &SyncSender<Input>, stopping: &Stopping) {
    while !stopping.is_set() {
        if let Ok(stream) = UnixStream::connect(path)
            && let (Ok(ours), Ok(writer)) = (stream.try_clone(), stream.try_clone())
        {
            *stopping.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
            if stopping.is_set() || input.send(Input::Up(writer)).is_err() {
                return;
            }
            read(stream, input, stopping);
            if input.send(Input::Down).is_err() {
                return;
            }
        }
        thread::park_timeout(RETRY);
    }
}

/// Reads lines until there are no more.
fn read(mut stream: UnixStream, input: &SyncSender<Input>, stopping: &Stopping) {
    let mut lines = Lines::default();
    let mut chunk = vec![0; 16 * 1024];
    let mut since_pause = 0;
    while !stopping.is_set() {
        let n = match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        since_pause += n;
        let reports = lines.add(chunk.get(..n).unwrap_or_default());
        let pause = !reports.is_empty() || since_pause > MAX_LINE;
        for report in reports {
            if input.send(Input::Report(report)).is_err() {
                return;
            }
        }
        if pause {
            since_pause = 0;
            thread::park_timeout(PACE);
        }
    }
}

/// Lines out of pieces.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
    /// The line is too long: what is left of it is passed over.
    too_long: bool,
}

impl Lines {
    /// The reports that are complete now. Of several states, only the last one matters.
    fn add(&mut self, bytes: &[u8]) -> Vec<Report> {
        let mut reports = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.last() == Some(&b'\n');
            if !self.too_long {
                self.line.extend_from_slice(piece);
            }
            self.too_long |= self.line.len() > MAX_LINE;
            if self.too_long {
                self.line.clear();
            }
            if ends {
                if let Ok(report) = serde_json::from_slice(&self.line) {
                    if matches!(report, Report::State(_)) {
                        reports.retain(|other| !matches!(other, Report::State(_)));
                    }
                    reports.push(report);
                }
                self.line.clear();
                self.too_long = false;
            }
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(heard: u64) -> String {
        format!("{{\"state\":{{\"heard\":{heard},\"listeners\":[],\"lifts\":[]}}}}\n")
    }

    fn heard(reports: &[Report]) -> Vec<u64> {
        reports
            .iter()
            .filter_map(|report| match report {
                Report::State(state) => Some(state.heard),
                Report::Call { .. } => None,
            })
            .collect()
    }

    #[test]
    fn lines_come_in_pieces_and_the_last_state_stands() {
        let mut lines = Lines::default();
        let text = state(1) + &state(2);
        let (head, tail) = text.split_at(text.len() - 5);
        assert_eq!(heard(&lines.add(head.as_bytes())), [1]);
        assert_eq!(heard(&lines.add(tail.as_bytes())), [2]);
        let text =
            format!("{}{}{}", state(3), r#"{"call":{"door":"/x","port":7}}"#, "\n") + &state(4);
        let reports = lines.add(text.as_bytes());
        assert_eq!((reports.len(), heard(&reports)), (2, vec![4]));
    }

    #[test]
    fn nonsense_is_passed_over_and_never_kept() {
        let mut lines = Lines::default();
        let text = format!("{{\n\0\u{7f}\n[]\n{}", state(5));
        assert_eq!(heard(&lines.add(text.as_bytes())), [5]);
        let long = vec![b'x'; 16 * 1024];
        for _ in 0..100 {
            assert!(lines.add(&long).is_empty());
            assert!(lines.line.len() <= MAX_LINE);
        }
        assert!(lines.add(state(6).as_bytes()).is_empty(), "it is the end of the long line");
        assert_eq!(heard(&lines.add(state(7).as_bytes())), [7]);
        let deep = format!("{}\n{}", "[".repeat(100_000), state(8));
        assert_eq!(heard(&lines.add(deep.as_bytes())), [8]);
    }
}
