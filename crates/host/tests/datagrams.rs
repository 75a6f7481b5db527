//! UDP over the loopback: batches, and what comes back on the error queue.
#![cfg(target_os = "linux")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use common::{PLAIN, Rig};
use vmlan_engine::io::{Close, DatagramKind, Drained};
use vmlan_engine::{Host, SockId, Token};

fn peer(at: &str) -> (UdpSocket, SocketAddr) {
    let peer = UdpSocket::bind(at).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let addr = peer.local_addr().unwrap();
    (peer, addr)
}

fn open(rig: &mut Rig, kind: DatagramKind) -> SockId {
    rig.sockets.datagram_open(Token(1), kind).unwrap()
}

/// Everything there is to read now.
fn read_all(rig: &mut Rig, sock: SockId, budget: usize) -> (Drained, Vec<(SocketAddr, Vec<u8>)>) {
    let mut all = Vec::new();
    let drained = rig.sockets.datagram_recv(sock, budget, &mut |batch| {
        all.extend(batch.iter().map(|datagram| (datagram.from, datagram.data.to_vec())));
    });
    (drained, all)
}

#[test]
fn datagrams_go_and_come_in_both_families() {
    for (kind, at) in [(DatagramKind::Udp4, "127.0.0.1:0"), (DatagramKind::Udp6, "[::1]:0")] {
        let mut rig = Rig::new();
        let (peer, addr) = peer(at);
        let sock = open(&mut rig, kind);
        assert_eq!(rig.sockets.datagram_send(sock, addr, PLAIN, &[b"question"]), 1);
        let mut buf = [0; 100];
        let (len, from) = peer.recv_from(&mut buf).unwrap();
        assert_eq!(&buf[..len], b"question");
        rig.event_if_any(1);
        for n in 0..5 {
            peer.send_to(&vec![n; usize::from(n)], from).unwrap();
        }
        rig.until("five", |rig| rig.event_if_any(1).map(drop));
        let (drained, all) = read_all(&mut rig, sock, 64);
        assert_eq!(drained, Drained::Empty);
        let expected: Vec<_> = (0..5).map(|n| (addr, vec![n; usize::from(n)])).collect();
        assert_eq!(all, expected);
    }
}

#[test]
fn batches_keep_every_boundary_and_the_order() {
    let mut rig = Rig::new();
    let (peer, addr) = peer("127.0.0.1:0");
    let sock = open(&mut rig, DatagramKind::Udp4);
    let sizes: [&[usize]; 6] = [
        &[1400; 20],
        &[1400, 1400, 1400, 100, 1400, 1400],
        &[0, 0, 5, 5, 5, 0, 5],
        &[1, 2, 3, 2, 1],
        &[30_000, 30_000, 30_000],
        &[65_507, 65_507, 1],
    ];
    let mut buf = vec![0; 1 << 16];
    for sizes in sizes {
        let payloads: Vec<Vec<u8>> =
            sizes.iter().zip(0..).map(|(&size, n)| vec![n; size]).collect();
        let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        assert_eq!(rig.sockets.datagram_send(sock, addr, PLAIN, &slices), sizes.len());
        for payload in &payloads {
            let len = peer.recv(&mut buf).unwrap();
            assert!(buf[..len] == payload[..], "{len} of {sizes:?}");
        }
    }
}

#[test]
fn a_batch_larger_than_one_call_is_sent_whole() {
    let mut rig = Rig::new();
    let (peer, addr) = peer("127.0.0.1:0");
    let sock = open(&mut rig, DatagramKind::Udp4);
    let payloads: Vec<Vec<u8>> = (0..90).map(|n| vec![n; 2 + usize::from(n) % 2]).collect();
    let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    assert_eq!(rig.sockets.datagram_send(sock, addr, PLAIN, &slices), 90);
    let mut buf = [0; 100];
    for payload in &payloads {
        let len = peer.recv(&mut buf).unwrap();
        assert_eq!(&buf[..len], payload);
    }
}

#[test]
fn the_budget_is_kept_and_the_rest_is_left() {
    let mut rig = Rig::new();
    let (peer, addr) = peer("127.0.0.1:0");
    let sock = open(&mut rig, DatagramKind::Udp4);
    rig.sockets.datagram_send(sock, addr, PLAIN, &[b"x"]);
    let (_, from) = peer.recv_from(&mut [0; 10]).unwrap();
    for n in 0..100 {
        peer.send_to(&[n], from).unwrap();
    }
    let (drained, first) = read_all(&mut rig, sock, 70);
    assert_eq!((drained, first.len()), (Drained::More, 70));
    let (drained, rest) = read_all(&mut rig, sock, 70);
    assert_eq!((drained, rest.len()), (Drained::Empty, 30));
    assert_eq!(rest[29].1, [99]);
    assert_eq!(read_all(&mut rig, sock, 70).0, Drained::Empty);
}

