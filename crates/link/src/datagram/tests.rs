use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::packet::PacketLink;

struct Setup {
    dir: tempfile::TempDir,
    link: DatagramLink,
    batch: FrameBatch,
}

fn setup(mtu: u16) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("switch")).unwrap();
    let link = DatagramLink::new(socket.into(), mtu).unwrap();
    Setup { dir, link, batch: FrameBatch::default() }
}

impl Setup {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A guest whose socket is connected to the switch or not.
    fn guest(&self, name: &str, connect: bool) -> UnixDatagram {
        let socket = UnixDatagram::bind(self.path(name)).unwrap();
        if connect {
            socket.connect(self.path("switch")).unwrap();
        }
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    /// All that has come: who sent it, and the first bytes of the frames.
    fn drain(&mut self) -> Vec<(u32, Vec<u8>)> {
        let mut got = Vec::new();
        loop {
            match self.link.recv(&mut self.batch) {
                Recv::Frames { peer, .. } => {
                    got.push((peer.0, self.batch.iter().map(|f| f.data[0]).collect()));
                }
                Recv::Empty => return got,
                Recv::Closed(reason) => panic!("{reason}"),
            }
        }
    }
}

fn send(from: &UnixDatagram, to: &Path, first: u8, len: usize) {
    let mut data = vec![0; len];
    data[0] = first;
    from.send_to(&data, to).unwrap();
}

fn frame(data: &[u8]) -> OutFrame<'_> {
    OutFrame { head: &data[..14], body: [&data[14..], &[]], offload: Offload::NONE }
}

#[test]
fn a_hello_registers_a_guest_and_is_no_frame() {
    let mut s = setup(1500);
    let guest = s.guest("vfkit", true);
    guest.send(b"VFKT").unwrap();
    assert_eq!(s.drain(), [(0, vec![])]);
    // It can be sent to before it has sent a frame.
    assert_eq!(s.link.send(PeerId(0), &[frame(&[7; 60])]), 1);
    let mut got = [0; 100];
    assert_eq!(guest.recv(&mut got).unwrap(), 60);
    assert_eq!(got[..60], [7; 60]);
}

#[test]
fn guests_are_told_apart_and_keep_their_order() {
    let mut s = setup(1500);
    let (a, b, c) = (s.guest("a", false), s.guest("b", false), s.guest("c", false));
    let to = s.path("switch");
    for (guest, first) in [(&a, 1), (&b, 10), (&a, 2), (&c, 20), (&b, 11), (&a, 3)] {
        send(guest, &to, first, 60);
    }
    assert_eq!(s.drain(), [(0, vec![1, 2, 3]), (1, vec![10, 11]), (2, vec![20])]);
    assert_eq!(s.link.held.bytes.capacity(), 0);
    send(&b, &to, 12, 60);
    assert_eq!(s.drain(), [(1, vec![12])]);
}

#[test]
fn what_cannot_be_a_frame_is_left_out() {
    let mut s = setup(1500);
    let (a, to) = (s.guest("a", false), s.path("switch"));
    let nameless = UnixDatagram::unbound().unwrap();
    send(&nameless, &to, 1, 60);
    for (first, len) in [(2, 13), (3, 14), (4, 1518), (5, 1600), (6, 60)] {
        send(&a, &to, first, len);
    }
    assert_eq!(s.drain(), [(0, vec![3, 4, 6])]);
}

#[test]
fn many_frames_of_the_largest_size_pass_both_ways() {
    let mut s = setup(65520);
    let guest = s.guest("a", true);
    let to = s.path("switch");
    guest.set_nonblocking(true).unwrap();
    let big: Vec<u8> = (0..65534u32).map(|i| i.to_le_bytes()[0]).collect();
    let (mut sent, mut got) = (0, 0);
    while got < 100 {
        while sent < 100 && guest.send_to(&big, &to).is_ok() {
            sent += 1;
        }
        if let Recv::Frames { .. } = s.link.recv(&mut s.batch) {
            assert!(s.batch.iter().all(|f| f.data == big));
            got += s.batch.len();
        }
    }
    let (mut sent, mut got) = (0, 0);
    let mut buf = vec![0; 70_000];
    while got < 100 {
        sent += s.link.send(PeerId(0), &[frame(&big); 3][..3.min(100 - sent)]);
        s.link.flush();
        while let Ok(n) = guest.recv(&mut buf) {
            assert!(buf[..n] == big);
            got += 1;
        }
    }
}

