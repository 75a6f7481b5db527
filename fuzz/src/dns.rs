//! DNS messages from a guest, over UDP and TCP, and answers from the host's name service that are
//! whatever the input says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use vmlan_testkit::packet::{self, ACK, Packet, SYN, Tcp};
use vmlan_testkit::{LinkOptions, Remote, World, addr};
use vmlan_wire::Mac;

use crate::script::Script;

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new(1);
    let port = world.add_port(LinkOptions::plain(1500));
    let (mac, gateway) = (Mac([2, 0, 0, 0, 0, 1]), world.engine.config().gateway_mac);
    let answers = Rc::new(RefCell::new(VecDeque::<Vec<u8>>::new()));
    let queue = Rc::clone(&answers);
    world.host.set_dns(move |_| queue.borrow_mut().pop_front());
    world.host.dns_stream = Remote::echo();
    for round in 0..200u16 {
        if script.is_empty() {
            break;
        }
        let how = script.u8();
        let (from, to) = (addr("192.168.5.15:5000"), addr("192.168.5.3:53"));
        let (from6, to6) =
            (addr("[fd76:6d6c:c0a8:500::15]:5000"), addr("[fd76:6d6c:c0a8:500::3]:53"));
        if how & 1 != 0 {
            answers.borrow_mut().push_back(script.sized().to_vec());
        }
        let message = query(&mut script, how);
        match how >> 6 {
            0 | 1 => world.inject(port, packet::udp(mac, gateway, from, to, &message)),
            2 => world.inject(port, packet::udp(mac, gateway, from6, to6, &message)),
            _ => stream(&mut world, port, round, &message, mac, gateway),
        }
        world.run_for(Duration::from_millis(u64::from(how & 63)));
        while world.take(port).is_some() {}
    }
    world.run_for(Duration::from_secs(60));
    world.check();
    world.shutdown();
    assert_eq!(world.host.open_sockets(), 0);
}

/// A message from the input, or a sound question with a name from it.
fn query(script: &mut Script<'_>, how: u8) -> Vec<u8> {
    if how & 2 == 0 {
        return script.sized().to_vec();
    }
    let mut out = vec![script.u8(), script.u8(), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    out.extend_from_slice(b"\x04host\x04lima\x08internal\x00");
    out.extend_from_slice(&[0, script.u8(), 0, 1]);
    out.extend_from_slice(script.sized());
    out
}

/// One connection to port 53 with one segment of data.
fn stream(
    world: &mut World,
    port: vmlan_engine::PortId,
    round: u16,
    message: &[u8],
    mac: Mac,
    gateway: Mac,
) {
    let (mut from, to) = (addr("192.168.5.15:5000"), addr("192.168.5.3:53"));
    from.set_port(6000 + round);
    world.inject(port, Tcp::new(from, to, SYN).seq(1).frame(mac, gateway));
    world.run_for(Duration::ZERO);
    while let Some(frame) = world.take(port) {
        let Some(Packet::Tcp(seg)) = packet::parse(&frame.data) else { continue };
        if seg.has(SYN | ACK) && seg.dst == from {
            let data = &message[..message.len().min(1000)];
            let answer = Tcp::new(from, to, ACK).seq(2).ack(seg.next_seq()).data(data);
            world.inject(port, answer.frame(mac, gateway));
        }
    }
}
