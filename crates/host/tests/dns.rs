//! The name service against nameservers of the test's own, over UDP and TCP.

mod common;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Rig;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use vmlan_dns::{Ipv6, Names, Options, Source, Target};
use vmlan_engine::io::{Close, Received, StreamTarget};
use vmlan_engine::{Host, PortId, SockId, Token};

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Silent,
    Fails,
}

/// A nameserver that knows an address for every name; ends with the value.
struct Nameserver {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    sources: Arc<Mutex<HashSet<SocketAddr>>>,
    end: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Nameserver {
    fn start(mood: Mood, address: &str) -> Self {
        let ip: IpAddr = address.parse().unwrap();
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let mut server = Self {
            addr: udp.local_addr().unwrap(),
            asked: Arc::default(),
            sources: Arc::default(),
            end: Arc::default(),
            threads: Vec::new(),
        };
        let (asked, end, sources) =
            (server.asked.clone(), server.end.clone(), server.sources.clone());
        let over_udp = std::thread::spawn(move || {
            let mut buf = [0; 4096];
            loop {
                let (len, from) = udp.recv_from(&mut buf).unwrap();
                if end.load(Ordering::Relaxed) {
                    break;
                }
                asked.fetch_add(1, Ordering::Relaxed);
                sources.lock().unwrap().insert(from);
                if let Some(reply) = reply(mood, ip, &buf[..len]) {
                    // Strangers' and misguided replies come first; none may be taken.
                    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
                    stranger.send_to(&reply, from).unwrap();
                    let mut other = reply.clone();
                    other[0] ^= 1;
                    udp.send_to(&other, from).unwrap();
                    let mut other = reply.clone();
                    other[13] ^= 1;
                    udp.send_to(&other, from).unwrap();
                    udp.send_to(&reply, from).unwrap();
                }
            }
        });
        let (asked, end) = (server.asked.clone(), server.end.clone());
        let over_tcp = std::thread::spawn(move || {
            loop {
                let (mut stream, _) = tcp.accept().unwrap();
                if end.load(Ordering::Relaxed) {
                    break;
                }
                let asked = asked.clone();
                std::thread::spawn(move || {
                    let mut len = [0; 2];
                    while stream.read_exact(&mut len).is_ok() {
                        let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                        stream.read_exact(&mut query).unwrap();
                        asked.fetch_add(1, Ordering::Relaxed);
                        let Some(reply) = reply(mood, ip, &query) else { continue };
                        if reply.len() > 500 {
                            std::thread::sleep(Duration::from_millis(100));
                        }
                        let mut framed = u16::try_from(reply.len()).unwrap().to_be_bytes().to_vec();
                        framed.extend(reply);
                        // In two pieces, to be put together again.
                        let (one, other) = framed.split_at(framed.len() / 2);
                        stream.write_all(one).unwrap();
                        stream.write_all(other).unwrap();
                    }
                });
            }
        });
        server.threads = vec![over_udp, over_tcp];
        server
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let wake = UdpSocket::bind("127.0.0.1:0").unwrap();
        wake.send_to(b"end", self.addr).unwrap();
        drop(std::net::TcpStream::connect(self.addr));
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Names that start with `big` get answers that fill more than one read; the rcode and flags are
/// unusual on purpose, to be relayed as they are.
fn reply(mood: Mood, ip: IpAddr, query: &[u8]) -> Option<Vec<u8>> {
    if mood == Mood::Silent {
        return None;
    }
    let asked = Message::from_vec(query).unwrap();
    let mut reply = Message::response(asked.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.authentic_data = true;
    if mood == Mood::Fails {
        reply.metadata.response_code = ResponseCode::ServFail;
    }
    let question = asked.queries[0].clone();
    let name = question.name().clone();
    let count = if name.to_string().starts_with("big") { 600 } else { 1 };
    if name.to_string().starts_with("nx") {
        reply.metadata.response_code = ResponseCode::NXDomain;
    } else if mood == Mood::Answers {
        for _ in 0..count {
            let IpAddr::V4(ip) = ip else { unreachable!() };
            reply.add_answer(Record::from_rdata(name.clone(), 77, RData::A(rdata::A(ip))));
        }
    }
    reply.add_query(question);
    Some(reply.to_vec().unwrap())
}

fn ask(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn rig(servers: &[SocketAddr]) -> Rig {
    let mut names = Names::default();
    for address in ["192.168.5.2", "fd76::2"] {
        let target = Target::Address(address.parse().unwrap());
        names.add("host.lima.internal", &target).unwrap();
    }
    Rig::with(Options { source: Source::Servers(servers.to_vec()), names, ipv6: Ipv6::Always })
}

fn query(rig: &mut Rig, id: u16, name: &str) -> Message {
    rig.sockets.dns_query(Token(u64::from(id)), PortId(1), &ask(id, name, RecordType::A));
    let answer = Message::from_vec(&rig.answer(u64::from(id))).unwrap();
    assert_eq!(answer.metadata.id, id);
    answer
}

fn address(message: &Message) -> String {
    message.answers[0].data.to_string()
}

/// A port on the loopback that nobody answers on.
fn nobody() -> (UdpSocket, TcpListener, SocketAddr) {
    loop {
        // Held, so that nobody else gets it, but connected elsewhere, so that it refuses.
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect("127.0.0.1:9").unwrap();
        let addr = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(addr) {
            drop(tcp);
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            return (udp, tcp, addr);
        }
    }
}

#[test]
fn queries_are_relayed_unchanged_and_answers_too() {
    let server = Nameserver::start(Mood::Answers, "10.0.0.1");
    let mut rig = rig(&[server.addr]);
    let answer = query(&mut rig, 1, "x.example.");
    assert_eq!(address(&answer), "10.0.0.1");
    assert!(answer.metadata.authentic_data, "flags are the nameserver's own");
    assert_eq!(answer.answers[0].ttl, 77);
    assert_eq!(query(&mut rig, 2, "nx.example.").metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(server.asked(), 2);
}

#[test]
fn many_queries_at_once_find_their_answers() {
    let server = Nameserver::start(Mood::Answers, "10.0.0.1");
    let mut rig = rig(&[server.addr]);
    for round in 0..20_u16 {
        for n in 0..50 {
            let id = round * 50 + n;
            let message = ask(id ^ 0x5555, &format!("n{id}.example."), RecordType::A);
            rig.sockets.dns_query(Token(u64::from(id)), PortId(1), &message);
        }
        for n in 0..50 {
            let id = round * 50 + n;
            let answer = Message::from_vec(&rig.answer(u64::from(id))).unwrap();
            assert_eq!(answer.metadata.id, id ^ 0x5555);
            assert_eq!(answer.queries[0].name().to_string(), format!("n{id}.example."));
        }
    }
    assert!(rig.answers.is_empty());
    assert!(server.sources.lock().unwrap().len() > 1, "one source port only");
}

#[test]
fn own_names_are_answered_here_and_never_leak() {
    let server = Nameserver::start(Mood::Answers, "10.0.0.1");
    let mut rig = rig(&[server.addr]);
    let answer = query(&mut rig, 1, "HOST.lima.Internal.");
    assert_eq!(address(&answer), "192.168.5.2");
    assert!(answer.metadata.authoritative);
    rig.sockets.dns_query(Token(2), PortId(1), &ask(2, "host.lima.internal.", RecordType::MX));
    let nothing = Message::from_vec(&rig.answer(2)).unwrap();
    assert_eq!(nothing.metadata.response_code, ResponseCode::NoError);
    assert!(nothing.answers.is_empty());
    assert_eq!(server.asked(), 0);
    // Nor is there a name below it.
    let nothing = query(&mut rig, 3, "x.host.lima.internal.");
    assert_eq!(nothing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(server.asked(), 0);
}

#[test]
fn the_next_nameserver_is_asked_when_the_first_refuses_fails_or_is_silent() {
    let good = Nameserver::start(Mood::Answers, "10.0.0.2");
    let (_udp, _tcp, refusing) = nobody();
    let mut first = rig(&[refusing, good.addr]);
    let start = Instant::now();
    assert_eq!(address(&query(&mut first, 1, "a.example.")), "10.0.0.2");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());

    let failing = Nameserver::start(Mood::Fails, "10.0.0.1");
    let mut second = rig(&[failing.addr, good.addr]);
    assert_eq!(address(&query(&mut second, 2, "b.example.")), "10.0.0.2");

    let silent = Nameserver::start(Mood::Silent, "10.0.0.1");
    let mut third = rig(&[silent.addr, good.addr]);
    let start = Instant::now();
    assert_eq!(address(&query(&mut third, 3, "c.example.")), "10.0.0.2");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // It is known now who answers.
    let start = Instant::now();
    assert_eq!(address(&query(&mut third, 4, "d.example.")), "10.0.0.2");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn servfail_when_nobody_answers() {
    let (_udp, _tcp, refusing) = nobody();
    let mut alone = rig(&[refusing]);
    let answer = query(&mut alone, 1, "a.example.");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(!answer.metadata.authentic_data);

    let failing = Nameserver::start(Mood::Fails, "10.0.0.1");
    let mut relayed = rig(&[failing.addr]);
    let answer = query(&mut relayed, 1, "a.example.");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(answer.metadata.authentic_data, "the nameserver's own words");
}

#[test]
fn broken_messages_are_refused_or_ignored() {
    let server = Nameserver::start(Mood::Answers, "10.0.0.1");
    let mut rig = rig(&[server.addr]);
    let mut two = ask(1, "a.example.", RecordType::A);
    two[5] = 2;
    rig.sockets.dns_query(Token(1), PortId(1), &two);
    assert_eq!(rig.answer(1)[3] & 0x0f, 1);
    rig.sockets.dns_query(Token(2), PortId(1), &two[..11]);
    let mut reply = ask(3, "a.example.", RecordType::A);
    reply[2] |= 0x80;
    rig.sockets.dns_query(Token(3), PortId(1), &reply);
    query(&mut rig, 4, "b.example.");
    assert!(rig.answers.is_empty());
    assert_eq!(server.asked(), 1);
}

#[test]
fn a_flood_is_bounded_and_refused() {
    let silent = Nameserver::start(Mood::Silent, "10.0.0.1");
    let mut rig = rig(&[silent.addr]);
    for id in 0..5000_u16 {
        rig.sockets.dns_query(
            Token(u64::from(id)),
            PortId(1),
            &ask(id, &format!("n{id}.example."), RecordType::A),
        );
    }
    rig.turn(Duration::ZERO);
    assert_eq!(rig.answers.len(), 5000 - 2048);
    assert!(rig.answers.values().all(|answer| answer[3] & 0x0f == 2));
}

/// Messages over a stream of the service, and how it ended.
fn over_stream(rig: &mut Rig, token: u64, sock: SockId) -> (Received, Vec<Vec<u8>>) {
    let (end, bytes) = rig.read_to_end(token, sock);
    let mut rest = bytes.as_slice();
    let mut messages = Vec::new();
    while let Some((len, more)) = rest.split_first_chunk() {
        let (message, more) = more.split_at(usize::from(u16::from_be_bytes(*len)));
        messages.push(message.to_vec());
        rest = more;
    }
    (end, messages)
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(message);
    framed
}

#[test]
fn streams_carry_many_queries_out_of_order() {
    let (_udp, _tcp, refusing) = nobody();
    let server = Nameserver::start(Mood::Answers, "10.0.0.1");
    let mut rig = rig(&[refusing, server.addr]);
    let sock = rig.sockets.connect(Token(9), &StreamTarget::Dns(PortId(1)), None).unwrap();
    assert!(rig.event(9).writable);
    let mut bytes = framed(&ask(0, "big.example.", RecordType::A));
    bytes.extend(framed(&ask(1, "host.lima.internal.", RecordType::A)));
    for id in 2..40 {
        bytes.extend(framed(&ask(id, &format!("n{id}.example."), RecordType::A)));
    }
    // In pieces that end anywhere.
    for piece in bytes.chunks(33) {
        rig.send(sock, piece);
        rig.turn(Duration::ZERO);
    }
    rig.sockets.shutdown_write(sock);
    let (end, messages) = over_stream(&mut rig, 9, sock);
    assert_eq!(end, Received::Eof);
    assert_eq!(messages.len(), 40);
    let mut ids = Vec::new();
    for message in &messages {
        let message = Message::from_vec(message).unwrap();
        let name = message.queries[0].name().to_string();
        let id = message.metadata.id;
        let expected = match id {
            0 => "big.example.".to_owned(),
            1 => "host.lima.internal.".to_owned(),
            _ => format!("n{id}.example."),
        };
        assert_eq!(name, expected);
        assert_eq!(message.answers.len(), if id == 0 { 600 } else { 1 });
        ids.push(id);
    }
    assert_ne!(ids[0], 0, "the slow answer holds up the others");
    ids.sort_unstable();
    assert_eq!(ids, (0..40).collect::<Vec<_>>());
    assert_eq!(server.asked(), 39);
    rig.sockets.close(sock, Close::Normal);
}

#[test]
fn streams_are_bounded_and_end_with_the_guest() {
    let silent = Nameserver::start(Mood::Silent, "10.0.0.1");
    let mut rig = rig(&[silent.addr]);
    let mut socks = Vec::new();
    let failure = loop {
        let token = Token(socks.len() as u64);
        match rig.sockets.connect(token, &StreamTarget::Dns(PortId(1)), None) {
            Ok(sock) => socks.push(sock),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure, vmlan_engine::io::Failure::Exhausted);
    assert_eq!(socks.len(), 64, "of one guest");
    // The longest query that there can be is no reason to close, whatever is in it.
    let mut long = ask(1, "a.example.", RecordType::A);
    long.resize(65535, 0);
    long[10] = 0xff;
    rig.send(socks[0], &framed(&long));
    rig.sockets.shutdown_write(socks[0]);
    let (end, messages) = over_stream(&mut rig, 0, socks[0]);
    assert_eq!((end, messages.len()), (Received::Eof, 1));
    assert_eq!(messages[0][3] & 0x0f, 1, "not a query");
    for sock in socks {
        rig.sockets.close(sock, Close::Reset);
    }
    rig.until("room", |rig| {
        let sock = rig.sockets.connect(Token(999), &StreamTarget::Dns(PortId(1)), None).ok()?;
        rig.sockets.close(sock, Close::Normal);
        Some(())
    });
}

#[test]
fn a_stream_gets_servfail_when_nobody_answers() {
    let (_udp, _tcp, refusing) = nobody();
    let mut rig = rig(&[refusing]);
    let sock = rig.sockets.connect(Token(9), &StreamTarget::Dns(PortId(1)), None).unwrap();
    rig.send(sock, &framed(&ask(5, "a.example.", RecordType::A)));
    rig.sockets.shutdown_write(sock);
    let (end, messages) = over_stream(&mut rig, 9, sock);
    assert_eq!(end, Received::Eof);
    let answer = Message::from_vec(&messages[0]).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (5, ResponseCode::ServFail));
}

#[test]
fn a_nameserver_without_tcp_is_asked_over_udp() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut rig = rig(&[server.local_addr().unwrap()]);
    let sock = rig.sockets.connect(Token(9), &StreamTarget::Dns(PortId(1)), None).unwrap();
    rig.send(sock, &framed(&ask(5, "a.example.", RecordType::A)));
    rig.sockets.shutdown_write(sock);
    let answers = std::thread::spawn(move || {
        let mut buf = [0; 512];
        let (len, from) = server.recv_from(&mut buf).unwrap();
        let ip = "10.0.0.9".parse().unwrap();
        server.send_to(&reply(Mood::Answers, ip, &buf[..len]).unwrap(), from).unwrap();
    });
    let (end, messages) = over_stream(&mut rig, 9, sock);
    answers.join().unwrap();
    assert_eq!((end, messages.len()), (Received::Eof, 1));
    let answer = Message::from_vec(&messages[0]).unwrap();
    assert_eq!((answer.metadata.id, address(&answer).as_str()), (5, "10.0.0.9"));
}

#[test]
fn connections_to_a_nameserver_are_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = rig(&[listener.local_addr().unwrap()]);
    // The first connection serves twice and is closed then; the third question has another.
    let server = std::thread::spawn(move || {
        for served in [2, 1] {
            let (mut stream, _) = listener.accept().unwrap();
            for _ in 0..served {
                let mut len = [0; 2];
                stream.read_exact(&mut len).unwrap();
                let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                stream.read_exact(&mut query).unwrap();
                let ip = "10.0.0.9".parse().unwrap();
                stream.write_all(&framed(&reply(Mood::Answers, ip, &query).unwrap())).unwrap();
            }
        }
    });
    for id in 1..=3_u16 {
        let token = u64::from(id);
        let sock = rig.sockets.connect(Token(token), &StreamTarget::Dns(PortId(1)), None).unwrap();
        rig.send(sock, &framed(&ask(id, &format!("n{id}.example."), RecordType::A)));
        rig.sockets.shutdown_write(sock);
        let (_, messages) = over_stream(&mut rig, token, sock);
        let answer = Message::from_vec(&messages[0]).unwrap();
        assert_eq!((answer.metadata.id, address(&answer).as_str()), (id, "10.0.0.9"));
        rig.sockets.close(sock, Close::Normal);
    }
    server.join().unwrap();
}
