//! At the limit of file descriptors. Alone in its process, for the limit is the process's.
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use common::Rig;
use rustix::process::{Resource, getrlimit, setrlimit};
use vmlan_engine::io::{
    Accepted, Close, DatagramKind, Failure, ListenAddr, Received, StreamTarget,
};
use vmlan_engine::{Host, PortId, Token};
use vmlan_host::raise_fd_limit;

#[test]
fn at_the_limit_new_flows_are_refused_and_old_ones_live() {
    let mut rig = Rig::new();
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = StreamTarget::Tcp(outside.local_addr().unwrap());
    let old = rig.connect(1, outside.local_addr().unwrap()).unwrap();
    let (mut peer, _) = outside.accept().unwrap();
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = rig.sockets.listen(Token(2), &ListenAddr::Tcp(at)).unwrap();
    let mut clients: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(at).unwrap()).collect();

    // The limit is on numbers, and new descriptors get the lowest that is free.
    let lowest = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
    let before = getrlimit(Resource::Nofile);
    let mut tight = getrlimit(Resource::Nofile);
    tight.current = Some(u64::try_from(lowest).unwrap());
    setrlimit(Resource::Nofile, tight).unwrap();

    assert_eq!(rig.sockets.connect(Token(3), &target, None), Err(Failure::Exhausted));
    let dns = rig.sockets.connect(Token(3), &StreamTarget::Dns(PortId(1)), None);
    assert_eq!(dns, Err(Failure::Exhausted));
    let udp = rig.sockets.datagram_open(Token(3), DatagramKind::Udp4);
    assert_eq!(udp, Err(Failure::Exhausted));
    let error = rig.sockets.listen(Token(3), &ListenAddr::Tcp("127.0.0.1:0".parse().unwrap()));
    assert!(error.unwrap_err().contains("too many files"));
    let accepted = rig.sockets.accept(listener, Token(4));
    assert_eq!(accepted, Accepted::Failed(Failure::Exhausted));
    rig.sockets.dns_query(
        Token(5),
        PortId(1),
        &[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
    );
    assert_eq!(rig.answer(5)[3] & 0x0f, 2, "no socket to ask with");

    peer.write_all(b"alive").unwrap();
    drop(peer);
    assert_eq!(rig.read_to_end(1, old), (Received::Eof, b"alive".to_vec()));
    rig.sockets.close(old, Close::Normal);

    // Room for one: the connection has waited in the backlog.
    let accepted = rig.sockets.accept(listener, Token(4));
    assert!(matches!(accepted, Accepted::Stream { .. }), "{accepted:?}");
    assert_eq!(raise_fd_limit(), before.maximum);
    assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    let accepted = rig.sockets.accept(listener, Token(5));
    assert!(matches!(accepted, Accepted::Stream { .. }), "{accepted:?}");
    assert_eq!(rig.sockets.accept(listener, Token(6)), Accepted::Blocked);
    clients.clear();
}