#[test]
fn a_closed_port_is_told_by_the_error_queue() {
    let cases = [(DatagramKind::Udp4, "127.0.0.1:0", 3, 3), (DatagramKind::Udp6, "[::1]:0", 1, 4)];
    for (kind, at, icmp, code) in cases {
        let mut rig = Rig::new();
        let (closed, addr) = peer(at);
        // Held but connected elsewhere: nobody else gets it, and it refuses.
        closed.connect(SocketAddr::new(addr.ip(), 9)).unwrap();
        let sock = open(&mut rig, kind);
        rig.sockets.datagram_send(sock, addr, PLAIN, &[b"anybody there"]);
        rig.until("an error", |rig| Some(rig.event(1)).filter(|ready| ready.error));
        let mut seen = Vec::new();
        rig.sockets.datagram_errors(sock, &mut |error| {
            assert_eq!((error.kind, error.code, error.mtu, error.to), (icmp, code, 0, addr));
            assert_eq!(error.offender, Some(addr.ip()));
            seen.push(error.data.to_vec());
        });
        assert_eq!(seen, [b"anybody there"]);
        rig.sockets.datagram_errors(sock, &mut |error| panic!("{error:?}"));

        // The error of one peer takes nothing from another.
        let (good, to) = peer(at);
        for payloads in [&[&b"one"[..]][..], &[b"one", b"two"], &[b"a", b"b", b"longer"]] {
            rig.sockets.datagram_send(sock, addr, PLAIN, &[b"again"]);
            assert_eq!(rig.sockets.datagram_send(sock, to, PLAIN, payloads), payloads.len());
            let mut buf = [0; 100];
            for payload in payloads {
                let len = good.recv(&mut buf).unwrap();
                assert_eq!(&buf[..len], *payload);
            }
        }
        // Nor from what is to be read.
        rig.sockets.datagram_send(sock, to, PLAIN, &[b"who"]);
        let (_, from) = good.recv_from(&mut [0; 10]).unwrap();
        good.send_to(b"first", from).unwrap();
        rig.sockets.datagram_send(sock, addr, PLAIN, &[b"again"]);
        good.send_to(b"second", from).unwrap();
        let (drained, all) = read_all(&mut rig, sock, 64);
        assert_eq!(drained, Drained::Empty);
        assert_eq!(all, [(to, b"first".to_vec()), (to, b"second".to_vec())]);
    }
}

#[test]
fn options_are_carried_and_follow_each_change() {
    let mut rig = Rig::new();
    let (peer, addr) = peer("127.0.0.1:0");
    for option in [libc::IP_RECVTTL, libc::IP_RECVTOS] {
        let on: i32 = 1;
        // SAFETY: an `int` option whose value lives through the call.
        let done = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&peer);
            libc::setsockopt(fd, libc::IPPROTO_IP, option, (&raw const on).cast(), 4)
        };
        assert_eq!(done, 0);
    }
    let sock = open(&mut rig, DatagramKind::Udp4);
    for (ttl, tos) in [(63, 0), (63, 0xb9), (5, 0xb9), (5, 0), (64, 0)] {
        let mut options = PLAIN;
        (options.ttl, options.tos) = (ttl, tos);
        rig.sockets.datagram_send(sock, addr, options, &[b"x"]);
        assert_eq!(ttl_and_tos(&peer), (ttl, tos));
    }
}

/// TTL and traffic class of the next datagram.
fn ttl_and_tos(peer: &UdpSocket) -> (u8, u8) {
    let mut data = [0_u8; 10];
    let mut control = [0_u64; 16];
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: all-zero is a valid `msghdr`, and its pointers lead to locals with their true
    // lengths.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = 128;
        assert!(libc::recvmsg(std::os::fd::AsRawFd::as_raw_fd(peer), &raw mut message, 0) >= 0);
        let (mut ttl, mut tos) = (0, 0);
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            match (*header).cmsg_type {
                libc::IP_TTL => ttl = *libc::CMSG_DATA(header),
                libc::IP_TOS => tos = *libc::CMSG_DATA(header),
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        (ttl, tos)
    }
}

#[test]
fn a_forward_is_bound_where_it_was_asked() {
    let mut rig = Rig::new();
    let free = peer("127.0.0.1:0").1;
    let sock = open(&mut rig, DatagramKind::UdpBound(free));
    let (peer, addr) = peer("127.0.0.1:0");
    peer.send_to(b"in", free).unwrap();
    let (_, all) = read_all(&mut rig, sock, 8);
    assert_eq!(all, [(addr, b"in".to_vec())]);
    rig.sockets.datagram_send(sock, addr, PLAIN, &[b"out"]);
    assert_eq!(peer.recv_from(&mut [0; 10]).unwrap().1, free);
    rig.sockets.close(sock, Close::Normal);
    UdpSocket::bind(free).unwrap();
}

#[test]
fn a_forward_at_every_address_answers_from_the_one_that_was_asked() {
    for (any, asked) in [("0.0.0.0", "127.5.6.7"), ("::", "::1")] {
        let mut rig = Rig::new();
        let any: IpAddr = any.parse().unwrap();
        let port = peer(&SocketAddr::new(any, 0).to_string()).1.port();
        let sock = open(&mut rig, DatagramKind::UdpBound(SocketAddr::new(any, port)));
        let asked = SocketAddr::new(asked.parse().unwrap(), port);
        let (peer, addr) = peer(&SocketAddr::new(asked.ip(), 0).to_string());
        let local = if any.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let (second, second_addr) = self::peer(local);
        peer.send_to(b"in", asked).unwrap();
        second.send_to(b"in", asked).unwrap();
        assert_eq!(read_all(&mut rig, sock, 8).1.len(), 2);
        for (peer, addr) in [(&peer, addr), (&second, second_addr)] {
            for payloads in [&[&b"out"[..]][..], &[b"one", b"two"]] {
                rig.sockets.datagram_send(sock, addr, PLAIN, payloads);
                for _ in payloads {
                    assert_eq!(peer.recv_from(&mut [0; 10]).unwrap().1, asked);
                }
            }
        }
    }
}
