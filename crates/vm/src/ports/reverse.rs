//! A client in the machine that has come to a UNIX socket which leads to the host: the host calls
//! back through its network, and joins the two streams until both have ended.

use std::io;
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use vmlan_api::Client;

/// Streams of one machine at once.
const MAX_STREAMS: usize = 64;

/// Counts the streams that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<AtomicUsize>);

#[derive(Debug)]
struct Slot(Streams);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Streams {
    fn slot(&self) -> Option<Slot> {
        let slot = Slot(self.clone());
        (self.0.fetch_add(1, Ordering::Relaxed) < MAX_STREAMS).then_some(slot)
    }

    /// Leads a client that waits at a port of the guest to a socket of the host. Who is one too
    /// many, or finds nobody there, sees the stream end.
    pub(super) fn join(&self, client: &Client, guest: Ipv4Addr, port: u16, host: PathBuf) {
        let Some(slot) = self.slot() else { return };
        let client = client.clone();
        // Without a thread there is no stream.
        let _ = thread::Builder::new().name("ports-reverse".into()).spawn(move || {
            let _slot = slot;
            if let Ok(inside) = client.dial((guest, port).into())
                && let Ok(outside) = UnixStream::connect(host)
            {
                let _ = relay(&inside, &outside);
            }
        });
    }
}

/// Copies in both directions; each ends on its own.
fn relay(inside: &UnixStream, outside: &UnixStream) -> io::Result<()> {
    thread::scope(|scope| {
        let back = thread::Builder::new().spawn_scoped(scope, || copy(outside, inside))?;
        copy(inside, outside);
        let _ = back.join();
        Ok(())
    })
}

fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    let ended = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    if ended.is_err() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
