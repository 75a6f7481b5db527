//! The network's nameserver, asked by dig: its own names, and the host's nameserver behind it.

use vmlan_e2e::world::{DNS, HOST, OUTSIDE};
use vmlan_e2e::{World, nameserver};

#[track_caller]
fn dig(world: &World, arguments: &str) -> String {
    world.guest.run(&format!("dig +tries=1 +time=5 {arguments}"))
}

#[track_caller]
fn with_nameserver() -> World {
    let world = World::new();
    nameserver::serve(&world.outside, OUTSIDE);
    world
}

#[test]
fn the_hosts_nameserver_answers_over_both_transports() {
    let world = with_nameserver();
    for server in [DNS, HOST] {
        for transport in ["+notcp", "+tcp"] {
            let answer = dig(&world, &format!("@{server} {transport} +short known.test"));
            assert_eq!(answer.trim(), "203.0.113.7", "{server} {transport}");
        }
    }
}

#[test]
fn no_such_name_is_no_such_name() {
    let world = with_nameserver();
    let answer = dig(&world, &format!("@{DNS} unknown.test"));
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    let answer = dig(&world, &format!("@{DNS} known.test AAAA"));
    assert!(answer.contains("status: NOERROR") && answer.contains("ANSWER: 0"), "{answer}");
}

#[test]
fn an_answer_too_big_for_a_datagram_is_asked_for_again_over_tcp() {
    let world = with_nameserver();
    let cut = dig(&world, &format!("@{DNS} +ignore big.test TXT"));
    assert!(cut.contains("flags: qr tc"), "{cut}");
    let whole = dig(&world, &format!("@{DNS} +short big.test TXT"));
    assert_eq!(whole.lines().count(), 10, "{whole}");
}

#[test]
fn the_host_has_a_name() {
    let world = with_nameserver();
    let answer = dig(&world, &format!("@{DNS} +short host.lima.internal"));
    assert_eq!(answer.trim(), HOST.to_string());
    let answer = dig(&world, &format!("@{DNS} +short HOST.Lima.Internal"));
    assert_eq!(answer.trim(), HOST.to_string());
}
