//! Listeners, and the words for those that cannot be had.
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use common::Rig;
use vmlan_engine::io::{Accepted, Close, DatagramKind, Failure, ListenAddr, Received};
use vmlan_engine::{Host, SockId, Token};

fn free(at: &str) -> SocketAddr {
    TcpListener::bind(at).unwrap().local_addr().unwrap()
}

fn accept(rig: &mut Rig, listener: SockId, token: u64) -> (SockId, Option<SocketAddr>) {
    rig.until("a connection", |rig| match rig.sockets.accept(listener, Token(token)) {
        Accepted::Stream { sock, peer } => Some((sock, peer)),
        Accepted::Blocked => None,
        Accepted::Failed(failure) => panic!("{failure:?}"),
    })
}

fn this_process() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    format!("{} (pid {})", name.trim(), std::process::id())
}

#[test]
fn connections_are_accepted_with_their_peers_address() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let mut rig = Rig::new();
        let addr = free(at);
        let listener = rig.sockets.listen(Token(1), &ListenAddr::Tcp(addr)).unwrap();
        assert_eq!(rig.sockets.accept(listener, Token(2)), Accepted::Blocked);
        rig.event_if_any(1);
        let mut client = TcpStream::connect(addr).unwrap();
        assert!(rig.event(1).readable);
        let (sock, peer) = accept(&mut rig, listener, 2);
        assert_eq!(peer, Some(client.local_addr().unwrap()));
        assert_eq!(rig.sockets.accept(listener, Token(3)), Accepted::Blocked);

        common::dialogue(&mut rig, 2, sock, &mut client);
        client.write_all(b"hello").unwrap();
        drop(client);
        assert_eq!(rig.read_to_end(2, sock), (Received::Eof, b"hello".to_vec()));
        rig.sockets.close(listener, Close::Normal);
        assert!(TcpStream::connect(addr).is_err());
        // At once again, although connections of before are in TIME_WAIT.
        rig.sockets.listen(Token(1), &ListenAddr::Tcp(addr)).unwrap();
    }
}

#[test]
fn the_two_families_do_not_disturb_each_other() {
    let mut rig = Rig::new();
    let port = free("[::]:0").port();
    for (token, at) in [(1, "[::]"), (2, "0.0.0.0")] {
        let addr = format!("{at}:{port}").parse().unwrap();
        rig.sockets.listen(Token(token), &ListenAddr::Tcp(addr)).unwrap();
    }
}

#[test]
fn the_holder_of_a_port_is_named() {
    let mut rig = Rig::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let error = rig.sockets.listen(Token(1), &ListenAddr::Tcp(addr)).unwrap_err();
    assert_eq!(error, format!("{addr} is already in use by {}", this_process()));

    let held = TcpListener::bind("[::]:0").unwrap();
    let addr = format!("[::1]:{}", held.local_addr().unwrap().port()).parse().unwrap();
    let error = rig.sockets.listen(Token(1), &ListenAddr::Tcp(addr)).unwrap_err();
    assert_eq!(error, format!("{addr} is already in use by {}", this_process()));

    let held = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let opened = rig.sockets.datagram_open(Token(1), DatagramKind::UdpBound(addr));
    assert_eq!(opened, Err(Failure::Exhausted));
    let error = rig.sockets.explain_bind(&ListenAddr::Udp(addr));
    assert_eq!(error, format!("{addr}/udp is already in use by {}", this_process()));
    assert_eq!(rig.sockets.open_sockets(), 0);
}

#[test]
fn addresses_of_others_are_refused_in_words() {
    let mut rig = Rig::new();
    let addr: SocketAddr = "203.0.113.7:8080".parse().unwrap();
    let error = rig.sockets.listen(Token(1), &ListenAddr::Tcp(addr)).unwrap_err();
    let expected = "203.0.113.7 is none of this machine's addresses";
    assert_eq!(error, format!("cannot listen on {addr}: {expected}"));
    rig.sockets.datagram_open(Token(1), DatagramKind::UdpBound(addr)).unwrap_err();
    let error = rig.sockets.explain_bind(&ListenAddr::Udp(addr));
    assert_eq!(error, format!("cannot listen on {addr}/udp: {expected}"));
    let error = rig.sockets.listen(Token(1), &ListenAddr::Udp(addr)).unwrap_err();
    assert!(error.contains("not a stream"), "{error}");
}

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    at: ListenAddr,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    Place { _dir: dir, at: ListenAddr::Unix(path.clone()), path }
}

#[test]
fn unix_sockets_are_private_and_go_with_their_listener() {
    let place = place();
    let mut rig = Rig::new();
    let listener = rig.sockets.listen(Token(1), &place.at).unwrap();
    let mode = std::fs::metadata(&place.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = UnixStream::connect(&place.path).unwrap();
    let (sock, peer) = accept(&mut rig, listener, 2);
    assert_eq!(peer, None);
    client.write_all(b"hello").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rig.read_to_end(2, sock), (Received::Eof, b"hello".to_vec()));
    rig.send(sock, b"back");
    rig.sockets.close(sock, Close::Normal);
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"back");
    rig.sockets.close(listener, Close::Normal);
    assert!(!place.path.exists());
    // The end of the whole host is one, too.
    rig.sockets.listen(Token(1), &place.at).unwrap();
    assert!(place.path.exists());
    drop(rig);
    assert!(!place.path.exists());
}

#[test]
fn only_stale_unix_sockets_are_replaced() {
    let place = place();
    let mut rig = Rig::new();
    let shown = place.path.display();

    std::fs::write(&place.path, "precious").unwrap();
    let error = rig.sockets.listen(Token(1), &place.at).unwrap_err();
    assert_eq!(error, format!("cannot listen on {shown}: a file that is no socket is there"));
    assert_eq!(std::fs::read_to_string(&place.path).unwrap(), "precious");
    std::fs::remove_file(&place.path).unwrap();

    let alive = UnixListener::bind(&place.path).unwrap();
    let error = rig.sockets.listen(Token(1), &place.at).unwrap_err();
    assert_eq!(error, format!("{shown} is already in use by {}", this_process()));
    drop(alive);

    let listener = rig.sockets.listen(Token(1), &place.at).unwrap();
    // Somebody else's by now: it stays.
    std::fs::remove_file(&place.path).unwrap();
    std::fs::write(&place.path, "new").unwrap();
    rig.sockets.close(listener, Close::Normal);
    assert_eq!(std::fs::read_to_string(&place.path).unwrap(), "new");

    let nowhere = ListenAddr::Unix("/nonexistent/socket".into());
    let error = rig.sockets.listen(Token(1), &nowhere).unwrap_err();
    assert_eq!(error, "cannot listen on /nonexistent/socket: no such file or directory");
    let long = ListenAddr::Unix(format!("/tmp/{}", "x".repeat(200)).into());
    let error = rig.sockets.listen(Token(1), &long).unwrap_err();
    assert!(error.ends_with("the path is too long for a socket"), "{error}");
}
