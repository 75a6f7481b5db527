//! A machine's use of a network of socket_vmnet's, whose daemon is brought back when it dies. The
//! card finds it again by itself.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmlan_netd::SocketVmnetUser;

use super::Message;

/// Between looks at whether the daemon is there.
const LOOK: Duration = Duration::from_secs(2);

/// The use of a network, which ends when this is dropped; the last one stops the network.
#[derive(Debug)]
pub(super) struct Uplink {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Uplink {
    pub(super) fn keep(
        card: usize,
        user: SocketVmnetUser,
        tell: Sender<Message>,
    ) -> Result<Self, String> {
        let (stop, stopped) = mpsc::channel::<()>();
        let work = move || {
            let mut told: Option<String> = None;
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let problem = user.keep().err().map(|e| e.to_string());
                if problem != told {
                    let result = problem.clone().map_or(Ok(()), Err);
                    // The host agent is about to end otherwise.
                    let _ = tell.send(Message::Network { card, result });
                    told = problem;
                }
            }
        };
        let thread = thread::Builder::new().name("uplink".into()).spawn(work);
        let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
