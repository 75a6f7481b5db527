//! Guests on a stream socket: with the gateway, with each other, and against each other.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::support::{GATEWAY, Guest, Netd, eventually};

const BROADCAST: [u8; 6] = [0xff; 6];

fn start() -> Netd {
    Netd::start(&["--listen-qemu", "{}/qemu"])
}

#[test]
fn guests_of_one_listener_find_each_other() {
    let netd = start();
    let mut a = Guest::connect(&netd.path("qemu"), 15);
    let mut b = Guest::connect(&netd.path("qemu"), 16);
    a.send(&a.arp(BROADCAST, 1, [0; 6], b.ip));
    // b has said nothing so far, and hears the question all the same.
    let question = b.recv_type(0x0806);
    assert_eq!((&question[6..12], &question[38..42]), (&a.mac[..], &b.ip[..]));
    b.send(&b.arp(a.mac, 2, a.mac, a.ip));
    let answer = a.recv_type(0x0806);
    assert_eq!((&answer[..6], &answer[6..12]), (&a.mac[..], &b.mac[..]));
    // Now that the switch knows both, the longest frame goes from one to the other unchanged.
    let mut frame = [&b.mac[..], &a.mac, &[0x88, 0xb5]].concat();
    frame.resize(14 + 65520, 0xa5);
    a.send(&frame);
    assert_eq!(b.recv_type(0x88b5), frame);
}

#[test]
fn guests_come_and_go() {
    let netd = start();
    for _ in 0..50 {
        let mut guest = Guest::connect(&netd.path("qemu"), 15);
        guest.resolve(GATEWAY);
    }
    let mut many: Vec<_> = (15..45).map(|n| Guest::connect(&netd.path("qemu"), n)).collect();
    for guest in &mut many {
        guest.resolve(GATEWAY);
    }
}

#[test]
fn guests_above_the_limit_of_files_wait_for_their_turn() {
    // Half of them are the daemon's own.
    let netd = Netd::start_with_files(&["--listen-qemu", "{}/qemu"], 28);
    let mut guests: Vec<_> = (0..30).map(|n| Guest::connect(&netd.path("qemu"), 15 + n)).collect();
    guests[0].resolve(GATEWAY);
    let before = netd.cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(netd.cpu_ticks() - before < 20, "the daemon spins");
    let mut last = guests.split_off(20);
    drop(guests);
    for guest in &mut last {
        guest.resolve(GATEWAY);
    }
}

#[test]
fn a_guest_that_breaks_the_framing_is_let_go_and_nobody_else() {
    let netd = start();
    let mut good = Guest::connect(&netd.path("qemu"), 15);
    let mut bad = Guest::connect(&netd.path("qemu"), 16);
    bad.stream.write_all(&[0xff; 4096]).unwrap();
    let end = bad.stream.read(&mut [0; 64]);
    assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    good.resolve(GATEWAY);
}

#[test]
fn a_guest_that_does_not_read_costs_bounded_memory_and_disturbs_nobody() {
    let netd = start();
    let mut deaf = Guest::connect(&netd.path("qemu"), 15);
    deaf.resolve(GATEWAY);
    let mut loud = Guest::connect(&netd.path("qemu"), 16);
    let mut frame = [&deaf.mac[..], &loud.mac, &[0x88, 0xb5]].concat();
    frame.resize(14 + 60_000, 0x5a);
    for _ in 0..1000 {
        loud.send(&frame);
    }
    loud.resolve(GATEWAY);
    assert!(netd.memory("VmHWM") < 40 * 1024, "{} KiB", netd.memory("VmHWM"));
    // What was kept for it is whole, and it can go on once it reads.
    assert_eq!(deaf.recv_type(0x88b5), frame);
    deaf.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    while deaf.stream.read(&mut [0; 65536]).is_ok_and(|n| n > 0) {}
    deaf.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    eventually(|| Some(deaf.resolve(GATEWAY)));
}

#[test]
fn a_flood_of_one_guest_does_not_starve_another() {
    let netd = start();
    let mut loud = Guest::connect(&netd.path("qemu"), 15);
    let quiet = netd.path("qemu");
    let gateway = loud.resolve(GATEWAY);
    let mut flood = Vec::new();
    for _ in 0..64 {
        // To a port that is not there: each asks for work.
        let mut frame = [&gateway[..], &loud.mac, &[0x08, 0x00]].concat();
        frame.resize(1000, 0);
        flood.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        flood.extend_from_slice(&frame);
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                loud.stream.write_all(&flood).unwrap();
            }
        });
        for number in 20..40 {
            Guest::connect(&quiet, number).resolve(GATEWAY);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
