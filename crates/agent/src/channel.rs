//! The way to the host: a virtio port, or any other stream. Lines in both directions, each bounded;
//! a host that is away, or does not read, costs nothing but what is told it later.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use vmlan_agent::message::{CHANNEL, MAX_LINE, Orders, Report};

use crate::poll::{Poll, Source};

/// The channel's token.
pub(crate) const TOKEN: u64 = 0;

#[derive(Debug)]
pub(crate) struct Channel {
    source: Source,
    file: File,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A virtio port whose host may come back. Another stream's end is the end.
    is_port: bool,
    is_there: bool,
}

impl Channel {
    /// Finds the machine's port by its name.
    pub(crate) fn find() -> io::Result<Self> {
        let path = port().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no virtio port is named {CHANNEL}"))
        })?;
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Self::new(file, true)
    }

    /// Speaks on standard input.
    pub(crate) fn stdin() -> io::Result<Self> {
        let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        rustix::io::ioctl_fionbio(&file, true)?;
        Self::new(file, false)
    }

    fn new(file: File, is_port: bool) -> io::Result<Self> {
        let source = Source::new(file.try_clone()?.into(), TOKEN);
        let (input, output) = (Vec::new(), Vec::new());
        Ok(Self { source, file, input, output, is_port, is_there: false })
    }

    /// Reads what has come; the last of the orders, which stand for all before them. Sets aside
    /// what was to be said if the host has gone.
    pub(crate) fn read(&mut self, poll: &Poll) -> io::Result<Option<Orders>> {
        let mut orders = None;
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.file.read(&mut chunk) {
                Ok(0) => {
                    self.is_there = false;
                    self.input.clear();
                    self.output.clear();
                    self.source.ask(poll, EventFlags::empty())?;
                    if !self.is_port {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    return Ok(orders);
                }
                Ok(n) => {
                    self.input.extend_from_slice(chunk.get(..n).unwrap_or_default());
                    orders = self.take_lines().or(orders);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.is_there = true;
        self.watch(poll)?;
        Ok(orders)
    }

    /// The last line that makes sense.
    fn take_lines(&mut self) -> Option<Orders> {
        let mut orders = None;
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            orders = serde_json::from_slice(&line).ok().or(orders);
        }
        if self.input.len() > MAX_LINE {
            self.input.clear();
        }
        orders
    }

    pub(crate) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.output.is_empty()
    }

    /// Says something.
    pub(crate) fn send(&mut self, poll: &Poll, report: &Report) -> io::Result<()> {
        serde_json::to_writer(&mut self.output, report)?;
        self.output.push(b'\n');
        self.flush(poll)
    }

    /// Sends what is left.
    pub(crate) fn flush(&mut self, poll: &Poll) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.file.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.watch(poll)
    }

    fn watch(&mut self, poll: &Poll) -> io::Result<()> {
        let waits = if self.output.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
        self.source.ask(poll, EventFlags::IN | waits)
    }
}

/// The device of the port with our name: udev's link, or what the kernel says without one.
fn port() -> Option<PathBuf> {
    let link = Path::new("/dev/virtio-ports").join(CHANNEL);
    if link.exists() {
        return Some(link);
    }
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let named = ports.into_iter().find(|port| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == CHANNEL)
    })?;
    Some(Path::new("/dev").join(named.file_name()))
}
