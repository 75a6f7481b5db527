//! The terminal while something is watched on it: a screen of its own, keys without Enter, and
//! everything as before at the end, whatever the end is.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// How standard input was, for whoever has to put it back.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    None,
    Redraw,
    Quit,
}

pub(super) struct Terminal {
    /// Signals that end it, and those that tell of another size.
    ends: UnixStream,
    resizes: UnixStream,
    has_keys: bool,
}

impl Terminal {
    pub(super) fn enter() -> io::Result<Self> {
        let ends = signals(&[SIGINT, SIGTERM, SIGHUP])?;
        let resizes = signals(&[SIGWINCH])?;
        let stdin = io::stdin();
        let mut has_keys = false;
        if let Ok(before) = termios::tcgetattr(stdin.as_fd()) {
            let mut own = before.clone();
            own.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            // Without keys there are still signals.
            has_keys = termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &own).is_ok();
        }
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            hook(panic);
        }));
        let terminal = Self { ends, resizes, has_keys };
        write(ENTER)?;
        Ok(terminal)
    }

    /// Shows as much of the lines as fits.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = termios::tcgetwinsize(io::stdout().as_fd())?;
        write(&frame(lines, size.ws_col.into(), size.ws_row.into()))
    }

    /// Waits for somebody or for the time.
    pub(super) fn wait(&mut self, until: Instant) -> io::Result<Key> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let stdin = io::stdin();
            let keys = if self.has_keys { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(&self.ends, PollFlags::IN),
                PollFd::new(&self.resizes, PollFlags::IN),
                PollFd::new(&stdin, keys),
            ];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(Key::None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let [ends, resizes, stdin] = fds.map(|fd| fd.revents());
            if !ends.is_empty() {
                return Ok(Key::Quit);
            }
            if !resizes.is_empty() {
                // Each signal is a byte; what matters is the size now.
                let _ = self.resizes.read(&mut [0; 64]);
                return Ok(Key::Redraw);
            }
            if !stdin.is_empty() {
                match self.key()? {
                    Key::None => {}
                    key => return Ok(key),
                }
            }
        }
    }

    fn key(&mut self) -> io::Result<Key> {
        let mut keys = [0; 64];
        let n = match rustix::io::read(io::stdin(), &mut keys) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => return Ok(Key::None),
            Err(e) => return Err(e.into()),
        };
        // Ctrl-C and Ctrl-D come as they are; the end of the terminal, too, wants nothing more.
        let wanted = |key: &u8| matches!(key, b'q' | b'Q' | 3 | 4);
        let quit = n == 0 || keys.get(..n).is_some_and(|keys| keys.iter().any(wanted));
        Ok(if quit { Key::Quit } else { Key::Redraw })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        leave();
    }
}

/// Puts everything back, once.
fn leave() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // The terminal may be gone.
        let _ = termios::tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &before);
    }
    let _ = write(LEAVE);
}

/// One write, so that nobody sees half a picture.
fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn signals(list: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in list {
        signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// A picture of this size: long lines are cut, and the last one tells of those that are not there.
fn frame(lines: &[String], columns: usize, rows: usize) -> String {
    // A terminal that does not know its size says 0.
    let columns = if columns == 0 { 80 } else { columns };
    let rows = if rows == 0 { 24 } else { rows };
    let mut shown: Vec<String> = lines.iter().take(rows).map(|line| clean(line)).collect();
    if lines.len() > rows
        && let Some(last) = shown.last_mut()
    {
        *last = format!("... {} more lines", lines.len() - rows + 1);
    }
    let mut out = String::from("\x1b[H");
    for (row, line) in shown.iter().enumerate() {
        if row > 0 {
            out.push_str("\r\n");
        }
        out.extend(line.chars().take(columns));
        // After the last column, this would wipe it out.
        if line.chars().count() < columns {
            out.push_str("\x1b[K");
        }
    }
    out.push_str("\x1b[J");
    out
}

/// Nothing that a terminal would obey.
fn clean(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn lines(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("line {n}\n")).collect()
    }

    #[test]
    #[ignore = "the next test has it run on a terminal"]
    fn panics() {
        let _terminal = Terminal::enter().unwrap();
        panic!("on a terminal");
    }

    /// script(1) is the terminal: on it the message comes when everything is as before.
    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let test = std::env::current_exe().unwrap();
        let panics = format!("{} --ignored --exact --nocapture", test.display());
        let panics = format!("{panics} network::top::terminal::tests::panics");
        let script = format!("stty -g; {panics}; stty -g");
        let output = Command::new("script").args(["-qc", &script, "/dev/null"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (before, rest) = text.split_once(ENTER).unwrap_or_else(|| panic!("{text:?}"));
        let (shown, rest) = rest.split_once(LEAVE).unwrap_or_else(|| panic!("{text:?}"));
        assert!(!shown.contains("panicked") && rest.contains("on a terminal"), "{text:?}");
        let [before, after] = [before.lines().next(), rest.lines().last()];
        assert!(before.is_some_and(|modes| modes.contains(':')), "{text:?}");
        assert_eq!(before, after, "{text:?}");
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        assert_eq!(frame(&lines(1), 80, 24), "\x1b[Hline 0\x1b[K\x1b[J");
        assert_eq!(frame(&lines(9), 6, 2), "\x1b[Hline 0\r\n... 8 \x1b[J");
        assert_eq!(frame(&lines(2), 80, 1), "\x1b[H... 2 more lines\x1b[K\x1b[J");
        assert_eq!(frame(&lines(2), 1, 1), "\x1b[H.\x1b[J");
        assert_eq!(frame(&lines(2), 0, 0), frame(&lines(2), 80, 24));
        assert_eq!(frame(&["\x1b[2Jevil\n".into()], 80, 24), "\x1b[H[2Jevil\x1b[K\x1b[J");
    }
}
