//! `vmlan dns query --network`: what the resolver of a running network says, and from where.

use std::time::{Duration, Instant};

use vmlan_e2e::binary::vmlan;
use vmlan_e2e::dns_client::Client;
use vmlan_e2e::dns_message::{A, NOERROR, NXDOMAIN};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{capture, run};
use vmlan_e2e::world::{DNS, OUTSIDE};
use vmlan_e2e::{Upstream, World};

/// What it prints, and its exit code.
#[track_caller]
fn query(world: &World, arguments: &[&str]) -> (String, i32) {
    let mut command = world.host.command(vmlan());
    command.args(["dns", "query", "--network"]).arg(world.netd.control()).args(arguments);
    let output = capture(&mut command, SOON);
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).expect("text"), output.status.code().expect("an end of its own"))
}

/// The TTL of the first record.
fn ttl(text: &str) -> u64 {
    let ttl = text.split('\t').nth(1).expect("a record");
    ttl.parse().expect("seconds")
}

#[test]
fn a_network_tells_where_its_answers_come_from() {
    let world = World::with(&["--dns-host", "db.corp.example=10.1.2.3"]);
    let upstream = Upstream::serve(&world.outside, OUTSIDE, |asked| {
        let missing = asked.name().starts_with("missing.");
        vec![if missing { asked.code(NXDOMAIN) } else { asked.with([203, 0, 113, 1], 100) }]
    });
    for (name, answer, origin) in [
        ("host.lima.internal", "192.168.5.2", "from static"),
        ("db.corp.example", "10.1.2.3", "from static"),
        ("10.1.2.3", "db.corp.example.", "from static"),
        ("www.example.net", "203.0.113.1", "from upstream 198.51.100.2"),
        ("www.example.net", "203.0.113.1", "from cache"),
        ("WWW.example.net.", "203.0.113.1", "from cache"),
    ] {
        let (text, code) = query(&world, &[name]);
        assert!(text.contains(answer) && text.contains(origin) && code == 0, "{name}: {text}");
    }
    assert_eq!(upstream.count("www.example.net"), 1);
    // What a guest has asked is in the same cache, and its time runs.
    let start = Instant::now();
    assert_eq!(Client::new(&world.guest, DNS).udp("guest.example.net", A).rcode, NOERROR);
    while start.elapsed() < Duration::from_millis(1100) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let (text, _) = query(&world, &["guest.example.net"]);
    let gone = start.elapsed().as_secs();
    assert!(text.contains("from cache"), "{text}");
    assert!(ttl(&text) < 100 && ttl(&text) >= 99 - gone, "{text}");
    let (text, code) = query(&world, &["missing.example.net", "MX"]);
    assert!(text.contains("NXDOMAIN") && code == 1, "{text}");
    let (text, code) = query(&world, &["--json", "www.example.net", "TYPE1"]);
    assert!(text.contains("\"from\":\"cache\"") && code == 0, "{text}");
    for wrong in [&["a..b"][..], &["a.test", "NONSENSE"], &["a.test", "--dns", "10.0.0.1"]] {
        let (text, code) = query(&world, wrong);
        assert_eq!(code, 2, "{wrong:?}: {text}");
    }
}

/// Nor does anybody wait for a question of the control API's that takes its time.
#[test]
fn a_question_that_is_never_answered_holds_up_nobody() {
    let world = World::with(&["--dns-ipv6", "true"]);
    let _upstream = Upstream::serve(&world.outside, OUTSIDE, |asked| {
        let never = asked.name().starts_with("never");
        if never { vec![] } else { vec![asked.with([203, 0, 113, 1], 0)] }
    });
    let mut waiting = world.host.command(vmlan());
    waiting.args(["dns", "query", "--network"]).arg(world.netd.control()).arg("never.test");
    let waiting = std::thread::spawn(move || (capture(&mut waiting, 2 * SOON), Instant::now()));
    let mut guest = Client::new(&world.guest, DNS);
    let start = Instant::now();
    for n in 0..20 {
        assert_eq!(guest.udp(&format!("name{n}.test"), A).addresses(), ["203.0.113.1"]);
        let (text, code) = query(&world, &[&format!("name{n}.test")]);
        assert!(text.contains("203.0.113.1") && code == 0, "{text}");
    }
    let answered = Instant::now();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let (output, ended) = waiting.join().expect("the query ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("SERVFAIL") && ended > answered, "{output:?}");
    // The API is as gvisor-tap-vsock's is, for curl and the like.
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "5", "--unix-socket"]).arg(world.netd.control());
    let text = run(curl.arg("http://vmlan/v1/dns?name=name1.test&type=aaaa"), SOON);
    assert!(text.contains("\"type\":\"AAAA\"") && text.contains("\"from\":\"upstream\""), "{text}");
}
