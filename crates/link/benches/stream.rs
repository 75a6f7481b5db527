//! Frames through a stream link, into a peer that reads as fast as it can, and the other way.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmlan_link::stream::StreamLink;
use vmlan_link::{Flushed, Link, PeerId, Recv};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

fn main() {
    for (size, burst) in [(66, 64), (1514, 64), (4096, 32), (8192, 16), (16384, 8), (65534, 4)] {
        let (out, cpu) = send(size, burst);
        let (inward, cpu_in) = recv(size);
        println!(
            "{size:6}: out {out:6.1} Gbit/s {cpu:.3} s/GiB   in {inward:6.1} Gbit/s {cpu_in:.3} s/GiB"
        );
    }
}

const TIME: Duration = Duration::from_millis(1000);

fn send(size: usize, burst: usize) -> (f64, f64) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || {
        let mut buf = vec![0; 1 << 18];
        while theirs.read(&mut buf).is_ok_and(|n| n > 0) {}
    });
    let mut link = StreamLink::new(ours.into()).unwrap();
    let ring = vec![5u8; 1 << 20];
    let heads = vec![[1u8; 54]; burst];
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut bytes = 0u64;
    let mut at = 0;
    while start.elapsed() < TIME {
        let frames: Vec<_> = heads
            .iter()
            .map(|head| {
                let body = size - head.len();
                at = if at + body > ring.len() { 0 } else { at };
                at += body;
                OutFrame { head, body: [&ring[at - body..at], &[]], offload: Offload::NONE }
            })
            .collect();
        let mut rest = &frames[..];
        while !rest.is_empty() {
            let n = link.send(PeerId(0), rest);
            rest = &rest[n..];
            bytes += (n * size) as u64;
            if link.flush() == Flushed::Blocked {
                wait(&link, rustix::event::PollFlags::OUT);
            }
        }
    }
    let done = rates(bytes, start, cpu);
    drop(link);
    reader.join().unwrap();
    done
}

fn recv(size: usize) -> (f64, f64) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || {
        let frame = [&u32::try_from(size).unwrap().to_be_bytes()[..], &vec![3; size]].concat();
        let many = frame.repeat((1 << 17) / frame.len() + 1);
        while theirs.write_all(&many).is_ok() {}
    });
    let mut link = StreamLink::new(ours.into()).unwrap();
    let mut batch = FrameBatch::with_capacity(512 * 1024);
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut bytes = 0u64;
    while start.elapsed() < TIME {
        match link.recv(&mut batch) {
            Recv::Frames { more, .. } => {
                bytes += black_box(&batch).iter().map(|f| f.data.len() as u64).sum::<u64>();
                if !more {
                    wait(&link, rustix::event::PollFlags::IN);
                }
            }
            Recv::Empty => wait(&link, rustix::event::PollFlags::IN),
            Recv::Closed(reason) => panic!("{reason}"),
        }
    }
    let done = rates(bytes, start, cpu);
    drop(link);
    writer.join().unwrap();
    done
}

fn rates(bytes: u64, start: Instant, cpu: f64) -> (f64, f64) {
    let gib = bytes as f64 / (1u64 << 30) as f64;
    (bytes as f64 * 8e-9 / start.elapsed().as_secs_f64(), (thread_cpu() - cpu) / gib)
}

fn wait(link: &StreamLink, what: rustix::event::PollFlags) {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(link.as_fd(), what)];
    rustix::event::poll(&mut fds, None).unwrap();
}

fn thread_cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
