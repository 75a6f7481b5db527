//! TCP connections over the loopback.

mod common;

use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use common::Rig;
use rustix::net::sockopt;
use vmlan_engine::io::{Close, Failure, Received, Sent, StreamTarget};
use vmlan_engine::{Host, SockId, Token};

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A port that nobody listens on, kept from others while the socket lives.
fn closed_port() -> (rustix::fd::OwnedFd, SocketAddr) {
    let fd = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&fd, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let addr = rustix::net::getsockname(&fd).unwrap().try_into().unwrap();
    (fd, addr)
}

fn pair(rig: &mut Rig, token: u64) -> (SockId, TcpStream) {
    let (listener, addr) = listener();
    let sock = rig.connect(token, addr).unwrap();
    (sock, listener.accept().unwrap().0)
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_on_its_own() {
    let mut rig = Rig::new();
    let (sock, mut peer) = pair(&mut rig, 7);
    let parts = [IoSlice::new(b"hello "), IoSlice::new(b""), IoSlice::new(b"world")];
    assert_eq!(rig.sockets.send(sock, &parts), Sent::Data(11));
    rig.sockets.shutdown_write(sock);
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"hello world");

    // The other direction is still open.
    assert_eq!(rig.recv(sock).0, Received::Blocked);
    peer.write_all(&[7; 300]).unwrap();
    drop(peer);
    let (end, all) = rig.read_to_end(7, sock);
    assert_eq!((end, all), (Received::Eof, vec![7; 300]));
    assert_eq!(rig.sockets.open_sockets(), 1);
    rig.sockets.close(sock, Close::Normal);
    assert_eq!(rig.sockets.open_sockets(), 0);
}

#[test]
fn a_refused_connect_is_told_as_refused() {
    let (_held, addr) = closed_port();
    let mut rig = Rig::new();
    assert_eq!(rig.connect(1, addr), Err(Failure::Refused));
    assert_eq!(rig.sockets.open_sockets(), 0);
}

#[test]
fn resets_are_seen_on_both_sides() {
    let mut rig = Rig::new();
    let (sock, peer) = pair(&mut rig, 1);
    sockopt::set_socket_linger(&peer, Some(std::time::Duration::ZERO)).unwrap();
    drop(peer);
    let (end, _) = rig.read_to_end(1, sock);
    assert_eq!(end, Received::Failed(Failure::Reset));
    assert_eq!(rig.send(sock, b"x"), Sent::Failed(Failure::Reset));
    rig.sockets.close(sock, Close::Normal);

    let (sock, mut peer) = pair(&mut rig, 2);
    rig.sockets.close(sock, Close::Reset);
    let error = peer.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let (sock, mut peer) = pair(&mut rig, 3);
    rig.sockets.close(sock, Close::Normal);
    assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn a_full_socket_blocks_and_tells_when_there_is_room() {
    let mut rig = Rig::new();
    let (sock, mut peer) = pair(&mut rig, 9);
    rig.event_if_any(9);
    let chunk = vec![0x5a; 1 << 16];
    let mut sent = 0;
    loop {
        match rig.send(sock, &chunk) {
            Sent::Data(len) => sent += len,
            Sent::Blocked => break,
            Sent::Failed(failure) => panic!("{failure:?}"),
        }
    }
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all.len()
    });
    assert!(rig.event(9).writable);
    let Sent::Data(more) = rig.send(sock, &chunk) else { panic!("still blocked") };
    rig.sockets.close(sock, Close::Normal);
    assert_eq!(reader.join().unwrap(), sent + more);
}

#[test]
fn a_read_that_ends_with_the_stream_says_closed() {
    let mut rig = Rig::new();
    let (sock, mut peer) = pair(&mut rig, 4);
    rig.event_if_any(4);
    peer.write_all(b"last words").unwrap();
    drop(peer);
    let ready = rig.until("the end", |rig| Some(rig.event(4)).filter(|ready| ready.closed));
    assert!(ready.readable);
    assert_eq!(rig.read_to_end(4, sock), (Received::Eof, b"last words".to_vec()));
}

#[test]
fn empty_slices_are_neither_end_nor_failure() {
    let mut rig = Rig::new();
    let (sock, peer) = pair(&mut rig, 4);
    assert_eq!(rig.sockets.recv(sock, &mut []), Received::Data(0));
    assert_eq!(rig.sockets.send(sock, &[]), Sent::Data(0));
    drop(peer);
    let gone = SockId(99);
    assert_eq!(rig.recv(gone).0, Received::Failed(Failure::Other));
    assert_eq!(rig.send(gone, b"x"), Sent::Failed(Failure::Other));
    rig.sockets.close(gone, Close::Reset);
}

#[test]
fn small_writes_are_not_held_back() {
    let mut rig = Rig::new();
    let (listener, addr) = listener();
    let sock = rig.connect(1, addr).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    common::dialogue(&mut rig, 1, sock, &mut peer);
}

#[test]
fn loopback_over_ipv6_falls_back_to_ipv4() {
    let mut rig = Rig::new();
    let (listener, addr) = listener();
    let six: SocketAddr = format!("[::1]:{}", addr.port()).parse().unwrap();
    let sock = rig.connect(1, six).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    rig.send(sock, b"over");
    let mut heard = [0; 4];
    peer.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"over");
    drop(peer);
    assert_eq!(rig.read_to_end(1, sock).0, Received::Eof);
    drop(listener);

    assert_eq!(rig.connect(2, six), Err(Failure::Refused));

    let six = TcpListener::bind("[::1]:0").unwrap();
    let sock = rig.connect(3, six.local_addr().unwrap()).unwrap();
    let (mut peer, from) = six.accept().unwrap();
    assert!(from.is_ipv6());
    peer.write_all(b"six").unwrap();
    drop(peer);
    assert_eq!(rig.read_to_end(3, sock), (Received::Eof, b"six".to_vec()));
}

#[test]
fn closing_while_a_loopback_connect_is_unsettled_is_safe() {
    let mut rig = Rig::new();
    let (_held, addr) = closed_port();
    let six: SocketAddr = format!("[::1]:{}", addr.port()).parse().unwrap();
    for token in 0..100 {
        let target = StreamTarget::Tcp(six);
        let sock = rig.sockets.connect(Token(token), &target, None).unwrap();
        if token % 2 == 0 {
            rig.sockets.close(sock, Close::Normal);
        }
    }
    assert!(rig.event(99).error);
    rig.turn(std::time::Duration::ZERO);
    assert_eq!(rig.sockets.open_sockets(), 50);
}

#[test]
#[cfg(target_os = "linux")]
fn the_ttl_is_carried() {
    let mut rig = Rig::new();
    let (listener, addr) = listener();
    sockopt::set_ip_ttl(listener.as_fd(), 64).unwrap();
    let target = StreamTarget::Tcp(addr);
    let sock = rig.sockets.connect(Token(1), &target, Some(3)).unwrap();
    rig.event(1);
    assert_eq!(rig.sockets.take_error(sock), None);
    // Seen from the other end: IP_MINTTL would drop what comes with less.
    let (peer, _) = listener.accept().unwrap();
    let value: i32 = 4;
    // SAFETY: an `int` option whose value lives through the call.
    let done = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&peer),
            libc::IPPROTO_IP,
            libc::IP_MINTTL,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(done, 0);
    peer.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    rig.send(sock, b"too far");
    assert!((&peer).read(&mut [0; 10]).is_err());
}
