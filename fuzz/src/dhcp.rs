//! DHCP messages, as they come, from several guests. Every answer parses, and nobody is given an
//! address that somebody else holds.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use vmlan_testkit::{LinkOptions, World, addr, packet};
use vmlan_wire::Mac;

use crate::script::Script;

const DECLINE: u8 = 4;
const ACK: u8 = 5;
const RELEASE: u8 = 7;

/// A message with the client's MAC address and the options that the input gives.
fn message(script: &mut Script<'_>, mac: Mac, kind: u8) -> Vec<u8> {
    let mut out = vec![1, 1, 6, 0];
    out.extend_from_slice(&script.u32().to_be_bytes());
    out.extend_from_slice(&[0; 20]);
    out.extend_from_slice(&mac.0);
    out.resize(236, 0);
    out.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    if script.u8() & 1 == 1 {
        out.extend_from_slice(&[50, 4, 192, 168, 5, script.u8()]);
    }
    if script.u8() & 1 == 1 {
        out.extend_from_slice(&[54, 4, 192, 168, 5, 2]);
    }
    if script.u8() & 3 == 3 {
        // Renewing: the client has an address already.
        out[12..16].copy_from_slice(&[192, 168, 5, script.u8()]);
    }
    out.extend_from_slice(script.sized());
    out.push(255);
    out
}

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new(1);
    let ports = [(); 2].map(|()| world.add_port(LinkOptions::plain(1500)));
    let mut given: HashMap<Ipv4Addr, Mac> = HashMap::new();
    for _ in 0..200 {
        if script.is_empty() {
            break;
        }
        let how = script.u8();
        let mac = Mac([2, 0, 0, 0, 0, how & 7]);
        let port = ports[usize::from(how >> 3 & 1)];
        let payload = if how & 16 == 0 {
            let kind = script.u8() & 15;
            let message = message(&mut script, mac, kind);
            // The type may also stand among the random options, and the last one counts.
            if message.windows(3).any(|w| matches!(w, [53, 1, DECLINE | RELEASE])) {
                given.clear();
            }
            message
        } else {
            // Whatever it is, it may give addresses back.
            given.clear();
            script.sized().to_vec()
        };
        let from = if how & 32 == 0 { addr("0.0.0.0:68") } else { addr("192.168.5.15:68") };
        let frame = packet::udp(mac, Mac::BROADCAST, from, addr("255.255.255.255:67"), &payload);
        world.inject(port, frame);
        if how & 64 != 0 {
            world.run_for(Duration::from_millis(u64::from(script.u16())));
        }
        for port in ports {
            while let Some(frame) = world.take(port) {
                note(&frame.data, &mut given);
            }
        }
        world.check();
    }
    world.run_for(Duration::from_secs(10));
    assert!(world.engine.leases().len() <= 256);
}

/// Looks at an answer: an acknowledged address is one client's.
fn note(frame: &[u8], given: &mut HashMap<Ipv4Addr, Mac>) {
    let Some(packet::Packet::Udp { src, payload, .. }) = packet::parse(frame) else { return };
    if src.port() != 67 {
        return;
    }
    assert!(payload.len() >= 240 && payload[0] == 2, "not a reply: {payload:02x?}");
    let mut options = &payload[240..];
    let mut kind = 0;
    while let [code, rest @ ..] = options {
        match *code {
            255 => break,
            0 => options = rest,
            code => {
                let len = usize::from(*rest.first().expect("an option has a length"));
                let value = rest.get(1..1 + len).expect("an option fits");
                if code == 53 {
                    kind = value[0];
                }
                options = &rest[1 + len..];
            }
        }
    }
    let address = Ipv4Addr::new(payload[16], payload[17], payload[18], payload[19]);
    let client =
        Mac([payload[28], payload[29], payload[30], payload[31], payload[32], payload[33]]);
    if kind == ACK && !address.is_unspecified() {
        // A client that is given another address gives up the one it had; no run is long enough for
        // a lease to end.
        given.retain(|held, holder| *holder != client || *held == address);
        let holder = *given.entry(address).or_insert(client);
        assert_eq!(holder, client, "{address} was given twice");
    }
}
