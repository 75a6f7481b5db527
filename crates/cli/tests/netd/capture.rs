//! Reading frames along over the control API.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::support::{GATEWAY, Guest, Netd, PATIENCE, eventually};

fn start() -> Netd {
    Netd::start(&["--listen-qemu", "{}/qemu", "--control", "{}/control"])
}

fn ask(netd: &Netd, target: &str) -> UnixStream {
    let mut stream = UnixStream::connect(netd.path("control")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: vmlan\r\n\r\n").unwrap();
    stream
}

/// All that comes after `bytes` until the end that is asked for, without the head.
fn rest(mut stream: UnixStream, mut bytes: Vec<u8>) -> Vec<u8> {
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-pcapng\r\n"));
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    bytes.split_off(end + 4)
}

/// Types and bodies of blocks, checked for their form.
fn blocks(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = 0;
    let mut blocks = Vec::new();
    while at < bytes.len() {
        let len = word(at + 4) as usize;
        assert_eq!(word(at + len - 4) as usize, len);
        blocks.push((word(at), bytes[at + 8..at + len - 4].to_vec()));
        at += len;
    }
    blocks
}

fn kinds(blocks: &[(u32, Vec<u8>)]) -> Vec<u32> {
    blocks.iter().map(|(kind, _)| *kind).collect()
}

/// Waits until a capture has begun.
fn begun(stream: &mut UnixStream) -> Vec<u8> {
    let mut head = vec![0; 12];
    stream.read_exact(&mut head).unwrap();
    head
}

#[test]
fn a_client_reads_along_until_it_wants_no_more() {
    let netd = start();
    let mut guests = [15, 16].map(|n| Guest::connect(&netd.path("qemu"), n));
    for guest in &mut guests {
        guest.resolve(GATEWAY);
    }
    let mut all = ask(&netd, "/v1/capture");
    let mut second = ask(&netd, "/v1/capture?port=1");
    let heads = [begun(&mut all), begun(&mut second)];
    guests[0].resolve(GATEWAY);
    // Question and answer of the first guest; the second hears the question.
    guests[1].recv_type(0x0806);
    let all = blocks(&rest(all, heads[0].clone()));
    let second = blocks(&rest(second, heads[1].clone()));
    assert_eq!(kinds(&all), [0x0a0d_0d0a, 1, 6, 1, 6, 6, 5, 5]);
    assert_eq!(kinds(&second), [0x0a0d_0d0a, 1, 6, 5]);
    for (target, want) in [("?port=7", " 404 "), ("?port=x", " 400 "), ("?port=1&guest=a", " 400 ")]
    {
        let mut answer = String::new();
        ask(&netd, &format!("/v1/capture{target}")).read_to_string(&mut answer).unwrap();
        assert!(answer.contains(want), "{target}: {answer}");
    }
}

/// Who does not read loses frames; the network goes on.
#[test]
fn a_dead_reader_slows_nobody() {
    let netd = start();
    let mut from = Guest::connect(&netd.path("qemu"), 15);
    let mut to = Guest::connect(&netd.path("qemu"), 16);
    from.resolve(GATEWAY);
    to.resolve(GATEWAY);
    let mut readers: Vec<_> = (0..8).map(|_| ask(&netd, "/v1/capture")).collect();
    let heads: Vec<_> = readers.iter_mut().map(begun).collect();
    let mut refused = String::new();
    ask(&netd, "/v1/capture").read_to_string(&mut refused).unwrap();
    assert!(refused.contains(" 503 "), "{refused}");

    let frame = [&to.mac[..], &from.mac, &[0x88, 0xb5], &[7; 60_000]].concat();
    let (count, memory) = (400, netd.memory("VmRSS"));
    for _ in 0..count {
        // The switch drops what a guest does not take in time.
        from.send(&frame);
        assert_eq!(to.recv_type(0x88b5).len(), frame.len());
    }
    // Eight times what is kept for a reader, and the socket's buffers.
    assert!(netd.memory("VmRSS") < memory + 8 * 6 * 1024);
    let blocks = blocks(&rest(readers.remove(0), heads[0].clone()));
    let captured = blocks.iter().filter(|(kind, _)| *kind == 6).count() as u64;
    let statistics = blocks.iter().filter(|(kind, _)| *kind == 5);
    let (mut seen, mut left_out) = (0, 0);
    for (_, body) in statistics {
        let count = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        seen += count(16);
        left_out += count(28);
    }
    assert_eq!((seen, left_out), (2 * count, 2 * count - captured));
    assert!(captured > 0 && left_out > 0, "{captured} {left_out}");
    // Those who just go are forgotten.
    drop(readers);
    eventually(|| {
        let mut stream = ask(&netd, "/v1/capture");
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        (&head == b"HTTP/1.1 200").then_some(())
    });
}
