//! What must not grow, and what happens at a limit.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrV4, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use vmlan_e2e::World;
use vmlan_e2e::process::eventually;
use vmlan_e2e::server::echo;
use vmlan_e2e::world::OUTSIDE;

/// What the daemon holds.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    descriptors: usize,
    /// Resident memory in KiB.
    memory: usize,
}

fn holdings(world: &mut World) -> Holdings {
    let proc = format!("/proc/{}", world.netd.process().id());
    let status = fs::read_to_string(format!("{proc}/status")).expect("the daemon is running");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory.and_then(|rest| rest.split_whitespace().next()).expect("a figure");
    Holdings {
        descriptors: fs::read_dir(format!("{proc}/fd")).expect("the daemon is running").count(),
        memory: memory.parse().expect("a number"),
    }
}

/// The test holds thousands of sockets itself.
fn raise_own_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit can be raised");
    limit.current.unwrap_or(u64::MAX)
}

/// Accepts and closes at once.
fn hang_up(listener: TcpListener) {
    thread::spawn(move || listener.incoming().for_each(drop));
}

/// The slowest but one in a hundred of some connections.
fn p99_of_connects(world: &World, count: usize) -> Duration {
    let mut times: Vec<_> = world.guest.enter(|| {
        let connect = |_| {
            let start = Instant::now();
            drop(TcpStream::connect((OUTSIDE, 80)).expect("a server listens there"));
            start.elapsed()
        };
        (0..count).map(connect).collect()
    });
    times.sort();
    times[count * 99 / 100]
}

#[test]
fn dials_that_nobody_answers_do_not_delay_others() {
    let dials: u16 = if raise_own_limit() > 15_000 { 10_000 } else { 500 };
    let mut world = World::new();
    hang_up(world.outside.listen((OUTSIDE, 80)));
    p99_of_connects(&world, 100);
    let alone = p99_of_connects(&world, 500);
    let pending: Vec<OwnedFd> = world.guest.enter(|| {
        let dial = |number: u16| {
            let [high, low] = (number / 100).to_be_bytes();
            let target = SocketAddrV4::new([203, 0, 113, 128 + low].into(), 80 + number % 100);
            assert_eq!(high, 0);
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
                .expect("a socket");
            assert_eq!(connect(&socket, &target), Err(Errno::INPROGRESS));
            socket
        };
        (0..dials).map(dial).collect()
    });
    // The card's queue loses some of so many SYNs, again when the kernel repeats them all at once.
    eventually("most dials at the daemon", Duration::from_secs(20), || {
        (holdings(&mut world).descriptors > usize::from(dials) * 8 / 10).then_some(())
    });
    let beside = p99_of_connects(&world, 500);
    println!("p99 of a connect: {alone:?} alone, {beside:?} beside {} dials", pending.len());
    // Whoever waits behind a dial waits for seconds; the rest is the machine's other work.
    assert!(beside < alone * 4 + Duration::from_millis(20), "{alone:?} became {beside:?}");
}

#[test]
fn a_hundred_thousand_connections_leave_nothing() {
    const THREADS: usize = 8;
    let mut world = World::new();
    hang_up(world.outside.listen((OUTSIDE, 80)));
    let round = |world: &World, count: usize| {
        let run = || {
            for _ in 0..count / THREADS {
                let mut stream = TcpStream::connect((OUTSIDE, 80)).expect("a server listens");
                // The server ends first, so that no port of the guest's is kept in TIME-WAIT.
                assert_eq!(stream.read(&mut [0; 1]).expect("an end in order"), 0);
            }
        };
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| world.guest.enter(run));
            }
        });
    };
    round(&world, 2_000);
    let before = holdings(&mut world);
    round(&world, 100_000);
    let after = eventually("the last descriptor's end", Duration::from_secs(20), || {
        let now = holdings(&mut world);
        (now.descriptors <= before.descriptors + 2).then_some(now)
    });
    println!("{before:?} before, {after:?} after");
    assert!(after.memory < before.memory + 1024, "{before:?} before, {after:?} after");
}

#[test]
fn a_guest_that_does_not_read_costs_a_bounded_amount() {
    const STREAMS: usize = 200;
    let mut world = World::new();
    let listener = world.outside.listen((OUTSIDE, 80));
    let flood = thread::spawn(move || {
        let mut streams = Vec::new();
        for stream in listener.incoming().take(STREAMS) {
            let mut stream = stream.expect("a connection");
            stream.set_nonblocking(true).expect("a socket option");
            while stream.write(&[0; 64 * 1024]).is_ok() {}
            streams.push(stream);
        }
        streams
    });
    let silent: Vec<_> = (0..STREAMS)
        .map(|_| world.guest.connect((OUTSIDE, 80)).expect("a server listens there"))
        .collect();
    let mut streams = flood.join().expect("everybody was served");
    // Until no socket on the way takes more.
    eventually("a standstill", Duration::from_secs(20), || {
        let moved = streams.iter_mut().filter_map(|stream| stream.write(&[0; 64 * 1024]).ok());
        (moved.sum::<usize>() == 0).then_some(())
    });
    let held = holdings(&mut world);
    println!("{held:?} with {} streams", silent.len());
    assert!(held.memory < 100 * 1024, "{held:?}");
}

#[test]
fn at_the_limit_of_descriptors_old_connections_live() {
    let mut world = World::new();
    echo(world.outside.listen((OUTSIDE, 80)));
    let limit = 64;
    let daemon = Pid::from_raw(world.netd.process().id().try_into().expect("a pid"));
    prlimit(daemon, Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })
        .expect("root may limit others");
    let connect = |world: &World| world.guest.connect((OUTSIDE, 80));
    let mut old: Vec<_> = (0..200).filter_map(|_| connect(&world).ok()).collect();
    assert!((20..64).contains(&old.len()), "{} connections with {limit} descriptors", old.len());
    connect(&world).expect_err("there is no descriptor for it");
    for stream in &mut old {
        let mut word = [0; 5];
        stream.write_all(b"alive").expect("the connection lives");
        stream.read_exact(&mut word).expect("the connection lives");
        assert_eq!(&word, b"alive");
    }
    for stream in old.drain(..10) {
        stream.shutdown(Shutdown::Both).expect("a connection can be ended");
    }
    eventually("a connection once there is room", Duration::from_secs(20), || connect(&world).ok());
}
