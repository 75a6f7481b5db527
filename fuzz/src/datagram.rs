//! Guests on one datagram socket, vfkit's hello included: each guest's frames come out whole, in
//! order and under its own number, and what is no frame does not come out at all.

use std::collections::HashMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU64, Ordering};

use vmlan_link::datagram::DatagramLink;
use vmlan_link::{Link, PeerId, Recv};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use crate::script::Script;

const GUESTS: usize = 4;
const STEPS: usize = 200;

/// A socket with a name of its own; abstract names leave nothing in the file system.
fn socket() -> (UnixDatagram, SocketAddr) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("vmlan-fuzz-{}-{count}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let socket = UnixDatagram::bind_addr(&address).expect("a free name");
    socket.set_nonblocking(true).expect("a socket");
    (socket, address)
}

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let mtu = [576, 1500, 65_520][usize::from(script.u8()) % 3];
    let (server, at) = socket();
    let mut link = DatagramLink::new(server.into(), mtu).expect("a link");
    let guests: Vec<_> = (0..GUESTS).map(|_| socket().0).collect();
    let mut sent: Vec<Vec<Vec<u8>>> = vec![Vec::new(); GUESTS];
    let mut seen: HashMap<PeerId, usize> = HashMap::new();
    let mut got = vec![0; GUESTS];
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        let op = script.u8();
        let guest = usize::from(op) % GUESTS;
        match op >> 5 {
            0..=3 => {
                let mut message = script.sized().to_vec();
                if let Some(first) = message.first_mut() {
                    // Whose it is, so that it is known again.
                    *first = guest as u8;
                }
                send(&guests[guest], &at, message, mtu, &mut sent[guest]);
            }
            4 => send(&guests[guest], &at, b"VFKT".to_vec(), mtu, &mut sent[guest]),
            5 => {
                let message = vec![guest as u8; usize::from(script.u16())];
                send(&guests[guest], &at, message, mtu, &mut sent[guest]);
            }
            6 => {
                let peer = PeerId(u32::from(script.u8() & 7));
                let data = vec![7; 14 + usize::from(script.u16()) % 1500];
                link.send(peer, &[OutFrame::whole(&data, Offload::NONE)]);
                link.flush();
            }
            _ => receive(&mut link, &sent, &mut got, &mut seen),
        }
        let mut room = [0; 2048];
        for guest in &guests {
            while guest.recv(&mut room).is_ok() {}
        }
    }
    receive(&mut link, &sent, &mut got, &mut seen);
    for guest in 0..GUESTS {
        assert_eq!(got[guest], sent[guest].len(), "frames of guest {guest} are missing");
    }
}

fn send(
    guest: &UnixDatagram,
    at: &SocketAddr,
    mut message: Vec<u8>,
    mtu: u16,
    sent: &mut Vec<Vec<u8>>,
) {
    // A frame with a VLAN tag is the longest; what is a little longer may pass or not.
    let longest = usize::from(mtu) + 18;
    if (longest..longest + 32).contains(&message.len()) {
        message.truncate(longest);
    }
    // A full queue is no concern of the link's.
    if guest.send_to_addr(&message, at).is_ok() && message.len() >= 14 && message.len() <= longest {
        sent.push(message);
    }
}

fn receive(
    link: &mut DatagramLink,
    sent: &[Vec<Vec<u8>>],
    got: &mut [usize],
    seen: &mut HashMap<PeerId, usize>,
) {
    let mut batch = FrameBatch::default();
    let mut patience = 100;
    loop {
        match link.recv(&mut batch) {
            Recv::Frames { peer, .. } => {
                for frame in batch.iter() {
                    let guest = usize::from(frame.data[0]);
                    assert_eq!(*seen.entry(peer).or_insert(guest), guest, "{peer:?}");
                    let want = sent[guest].get(got[guest]).expect("a frame that was sent");
                    assert!(frame.data == want, "not the frame that was next");
                    got[guest] += 1;
                }
            }
            // Its budget went to messages that are no frames.
            Recv::Empty if link.next_timeout().is_some() && patience > 0 => patience -= 1,
            Recv::Empty => return,
            Recv::Closed(reason) => panic!("closed: {reason:?}"),
        }
    }
}
