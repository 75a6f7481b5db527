//! Messages of several guests to the resolver's core, and a nameserver and a machine that answer
//! whatever the input says: every query is answered at most once, within its size, with its id, and
//! with what can be decoded; what a nameserver said so that it can be decoded is what the guest
//! gets; and nothing is held for anybody in the end.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::Message;
use vmlan_dns::testing::{Rig, Todo};
use vmlan_dns::{Names, Origin, Target};

use crate::script::Script;

const HOSTS: &str = "10.0.0.5 nas.lan nas\nfd00::5 nas.lan\n";
const NSSWITCH: &str = "hosts: files mdns4_minimal [NOTFOUND=return] dns myhostname\n";

/// What was asked.
struct Asked {
    message: Vec<u8>,
    udp: bool,
}

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let mut rig = Rig::new(names()).with_host(HOSTS, NSSWITCH);
    let mut asked = HashMap::new();
    for client in 0..300 {
        if script.is_empty() {
            break;
        }
        let how = script.u8();
        match how & 7 {
            0..=3 => {
                let message = query(&mut script, how);
                let udp = how & 0x80 == 0;
                if rig.query(client, u32::from(how & 3), &message, udp) {
                    asked.insert(client, Asked { message, udp });
                }
            }
            4 | 5 => answer(&mut rig, &mut script, how),
            6 => rig.set_ipv6(how & 8 != 0),
            _ => rig.advance(Duration::from_secs(u64::from(how >> 3))),
        }
        check(&mut rig, &mut asked);
    }
    for _ in 0..10_000 {
        match rig.todo.pop_front() {
            Some(Todo::Ask(number, _)) => rig.fail(number),
            Some(Todo::Look(number)) => rig.found(number, None),
            None => break,
        }
        check(&mut rig, &mut asked);
    }
    assert!(rig.todo.is_empty() && rig.is_idle());
    assert!(asked.is_empty(), "{} queries have no answer", asked.len());
}

fn names() -> Names {
    let mut names = Names::default();
    let list =
        [("host.lima.internal", "192.168.5.2"), ("a.b", "c.d"), ("c.d", "a.b"), ("x", "y.z")];
    for (name, target) in list {
        let target = target.parse().map_or_else(|_| Target::Alias(target.into()), Target::Address);
        names.add(name, &target).unwrap();
    }
    names
}

/// A message from the input, or a sound question with parts of it.
fn query(script: &mut Script<'_>, how: u8) -> Vec<u8> {
    if how & 0x40 != 0 {
        return script.sized().to_vec();
    }
    const NAMES: [&[u8]; 8] = [
        b"\x04Host\x04lima\x08internal\0",
        b"\x01a\x01b\0",
        b"\x01x\0",
        b"\x03nas\x03LAN\0",
        b"\x03prn\x05local\0",
        b"\x03www\x07example\0",
        b"\x012\x015\x03168\x03192\x07in-addr\x04arpa\0",
        b"\0",
    ];
    let pick = script.u8();
    let edns = pick & 0x80 != 0;
    let mut out = vec![script.u8(), pick, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    out.extend_from_slice(NAMES[usize::from(pick & 7)]);
    const KINDS: [u16; 8] = [1, 28, 5, 12, 16, 255, 15, 65];
    out.extend_from_slice(&KINDS[usize::from(how >> 3 & 7)].to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    if edns {
        out.extend_from_slice(&[0, 0, 41, pick >> 3 & 7, 0, 0, 0, script.u8() & 0x80, 0, 0, 0]);
    }
    out
}

/// What the nameserver says to the oldest question, or the machine to a lookup.
fn answer(rig: &mut Rig, script: &mut Script<'_>, how: u8) {
    match rig.todo.pop_front() {
        Some(Todo::Ask(number, message)) => {
            let mut reply = message.clone();
            if how & 0x40 != 0 {
                reply = script.sized().to_vec();
            } else if let Some(end) = question_end(&message) {
                // The question, and whatever follows.
                reply.truncate(end);
                reply[2] |= 0x80;
                reply[3] = script.u8();
                reply[6..12].copy_from_slice(&[
                    0,
                    script.u8() & 3,
                    0,
                    script.u8() & 3,
                    0,
                    script.u8() & 3,
                ]);
                if how & 8 == 0 {
                    reply
                        .extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04");
                }
                reply.extend_from_slice(script.sized());
            }
            if !rig.reply(number, &reply, how & 0x80 != 0) {
                rig.todo.push_back(Todo::Ask(number, message));
            }
        }
        Some(Todo::Look(number)) => {
            rig.found(number, if how & 8 == 0 { None } else { Some(&["10.0.0.1", "fd00::1"]) });
        }
        None => {}
    }
}

fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 5).filter(|&end| end <= message.len()),
            len => at += 1 + len,
        }
    }
}

fn check(rig: &mut Rig, asked: &mut HashMap<u64, Asked>) {
    while let Some((client, answer, origin)) = rig.answers.pop_front() {
        let Asked { message, udp } = asked.remove(&client).expect("one answer to each query");
        assert!(answer.len() >= 12 && answer[2] & 0x80 != 0);
        assert_eq!(answer[..2], message[..2]);
        let size = edns_size(&message).unwrap_or(512).max(512);
        assert!(!udp || answer.len() <= usize::from(size), "{} bytes", answer.len());
        let decoded = Message::from_vec(&answer);
        if !matches!(origin, Origin::Upstream(_) | Origin::Cache) {
            let decoded = decoded.as_ref().expect("our own answers are sound");
            // A question that hickory takes in it gives out again.
            let again = Message::from_vec(&decoded.to_vec().expect("encoded")).expect("decoded");
            assert_eq!(&again, decoded);
        } else if let Ok(decoded) = decoded
            && let Ok(bytes) = decoded.to_vec()
        {
            let again = Message::from_vec(&bytes).expect("decoded");
            assert_eq!(again.answers.len(), decoded.answers.len());
            assert_eq!(again.metadata, decoded.metadata);
        }
    }
}

/// What a query says that it can take.
fn edns_size(message: &[u8]) -> Option<u16> {
    let decoded = Message::from_vec(message).ok()?;
    Some(decoded.edns?.max_payload())
}
