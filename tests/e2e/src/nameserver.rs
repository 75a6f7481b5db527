//! A nameserver with a handful of answers, over UDP and TCP: the host's upstream of the DNS tests.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::thread;

use crate::netns::{Netns, SOON};

const NXDOMAIN: u8 = 3;
const TYPE_A: u16 = 1;
const TYPE_TXT: u16 = 16;

/// Serves at port 53 of `at`, as long as the test's process lives:
/// - `known.test` A is 203.0.113.7
/// - `big.test` TXT is ten strings of 200 letters: over UDP only the truncation bit
/// - everything else is NXDOMAIN
pub fn serve(netns: &Netns, at: IpAddr) {
    let udp = netns.udp((at, 53));
    let tcp = netns.listen((at, 53));
    udp.set_read_timeout(None).expect("a socket option");
    thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..length], 512) {
                let _ = udp.send_to(&answer, from);
            }
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming().filter_map(Result::ok) {
            thread::spawn(move || serve_stream(stream));
        }
    });
}

/// RFC 7766: any number of messages, each after its length.
fn serve_stream(mut stream: TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(SOON)).ok()?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query).ok()?;
        let answer = answer(&query, usize::from(u16::MAX))?;
        let mut message = u16::try_from(answer.len()).ok()?.to_be_bytes().to_vec();
        message.extend(answer);
        stream.write_all(&message).ok()?;
    }
}

fn answer(query: &[u8], limit: usize) -> Option<Vec<u8>> {
    let (name, question) = question(query)?;
    let kind = u16::from_be_bytes(question[question.len() - 4..][..2].try_into().ok()?);
    let records: Vec<Vec<u8>> = match (name.as_str(), kind) {
        ("known.test.", TYPE_A) => vec![vec![203, 0, 113, 7]],
        ("big.test.", TYPE_TXT) => {
            (0..10).map(|_| [&[200], [b'x'; 200].as_slice()].concat()).collect()
        }
        ("known.test." | "big.test.", _) => vec![],
        _ => return Some(message(query, question, NXDOMAIN, false, kind, &[])),
    };
    let whole = message(query, question, 0, false, kind, &records);
    if whole.len() <= limit {
        return Some(whole);
    }
    Some(message(query, question, 0, true, kind, &[]))
}

/// The first question's name in lower case, and its bytes with type and class.
fn question(query: &[u8]) -> Option<(String, &[u8])> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push_str(&String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        name.push('.');
        at += length;
    }
    Some((name, query.get(12..at + 4)?))
}

fn message(
    query: &[u8],
    question: &[u8],
    code: u8,
    truncated: bool,
    kind: u16,
    records: &[Vec<u8>],
) -> Vec<u8> {
    let count = u8::try_from(records.len()).expect("a handful of records");
    let mut out = query[..2].to_vec();
    // Response; recursion desired as asked, and available.
    out.push(0x80 | u8::from(truncated) << 1 | query[2] & 1);
    out.push(0x80 | code);
    out.extend([0, 1, 0, count, 0, 0, 0, 0]);
    out.extend(question);
    for record in records {
        // The question's name, class IN, 60 seconds.
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 60]);
        out.extend(u16::try_from(record.len()).expect("a short record").to_be_bytes());
        out.extend(record);
    }
    out
}
