//! The machine's own functions, which may take as long as they like: each lookup blocks a thread
//! of a small pool, started when there is work and gone when there is none.
//!
//! No guest can have more than a part of the threads, so that its lookups, however slow, leave
//! room for those of others.

mod libc_way;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(not(target_os = "macos"))]
use libc_way as imp;
#[cfg(target_os = "macos")]
use macos as imp;

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::{Found, Wanted};
use crate::sys;
use crate::token::{Class, Key};
use crate::upstream::Poll;

pub(crate) use imp::EVERY_TYPE;

/// Threads, for one guest and in all.
const MAX_THREADS: usize = 32;
const MAX_THREADS_PER_GUEST: usize = 16;

/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// Enough for what the C library does.
const STACK: usize = 512 << 10;

/// The pool.
#[derive(Debug, Default)]
pub(crate) struct Native {
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    shared: Arc<Shared>,
    /// Becomes readable when there are results.
    woken: UnixStream,
    generation: u32,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    wake: UnixStream,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    /// Threads that work, by guest.
    busy: HashMap<u32, usize>,
    threads: usize,
    idle: usize,
    ended: bool,
    results: Vec<(usize, Found)>,
}

#[derive(Debug)]
struct Job {
    number: usize,
    guest: u32,
    wanted: Wanted,
}

impl Native {
    /// Starts a lookup. False if it cannot be.
    pub(crate) fn start(
        &mut self,
        poll: &mut Poll,
        number: usize,
        guest: u32,
        wanted: Wanted,
    ) -> bool {
        if self.line.is_none() {
            self.line = Line::new(poll);
        }
        let Some(Line { shared, .. }) = &self.line else { return false };
        let mut state = shared.lock();
        state.queue.push_back(Job { number, guest, wanted });
        if state.idle == 0 && state.threads < MAX_THREADS {
            let worker = Arc::clone(shared);
            let thread = std::thread::Builder::new().name("vmlan-lookup".into()).stack_size(STACK);
            match thread.spawn(move || work(&worker)) {
                Ok(_) => state.threads += 1,
                // With one thread at least, the lookup has only to wait.
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    state.queue.pop_back();
                    return false;
                }
            }
        }
        shared.work.notify_one();
        true
    }

    /// The lookups that have ended.
    pub(crate) fn results(&mut self, key: Key) -> Vec<(usize, Found)> {
        let Some(line) = self.line.as_ref().filter(|line| line.generation == key.generation) else {
            return Vec::new();
        };
        let mut bytes = [0; 64];
        while matches!((&line.woken).read(&mut bytes), Ok(len) if len > 0) {}
        std::mem::take(&mut line.shared.lock().results)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if let Some(Line { shared, .. }) = &self.line {
            let mut state = shared.lock();
            state.ended = true;
            state.queue.clear();
            shared.work.notify_all();
        }
    }
}

impl Line {
    fn new(poll: &mut Poll) -> Option<Self> {
        let (wake, woken) = UnixStream::pair().ok()?;
        wake.set_nonblocking(true).ok()?;
        woken.set_nonblocking(true).ok()?;
        let key = poll.key(Class::Native, 0);
        let fd = OwnedFd::from(woken);
        sys::register(&poll.registry, &fd, key.token(poll.base))?;
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), wake };
        let shared = Arc::new(shared);
        Some(Self { shared, woken: UnixStream::from(fd), generation: key.generation })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first job whose guest has a thread to its name.
    fn take(&mut self) -> Option<Job> {
        let busy = &self.busy;
        let may =
            |job: &Job| busy.get(&job.guest).is_none_or(|&count| count < MAX_THREADS_PER_GUEST);
        let job = self.queue.iter().position(may).and_then(|at| self.queue.remove(at))?;
        *self.busy.entry(job.guest).or_default() += 1;
        Some(job)
    }

    fn finish(&mut self, job: &Job, found: Found) {
        if let Some(count) = self.busy.get_mut(&job.guest) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&job.guest);
            }
        }
        self.results.push((job.number, found));
    }
}

/// What a thread does.
fn work(shared: &Shared) {
    let mut state = shared.lock();
    while !state.ended {
        if let Some(job) = state.take() {
            drop(state);
            let found = imp::look_up(&job.wanted);
            state = shared.lock();
            state.finish(&job, found);
            // A full pipe has woken the loop already.
            let _ = (&shared.wake).write(&[1]);
            // One that had to wait for this guest's thread.
            shared.work.notify_one();
            continue;
        }
        state.idle += 1;
        let waited = shared.work.wait_timeout(state, IDLE);
        let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state = after;
        state.idle -= 1;
        if timeout.timed_out() && state.queue.is_empty() {
            break;
        }
    }
    state.threads -= 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize, guest: u32) -> Job {
        Job { number, guest, wanted: Wanted::Addresses("x".into()) }
    }

    #[test]
    fn a_guest_has_a_part_of_the_threads_only() {
        let mut state = State::default();
        state.queue.extend((0..MAX_THREADS_PER_GUEST + 1).map(|number| job(number, 1)));
        state.queue.push_back(job(99, 2));
        let taken: Vec<Job> = (0..MAX_THREADS_PER_GUEST).filter_map(|_| state.take()).collect();
        assert!(taken.iter().all(|job| job.guest == 1));
        assert_eq!(state.take().unwrap().number, 99);
        assert!(state.take().is_none());
        state.finish(&taken[0], Found::Nothing);
        assert_eq!(state.take().unwrap().number, MAX_THREADS_PER_GUEST);
    }
}
