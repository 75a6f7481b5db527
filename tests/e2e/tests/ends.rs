//! Every way in which a connection can end, seen by the other side as what it is: for connections
//! that the guest makes, and for those that a forward makes to it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use vmlan_e2e::server::serve_one;
use vmlan_e2e::world::{GUEST, HOST, OUTSIDE, OUTSIDE6};
use vmlan_e2e::{World, pattern};

const LENGTH: usize = 4 << 20;

/// Runs a check on a connection of each kind: first the end in the guest, then the other one.
#[track_caller]
fn on_each_kind(check: impl Fn(TcpStream, TcpStream)) {
    let world = World::with(&["--forward", "127.0.0.1:8080=192.168.5.15:80"]);
    for (at, to) in [(OUTSIDE, OUTSIDE), (OUTSIDE6, OUTSIDE6), ([127, 0, 0, 1].into(), HOST)] {
        let netns = if to == HOST { &world.host } else { &world.outside };
        let server = serve_one(netns.listen((at, 80)), |stream| stream);
        let client = world.guest.connect((to, 80)).expect("a server listens there");
        check(client, server.join().expect("a connection"));
    }
    let server = serve_one(world.guest.listen((GUEST, 80)), |stream| stream);
    let client = world.host.connect(([127, 0, 0, 1], 8080)).expect("a forward");
    check(server.join().expect("a connection"), client);
}

#[track_caller]
fn expect_end(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an end in order");
    assert_eq!(rest, b"");
}

#[track_caller]
fn expect_reset(mut stream: &TcpStream) {
    let error = stream.read(&mut [0; 16]).expect_err("the connection was reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Closes with RST.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket option");
    drop(stream);
}

/// `first` ends its direction, and the other direction goes on.
#[track_caller]
fn half_close(first: &TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a direction can be ended");
    expect_end(&second);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pattern::send(&mut &second, 1, LENGTH).expect("the other direction is open");
        });
        pattern::expect(&mut &*first, 1, LENGTH);
    });
}

#[test]
fn guest_ends_first_and_still_receives() {
    on_each_kind(|guest, other| half_close(&guest, other));
}

#[test]
fn other_side_ends_first_and_still_receives() {
    on_each_kind(|guest, other| half_close(&other, guest));
}

#[test]
fn reset_by_the_guest_is_a_reset() {
    on_each_kind(|guest, other| {
        reset(guest);
        expect_reset(&other);
    });
}

#[test]
fn reset_by_the_other_side_is_a_reset() {
    on_each_kind(|guest, other| {
        reset(other);
        expect_reset(&guest);
    });
}

/// One end is full of what the other has sent and reads nothing: it hears of the reset all the same.
#[track_caller]
fn reset_of_one_who_is_not_read(stuck: &TcpStream, mut from: TcpStream) {
    from.set_nonblocking(true).expect("a socket option");
    let mut quiet = 0;
    while quiet < 10 {
        if from.write(&[7; 65_536]).is_ok_and(|written| written > 0) {
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    reset(from);
    let mut ends = [PollFd::new(stuck, PollFlags::empty())];
    poll(&mut ends, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).expect("a socket");
    assert!(ends[0].revents().contains(PollFlags::ERR), "not told within five seconds");
}

#[test]
fn a_reset_overtakes_what_nobody_reads() {
    on_each_kind(|guest, other| reset_of_one_who_is_not_read(&guest, other));
    on_each_kind(|guest, other| reset_of_one_who_is_not_read(&other, guest));
}

#[test]
fn reset_after_a_half_close_is_a_reset() {
    on_each_kind(|guest, other| {
        guest.shutdown(Shutdown::Write).expect("a direction can be ended");
        expect_end(&other);
        reset(other);
        expect_reset(&guest);
    });
}

#[test]
fn unread_data_turns_a_close_into_a_reset() {
    on_each_kind(|mut guest, other| {
        guest.write_all(b"never read").expect("bytes can be sent");
        let mut peeked = [0; 10];
        while other.peek(&mut peeked).expect("bytes arrive") < peeked.len() {}
        drop(other);
        expect_reset(&guest);
    });
}

#[test]
fn data_before_an_end_is_not_lost() {
    let last_words = |mut from: TcpStream, mut to: TcpStream| {
        from.write_all(b"last words").expect("bytes can be sent");
        drop(from);
        let mut received = Vec::new();
        to.read_to_end(&mut received).expect("an end in order");
        assert_eq!(received, b"last words");
    };
    on_each_kind(last_words);
    on_each_kind(|guest, other| last_words(other, guest));
}

#[test]
fn sending_after_the_peer_closed_is_a_reset() {
    on_each_kind(|mut guest, other| {
        drop(other);
        expect_end(&guest);
        // The first segment finds out, a later one is told.
        let told = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            guest.write_all(b"anybody?").err()
        });
        let kind = told.expect("an error").kind();
        assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind:?}");
    });
}
