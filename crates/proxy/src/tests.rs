use super::*;

fn target(host: &str, port: u16) -> Target {
    Target { host: Host::parse(host.as_bytes()).unwrap(), port }
}

/// All steps that some input leads to.
fn steps(input: &[u8]) -> Vec<Step> {
    let mut handshake = Handshake::default();
    handshake.push(input);
    let mut steps = Vec::new();
    loop {
        match handshake.step() {
            Step::Wait => return steps,
            step => steps.push(step),
        }
    }
}

fn socks(request: &[u8]) -> Vec<Step> {
    let mut steps = steps(&[b"\x05\x01\x00", request].concat());
    assert_eq!(steps.remove(0), Step::Send(vec![5, 0]));
    steps
}

#[test]
fn socks5_addresses_of_every_type() {
    let connect = |host: &str| vec![Step::Do(Request::Connect(target(host, 80)))];
    assert_eq!(socks(b"\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x50"), connect("10.0.0.7"));
    let v6 = [&b"\x05\x01\x00\x04\xfd"[..], &[0; 14], b"\x01\x00\x50"].concat();
    assert_eq!(socks(&v6), connect("fd00::1"));
    let name = b"\x05\x01\x00\x03\x11lima-web.internal\x00\x50";
    assert_eq!(socks(name), connect("lima-web.internal"));
    // Addresses in letters, as many clients send them.
    assert_eq!(socks(b"\x05\x01\x00\x03\x0810.0.0.7\x00\x50"), connect("10.0.0.7"));
    assert_eq!(socks(b"\x05\x01\x00\x03\x07fd00::1\x00\x50"), connect("fd00::1"));
    let associate = Step::Do(Request::Associate(target("0.0.0.0", 0)));
    assert_eq!(socks(b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"), [associate]);
}

#[test]
fn what_socks5_cannot_do_is_said() {
    let refused = |reply: u8| [Step::Refuse(vec![5, reply, 0, 1, 0, 0, 0, 0, 0, 0])];
    // BIND, an unknown type of address, no name, a name that is none, another version.
    assert_eq!(socks(b"\x05\x02\x00\x01\x0a\x00\x00\x07\x00\x50"), refused(7));
    assert_eq!(socks(b"\x05\x01\x00\x02\x0a\x00\x00\x07\x00\x50"), refused(8));
    assert_eq!(socks(b"\x05\x01\x00\x03\x00\x00\x50"), refused(1));
    assert_eq!(socks(b"\x05\x01\x00\x03\x03a b\x00\x50"), refused(1));
    assert_eq!(socks(b"\x04\x01\x00\x01\x0a\x00\x00\x07\x00\x50"), refused(1));
    // Who insists on a password.
    assert_eq!(steps(b"\x05\x01\x02"), [Step::Refuse(vec![5, 0xff])]);
    assert_eq!(steps(b"\x05\x00"), [Step::Refuse(vec![5, 0xff])]);
    assert_eq!(steps(b"\x05\x02\x02\x00"), [Step::Send(vec![5, 0])]);
}

#[test]
fn http_connect() {
    let connect = |host: &str, port| vec![Step::Do(Request::Connect(target(host, port)))];
    let say =
        |target: &str| steps(format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(say("lima-web.internal:80"), connect("lima-web.internal", 80));
    assert_eq!(say("10.0.0.7:443"), connect("10.0.0.7", 443));
    assert_eq!(say("[fd00::1]:443"), connect("fd00::1", 443));
    for wrong in ["web", "web:", "web:x", "web:+1", "web:70000", ":80", "fd00::1:80", "[x]:80"] {
        let [Step::Refuse(answer)] = &say(wrong)[..] else { panic!("{wrong}") };
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{wrong}");
    }
    let [Step::Refuse(answer)] = &steps(b"GET http://x/ HTTP/1.1\r\n\r\n")[..] else { panic!() };
    let answer = String::from_utf8_lossy(answer);
    assert!(
        answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n"),
        "{answer}"
    );
    // SOCKS4, TLS, and what is nothing.
    for other in [&b"\x04\x01\x00\x50\x0a\x00\x00\x07\x00"[..], b"\x16\x03\x01\x00", b"\r\x00"] {
        assert!(matches!(steps(other)[..], [Step::Refuse(_)]), "{other:?}");
    }
}

#[test]
fn what_follows_the_request_is_kept() {
    let socks = b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x50early";
    let http = b"CONNECT a:1 HTTP/1.1\r\n\r\nearly";
    for input in [&socks[..], http] {
        let mut handshake = Handshake::default();
        handshake.push(input);
        while !matches!(handshake.step(), Step::Do(_)) {}
        handshake.push(b" bytes");
        assert_eq!(handshake.step(), Step::Wait);
        assert_eq!(handshake.into_rest(), b"early bytes");
    }
}

#[test]
fn byte_by_byte_is_the_same() {
    for input in [
        &b"\x05\x02\x02\x00\x05\x01\x00\x03\x03abc\x00\x50"[..],
        b"CONNECT [::1]:1 HTTP/1.0\r\n\r\n",
        b"\x05\x01\x00\x05\x02\x00\x01\x0a\x00\x00\x07\x00\x50",
    ] {
        let mut handshake = Handshake::default();
        let mut slow = Vec::new();
        for byte in input {
            handshake.push(&[*byte]);
            loop {
                match handshake.step() {
                    Step::Wait => break,
                    step => slow.push(step),
                }
            }
        }
        assert_eq!(slow, steps(input));
    }
}

#[test]
fn nobody_talks_for_ever() {
    let mut handshake = Handshake::default();
    handshake.push(b"CONNECT a:1 HTTP/1.1\r\nX: ");
    let mut said = 0;
    while handshake.step() == Step::Wait {
        handshake.push(&[b'x'; 512]);
        said += 512;
        assert!(said <= MAX_HEAD + 512, "{said}");
    }
    handshake.push(b"more");
    assert_eq!(handshake.step(), Step::Wait);
    assert_eq!(handshake.into_rest(), b"");
}

#[test]
fn outcomes_have_their_own_answers() {
    let v4 = "127.0.0.1:4660".parse().unwrap();
    let socks = Handshake::default();
    assert_eq!(socks.answer(Outcome::Done(v4)), b"\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34");
    let v6 = Outcome::Done("[::1]:4660".parse().unwrap());
    assert_eq!(socks.answer(v6).len(), 22);
    let mut http = Handshake::default();
    http.push(b"CONNECT a:1 HTTP/1.1\r\n\r\n");
    http.step();
    for (outcome, reply, status) in [
        (Outcome::Done(v4), 0, "200"),
        (Outcome::Failed, 1, "503"),
        (Outcome::NotAllowed, 2, "403"),
        (Outcome::NetUnreachable, 3, "502"),
        (Outcome::HostUnreachable, 4, "502"),
        (Outcome::NoSuchName, 4, "502"),
        (Outcome::Refused, 5, "502"),
        (Outcome::TimedOut, 6, "504"),
    ] {
        assert_eq!(socks.answer(outcome)[1], reply, "{outcome:?}");
        let text = String::from_utf8(http.answer(outcome)).unwrap();
        assert_eq!(text.split(' ').nth(1), Some(status), "{text}");
        assert!(text.contains("\r\n\r\n"), "{text}");
    }
}

#[test]
fn datagrams_have_a_header() {
    for from in ["10.0.0.7:53", "[fd00::1]:53"] {
        let from: SocketAddr = from.parse().unwrap();
        let message = [&datagram_header(from)[..], b"data"].concat();
        let target = Target { host: Host::Ip(from.ip()), port: from.port() };
        assert_eq!(datagram(&message), Some(Datagram { target, data: b"data" }));
    }
    let named = datagram(b"\x00\x00\x00\x03\x01a\x00\x35").unwrap();
    assert_eq!((named.target, named.data), (target("a", 53), &b""[..]));
    for broken in [
        &b""[..],
        b"\x00\x00\x00",
        b"\x00\x00\x01\x01\x0a\x00\x00\x07\x00\x35fragment",
        b"\x00\x00\x00\x09\x0a\x00\x00\x07\x00\x35",
        b"\x00\x00\x00\x03\x05a\x00\x35",
        b"\x00\x00\x00\x01\x0a\x00\x00\x07\x00",
    ] {
        assert_eq!(datagram(broken), None, "{broken:?}");
    }
}
