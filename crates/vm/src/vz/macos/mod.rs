//! Virtualization.framework: a machine from its start to its end. Everything that is done with it is
//! done on a queue of its own, as the framework demands; `configuration` says what it is made of,
//! `delegate` hears of its end, and `entitlement` knows whether this program may have one at all.

mod configuration;
mod delegate;
mod entitlement;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use block2::RcBlock;
use dispatch2::{DispatchQueue, DispatchRetained};
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2::{AnyThread, available};
use objc2_foundation::NSError;
use objc2_virtualization::VZVirtualMachine;

use super::{Ending, Machine};
use delegate::Delegate;

/// Whoever wants to hear of the end.
type Ended = Arc<dyn Fn(Ending) + Send + Sync>;

/// How long the framework may take to start a machine.
const START: Duration = Duration::from_secs(60);

/// A running machine, which is to be killed before this is dropped.
#[derive(Debug)]
pub struct Running {
    queue: DispatchRetained<DispatchQueue>,
    machine: OnQueue,
    on_end: OnEnd,
}

/// What may be touched on the machine's queue only.
#[derive(Debug)]
struct OnQueue {
    machine: Retained<VZVirtualMachine>,
    /// The machine does not hold it.
    _delegate: Retained<Delegate>,
}

// SAFETY: both are used on the queue only, and may be released from any thread.
unsafe impl Send for OnQueue {}
// SAFETY: as above.
unsafe impl Sync for OnQueue {}

#[derive(Clone)]
struct OnEnd(Ended);

impl std::fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnd")
    }
}

/// Whether this system, this computer and this program can run machines.
pub(super) fn available() -> Result<(), String> {
    if !available!(macos = 13.0) {
        return Err("vmType vz needs macOS 13 or later; use vmType: qemu".into());
    }
    // SAFETY: it only looks at the computer.
    if !unsafe { VZVirtualMachine::isSupported() } {
        return Err("this computer has no virtualization for vmType vz; use vmType: qemu".into());
    }
    entitlement::check()
}

impl Running {
    pub(super) fn start(
        machine: Machine,
        ended: Box<dyn Fn(Ending) + Send + Sync>,
    ) -> Result<Self, String> {
        available()?;
        let configuration = configuration::make(machine)?;
        let ended: Ended = ended.into();
        let queue = DispatchQueue::new("vmlan.vz", None);
        let delegate = Delegate::new(Arc::clone(&ended));
        // SAFETY: the configuration has been validated, and the queue is a serial one.
        let machine = unsafe {
            VZVirtualMachine::initWithConfiguration_queue(
                VZVirtualMachine::alloc(),
                &configuration,
                &queue,
            )
        };
        let machine = OnQueue { machine, _delegate: delegate };
        let running = Self { queue, machine, on_end: OnEnd(ended) };
        running.boot().map(|()| running)
    }

    fn boot(&self) -> Result<(), String> {
        let (tell, answer) = mpsc::channel();
        self.on_queue(move |on_queue| {
            let delegate = ProtocolObject::from_ref(&*on_queue._delegate);
            let on_start = RcBlock::new(move |error: *mut NSError| {
                // Who has stopped waiting does not need it.
                let _ = tell.send(check(error));
            });
            // SAFETY: this is the machine's queue, and the block is copied.
            unsafe {
                on_queue.machine.setDelegate(Some(delegate));
                on_queue.machine.startWithCompletionHandler(&on_start);
            }
        });
        match answer.recv_timeout(START) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.kill();
                Err(format!(
                    "Virtualization.framework has not started it within {} s",
                    START.as_secs()
                ))
            }
        }
    }

    /// Presses the power button. While the machine has none yet, nothing happens.
    pub fn power_down(&self) -> io::Result<()> {
        let mut result = Ok(());
        self.on_queue(|on_queue| {
            // SAFETY: this is the machine's queue.
            unsafe {
                if on_queue.machine.canRequestStop() {
                    result = on_queue.machine.requestStopWithError().map_err(|e| text(&e));
                }
            }
        });
        result.map_err(io::Error::other)
    }

    /// Ends the machine at once.
    pub fn kill(&self) {
        let OnEnd(ended) = self.on_end.clone();
        self.on_queue(move |on_queue| {
            // The delegate hears of what the machine does by itself only.
            let on_stop = RcBlock::new(move |error: *mut NSError| ended(check(error)));
            // SAFETY: this is the machine's queue, and the block is copied.
            unsafe {
                if on_queue.machine.canStop() {
                    on_queue.machine.stopWithCompletionHandler(&on_stop);
                }
            }
        });
    }

    fn on_queue(&self, work: impl FnOnce(&OnQueue) + Send) {
        let machine = &self.machine;
        self.queue.exec_sync(|| work(machine));
    }
}

/// The result of what is told with a block.
fn check(error: *mut NSError) -> Result<(), String> {
    // SAFETY: it is null or an error that lives while the block runs.
    match unsafe { error.as_ref() } {
        None => Ok(()),
        Some(error) => Err(text(error)),
    }
}

/// An error in the system's words.
fn text(error: &NSError) -> String {
    let description = error.localizedDescription().to_string();
    match error.localizedFailureReason() {
        Some(reason) => format!("{description} {reason}"),
        None => description,
    }
}
