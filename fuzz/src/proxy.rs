//! What clients of a tunnel say, in whatever pieces, and the datagrams of their relays.

use vmlan_proxy::{
    Handshake, Host, MAX_HEAD, Outcome, Request, Step, Target, datagram, datagram_header,
};

use crate::script::Script;

/// Longest piece: what the daemon reads at once.
const PIECE: usize = 4096;

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    match script.u8() {
        0 => datagrams(script.0),
        pieces => talk(script.0, usize::from(pieces)),
    }
}

/// The same is understood in one piece and in many.
fn talk(input: &[u8], piece: usize) {
    let mut whole = Handshake::default();
    let mut expected = Vec::new();
    for part in input.chunks(PIECE) {
        say(&mut whole, part, &mut expected);
    }
    let mut parts = Handshake::default();
    let mut found = Vec::new();
    for part in input.chunks(piece) {
        say(&mut parts, part, &mut found);
    }
    let over = |steps: &[Step]| matches!(steps.last(), Some(Step::Refuse(_)));
    // What is too long may be refused sooner or later.
    if input.len() <= MAX_HEAD {
        assert_eq!(found, expected);
        if !over(&found) {
            assert_eq!(parts.into_rest(), whole.into_rest());
        }
    }
}

fn say(handshake: &mut Handshake, part: &[u8], steps: &mut Vec<Step>) {
    handshake.push(part);
    for _ in 0..4 {
        match handshake.step() {
            Step::Wait => return,
            step => {
                if let Step::Do(Request::Connect(target) | Request::Associate(target)) = &step {
                    check(target);
                    for outcome in [Outcome::Failed, Outcome::Done("[::1]:1".parse().unwrap())] {
                        assert!(!handshake.answer(outcome).is_empty());
                    }
                }
                steps.push(step);
            }
        }
    }
    panic!("no end of steps: {steps:?}");
}

fn check(target: &Target) {
    if let Host::Name(name) = &target.host {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
        assert!(name.parse::<std::net::IpAddr>().is_err(), "{name}");
    }
}

/// What is read as a guest's address is written as the same.
fn datagrams(input: &[u8]) {
    let Some(read) = datagram(input) else { return };
    check(&read.target);
    assert!(input.ends_with(read.data));
    if let Host::Ip(ip) = read.target.host {
        let again = [&datagram_header((ip, read.target.port).into())[..], read.data].concat();
        assert_eq!(datagram(&again), Some(read));
    }
}