#[test]
fn a_guest_that_left_is_reported_and_its_number_used_again() {
    let mut s = setup(1500);
    let (a, b) = (s.guest("a", false), s.guest("b", false));
    let to = s.path("switch");
    send(&a, &to, 1, 60);
    send(&b, &to, 1, 60);
    s.drain();
    drop(a);
    assert_eq!(s.link.send(PeerId(0), &[frame(&[7; 60]); 3]), 3, "refused");
    std::fs::remove_file(s.path("b")).unwrap();
    assert_eq!(s.link.send(PeerId(1), &[frame(&[7; 60])]), 1, "no such path");
    assert_eq!(s.link.take_gone(), [PeerId(0), PeerId(1)]);
    assert_eq!(s.link.take_gone(), []);
    let c = s.guest("c", false);
    send(&c, &to, 5, 60);
    let new = s.drain();
    assert_eq!((new.len(), new[0].0 < 2), (1, true));
}

#[test]
fn a_guest_that_does_not_read_is_not_waited_for_forever() {
    for connect in [false, true] {
        let mut s = setup(1500);
        let guest = s.guest("a", connect);
        guest.send_to(b"VFKT", s.path("switch")).unwrap();
        s.drain();
        let mut sent = 0;
        while s.link.send(PeerId(0), &[frame(&[7; 1500])]) == 1 {
            sent += 1;
            assert!(sent < 100_000);
        }
        assert_eq!(s.link.flush(), Flushed::Blocked);
        // An event tells when the socket's own buffer has room, a time to try when it is the
        // guest's that is full.
        assert_eq!(s.link.next_timeout().is_some(), !connect);
        let mut buf = [0; 2000];
        for _ in 0..sent {
            assert_eq!(guest.recv(&mut buf).unwrap(), 1500);
        }
        if let Some(at) = s.link.next_timeout() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
        assert_eq!(s.link.flush(), Flushed::Done);
        assert_eq!(s.link.next_timeout(), None);
        assert_eq!(s.link.send(PeerId(0), &[frame(&[7; 1500])]), 1);
    }
}

#[test]
fn the_most_silent_guest_makes_place() {
    let mut s = setup(1500);
    let to = s.path("switch");
    let first = s.guest("first", false);
    send(&first, &to, 1, 60);
    s.drain();
    for i in 0..MAX_PEERS {
        let guest = s.guest(&format!("g{i}"), false);
        send(&guest, &to, 1, 60);
        assert_eq!(s.drain().len(), 1);
    }
    assert_eq!(s.link.take_gone(), [PeerId(0)]);
    assert_eq!(s.link.peers.len(), MAX_PEERS);
}

#[test]
fn connected_sockets_carry_frames_and_their_end() {
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let [mut a, mut b] = <[_; 2]>::from(pair).map(|fd| PacketLink::new(fd, 1500).unwrap());
        let mut batch = FrameBatch::default();
        assert!(matches!(b.recv(&mut batch), Recv::Empty));
        let (short, long) = ([1; 60], [2; 1514]);
        assert_eq!(a.send(PeerId(0), &[frame(&short), frame(&long), frame(&short)]), 3);
        assert!(matches!(b.recv(&mut batch), Recv::Frames { more: false, .. }));
        let got: Vec<_> = batch.iter().map(|f| f.data.len()).collect();
        assert_eq!(got, [60, 1514, 60]);
        // As many as there is room for, and told when there is some again.
        let mut sent = 0;
        while a.send(PeerId(0), &[frame(&long)]) == 1 {
            sent += 1;
            assert!(sent < 100_000);
        }
        assert_eq!(a.flush(), Flushed::Blocked);
        let mut got = 0;
        while let Recv::Frames { .. } = b.recv(&mut batch) {
            got += batch.len();
        }
        assert_eq!(got, sent);
        if let Some(at) = a.next_timeout() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
        assert_eq!(a.flush(), Flushed::Done);
        assert_eq!(a.send(PeerId(0), &[frame(&short)]), 1);
        drop(a);
        let last = b.recv(&mut batch);
        assert!(matches!(last, Recv::Frames { .. }), "{last:?}");
        assert_eq!(batch.len(), 1);
        assert_eq!(b.send(PeerId(0), &[frame(&short); 2]), 2);
        assert_eq!(b.flush(), Flushed::Closed);
        assert!(matches!(b.recv(&mut batch), Recv::Closed(CloseReason::Eof)));
    }
}
