//! The committed corpora: `cargo run --example seeds` writes them again after a change of format.

/// Builds an input for [`crate::engine`].
#[derive(Debug, Default)]
struct Input(Vec<u8>);

const SYN: u8 = 0;
const ACK: u8 = 1;
const FIN: u8 = 4;
const RST: u8 = 5;

impl Input {
    fn new(setup: u8) -> Self {
        Self(vec![setup])
    }

    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn sized(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// A segment that follows what was seen, to 10.0.0.1 on one of the scripted ports.
    fn segment(self, how: u8, port: u8) -> Self {
        self.op(&[1, 0, 0x61 | port << 3, how, 0])
    }

    fn data(self, port: u8, len: u16) -> Self {
        let [high, low] = len.to_be_bytes();
        self.op(&[1, 0, 0x60 | port, ACK | 64, high, low, 7])
    }

    fn tcp(self, how: u8, port: u8) -> Self {
        self.op(&[1, 0, 0x60 | port, how, 0])
    }

    fn pass(self, how: u8, span: u16) -> Self {
        let [high, low] = span.to_be_bytes();
        self.op(&[14, how, high, low])
    }

    fn far(self, action: u8) -> Self {
        self.op(&[15, 0, action])
    }
}

/// Name and bytes of every input of a target.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |list: Vec<(&str, Vec<u8>)>| {
        list.into_iter().map(|(name, input)| (name.to_owned(), input)).collect()
    };
    match target {
        "engine" => engine(),
        "dhcp" => named(dhcp()),
        "dns" => named(dns()),
        "resolver" => named(resolver()),
        "config" => named(config()),
        "proxy" => named(proxy()),
        "stream" => named(stream()),
        "segment" => named(segment()),
        "datagram" => named(datagram()),
        "tap" => named(tap()),
        _ => Vec::new(),
    }
}

fn engine() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for setup in [1, 3, 0x21, 0x35] {
        for port in 0..16 {
            let open = Input::new(setup).op(&[11, 15, 2]).tcp(SYN, port).tcp(ACK, port);
            let talk = open.data(port, 100).data(port, 1400).tcp(ACK, port).pass(0, 3000);
            let end = talk.tcp(ACK, port).tcp(FIN, port).tcp(ACK, port).pass(5, 9000);
            all.push((format!("tcp-{setup:02x}-{port}"), end.tcp(ACK, port).0));
        }
    }
    let open = || Input::new(1).tcp(SYN, 0).tcp(ACK, 0);
    let call = Input::new(1).op(&[11, 15, 2]).op(&[25, 0, 0]).op(&[1, 0, 28, 6, 0]);
    let talk = call.op(&[1, 0, 28, ACK | 64, 0, 200, 7]).op(&[25, 5, 0, 0, 2, 7, 7]);
    let answer = talk.op(&[8, 0, 27, 0, 40]).op(&[1, 0, 28, FIN, 0]).pass(5, 1000);
    all.push(("tunnel".into(), answer.0));
    let gap = open().op(&[1, 0, 0x60, ACK | 8 | 64, 0, 200, 0, 100, 7]).data(0, 200);
    all.push(("gap".into(), gap.pass(5, 1000).0));
    all.push(("far-fin".into(), open().far(0).tcp(ACK, 0).tcp(FIN, 0).tcp(ACK, 0).0));
    all.push(("far-reset".into(), open().data(0, 10).far(1).0));
    all.push(("guest-reset".into(), open().data(0, 10).tcp(RST, 0).0));
    let sack = Input::new(1).tcp(SYN, 4).tcp(ACK, 4);
    let sack = sack.op(&[1, 0, 0x64, ACK | 128, 0, 0, 3, 5, 180, 11, 104, 17, 28, 22, 208]);
    all.push(("sack".into(), sack.pass(5, 2000).tcp(ACK, 4).0));
    let closed = Input::new(1).tcp(SYN, 4).op(&[1, 0, 0x64, ACK | 32, 0, 0, 0]).pass(7, 6000);
    all.push(("zero-window".into(), closed.tcp(ACK, 4).pass(5, 2000).0));
    let mut datagrams = Input::new(1);
    for port in 0..8 {
        datagrams = datagrams.op(&[8, 0, 0x60 | port]).sized(b"datagram").op(&[8, 2, 0x60 | port]);
        datagrams = datagrams.sized(b"datagram over IPv6").pass(0, 2000);
        datagrams = datagrams.op(&[9, 0, 0x60 | port, 1, 1]).sized(b"ping");
    }
    all.push(("datagrams".into(), datagrams.op(&[24, 1]).pass(7, 8000).0));
    let udp = [&[0x10, 0, 0, 53, 0, 24, 0, 0][..], &[1; 8]].concat();
    let fragments = Input::new(1).op(&[10, 0x20, 0, 1, 0]).sized(&udp);
    all.push(("fragments".into(), fragments.op(&[10, 0, 2, 1, 0]).sized(&[2; 8]).0));
    let mut clients = Input::new(3).op(&[11, 15, 2]);
    for kind in 0..4 {
        clients = clients.op(&[17, kind, kind]);
        clients = if kind == 0 { clients.sized(b"hello") } else { clients };
        clients = clients.pass(5, 200);
    }
    all.push(("clients".into(), clients.op(&[1, 0, 0x60, 6, 0]).pass(5, 9000).0));
    let plug = Input::new(1).tcp(SYN, 1).tcp(ACK, 1).op(&[16]).pass(7, 200).op(&[16, 0]);
    all.push(("plug".into(), plug.data(1, 50).pass(7, 2000).0));
    let mut batch = Input::new(1).tcp(SYN, 1).tcp(ACK, 1).op(&[19, 12]);
    for _ in 0..14 {
        batch = batch.data(1, 1400);
    }
    all.push(("batch".into(), batch.pass(5, 100).0));
    let train = Input::new(3).op(&[0x80 | 23, 2, 1]).op(&[8, 0]).sized(&[1; 40]);
    let train = train.op(&[0x80 | 21, 0, 0x60, ACK | 64, 7, 0, 1, 2 | 8, 2, 0, 0, 54]);
    all.push((
        "train".into(),
        train.op(&[22, 3 | 8, 0, 34, 0, 16, 0, 100, 0, 54]).sized(&[9; 80]).0,
    ));
    let neighbours = Input::new(1).op(&[12, 0]).sized(&[0; 4]).op(&[12, 2]).sized(&[0; 20]);
    let neighbours = neighbours.op(&[23, 0, 1, 8, 6]).sized(&[0; 28]).op(&[20, 1, 0, 20, 1]);
    all.push(("neighbours".into(), neighbours.op(&[18]).tcp(SYN, 0).op(&[18]).pass(7, 64).0));
    let six = Input::new(1).op(&[1, 2, 0x60, SYN, 0]).op(&[1, 2, 0x60, ACK, 0]);
    all.push(("tcp6".into(), six.op(&[1, 2, 0x60, FIN, 0]).segment(SYN, 1).0));
    let boot = Input::new(1).op(&[13]).sized(&discover()).op(&[0]);
    let solicit = [1, 0, 0, 1, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1, 0, 3, 0, 12, 0, 0, 0, 1];
    let boot = boot.op(&[13]).sized(&[&solicit[..], &[0; 8]].concat()).op(&[1]);
    all.push(("boot".into(), boot.pass(7, 300).0));
    all
}

fn discover() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend_from_slice(&[2, 0, 0, 0, 0, 1]);
    message.resize(236, 0);
    message.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 55, 3, 1, 3, 6, 255]);
    message
}

fn dhcp() -> Vec<(&'static str, Vec<u8>)> {
    // Kind, transaction, requested address, server, address in use, more options, time.
    let message = |how: u8, kind: u8, wants: &[u8], server: u8, more: &[u8]| {
        let mut out = vec![how, kind, 0, 0, 0, 9];
        out.extend_from_slice(wants);
        out.extend_from_slice(&[server, 0, 0, more.len() as u8]);
        out.extend_from_slice(more);
        if how & 64 != 0 {
            out.extend_from_slice(&[8, 0]);
        }
        out
    };
    let options = [55, 4, 1, 3, 6, 119, 12, 5, b'g', b'u', b'e', b's', b't', 57, 2, 2, 64];
    let lease = [
        message(64, 1, &[0], 0, &options),
        message(64, 3, &[1, 15], 1, &options),
        message(64, 3, &[0], 0, &[]),
        message(64, 7, &[0], 1, &[]),
    ];
    let mut raw = vec![16];
    raw.extend_from_slice(&(discover().len() as u16).to_be_bytes());
    raw.extend_from_slice(&discover());
    let other = [message(64, 3, &[1, 200], 0, &[]), message(65, 4, &[1, 15], 1, &[])];
    let crowd: Vec<u8> = (0..8)
        .flat_map(|n| [message(64 | n, 1, &[0], 0, &[]), message(n, 3, &[1, 15 + n], 1, &[])])
        .flatten()
        .collect();
    let inform = [message(64, 8, &[0], 0, &[61, 7, 1, 2, 0, 0, 0, 0, 1, 82, 3, 1, 1, 1])];
    vec![
        ("lease", lease.concat()),
        ("raw", raw),
        ("other", other.concat()),
        ("crowd", crowd),
        ("inform", inform.concat()),
    ]
}

fn resolver() -> Vec<(&'static str, Vec<u8>)> {
    // A query of this type for one of the names, as `how` and `pick` say.
    let ask = |kind: u8, pick: u8| Input::default().op(&[kind << 3, pick, 7, 0]).0;
    let reply = |how: u8, sections: [u8; 3], rest: &[u8]| {
        Input::default().op(&[4 | how, 0x80]).op(&sections).sized(rest).0
    };
    let soa = b"\xc0\x0c\0\x06\0\x01\0\0\0\x3c\0\x16\0\0\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x01";
    let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
    let own = (0..8).flat_map(|kind| [ask(kind, 0), ask(kind, 0x81)].concat()).collect();
    let shared = [ask(0, 5), ask(0, 0xbd), ask(0, 5), reply(0, [1, 0, 1], opt), ask(0, 5)].concat();
    let nothing = [ask(1, 5), reply(8, [0, 1, 0], soa), vec![0x17], ask(1, 5)].concat();
    let alias = [ask(0, 2), ask(0, 0x82), reply(0, [1, 0, 1], opt), ask(0, 2)].concat();
    let lookup = [ask(0, 4), ask(1, 4), vec![4 | 8], ask(0, 4), vec![0x3f], ask(0, 4)].concat();
    let garbage = [ask(0, 5), Input::default().op(&[0x44]).sized(&[0x80; 40]).0].concat();
    vec![
        ("own", own),
        ("shared", shared),
        ("nothing", nothing),
        ("alias", alias),
        ("lookup", lookup),
        ("garbage", garbage),
    ]
}

fn dns() -> Vec<(&'static str, Vec<u8>)> {
    let question = |how: u8, kind: u8, more: &[u8]| {
        let mut out = vec![how, 0, 7, kind, 0, more.len() as u8];
        out.extend_from_slice(more);
        out
    };
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let known: Vec<u8> = [1, 28, 12, 16, 255].map(|kind| question(2, kind, &[])).concat();
    let mut other = vec![4, 0, 29, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    other.extend_from_slice(b"\x07example\x03com\x00\x00\x01\x00\x01");
    let mut answered = vec![1, 0, 12, 0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
    answered.extend_from_slice(&other[1..]);
    let stream = [question(0xc2, 1, &[]), question(0xc2, 28, &opt)].concat();
    vec![
        ("known", known),
        ("edns", question(2, 1, &opt)),
        ("other", other),
        ("answered", answered),
        ("six", question(0x82, 1, &[])),
        ("stream", stream),
    ]
}

fn stream() -> Vec<(&'static str, Vec<u8>)> {
    let frames = |lens: &[u32]| {
        lens.iter()
            .flat_map(|len| {
                let body = vec![*len as u8; (*len).min(3000) as usize];
                [len.to_be_bytes().to_vec(), body].concat()
            })
            .collect::<Vec<u8>>()
    };
    let cut = |cuts: &[u8], lens: &[u32]| {
        [&(cuts.len() as u16).to_be_bytes()[..], cuts, &frames(lens)].concat()
    };
    vec![
        ("whole", cut(&[], &[14, 60, 1514, 60])),
        ("bytes", cut(&[1], &[14, 15, 60])),
        ("odd", cut(&[3, 5, 7, 100], &[60, 1514, 14, 500])),
        ("short", cut(&[9], &[60, 13, 60])),
        ("long", cut(&[9], &[60, 70_000])),
        ("zero", cut(&[], &[60, 0])),
        ("large", cut(&[255, 1, 230], &[3000, 2999, 2998, 3000])),
    ]
}

fn segment() -> Vec<(&'static str, Vec<u8>)> {
    // Family and options, flags, numbers, window, size, length, where the pieces begin, data.
    let train = |how: u8, flags: u8, size: u16, len: u16, cuts: [u8; 4]| {
        let mut out = vec![1, how, flags, 255, 255, 255, 0, 16, 0, 0, 0, 0, 1];
        out.extend((0..how >> 6).map(|_| 3));
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&cuts);
        out.extend_from_slice(b"payload");
        out
    };
    let mut lie = vec![0, 0, 0, 100, 0, 54, 0, 34, 0, 16, 0, 54, 0, 20];
    lie.extend_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    lie.extend_from_slice(&[0x45, 0, 1, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    lie.extend_from_slice(&[0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    lie.resize(14 + 14 + 256, 7);
    vec![
        ("v4", train(0, 0x19, 1459, 20_000, [0, 0, 0, 0])),
        ("v6", train(1, 0x98, 1439, 20_000, [0, 0, 1, 0])),
        ("one", train(0, 0x10, 8000, 0, [0, 0, 0, 0])),
        ("odd", train(0x41, 0x18, 6, 200, [0, 3, 0, 5])),
        ("options", train(0xc0, 0x91, 99, 3000, [0, 200, 2, 0])),
        ("lie", lie),
    ]
}

fn datagram() -> Vec<(&'static str, Vec<u8>)> {
    let hello = [1, 0x80, 0x81, 0xe0, 0xc0, 0, 0, 50];
    let mut frames = vec![1, 0x80];
    for guest in [0, 1, 0, 2, 3, 1] {
        frames.extend_from_slice(&[guest, 0, 20]);
        frames.extend_from_slice(&[9; 20]);
    }
    frames.push(0xe0);
    let odd =
        [1, 0, 0, 4, b'V', b'F', b'K', b'T', 1, 0, 0, 0xa0, 0, 13, 0xa1, 5, 238, 0xa1, 40, 0, 0xe0];
    let large = [2, 0xa0, 0xff, 0, 0xa1, 0xff, 0xff, 0xe0, 0xc0, 1, 5, 0];
    vec![
        ("hello", hello.to_vec()),
        ("frames", frames),
        ("odd", odd.to_vec()),
        ("large", large.to_vec()),
    ]
}

fn config() -> Vec<(&'static str, Vec<u8>)> {
    let default =
        include_str!("../../crates/config/src/snapshots/vmlan_config__template__tests__linux.snap");
    let default = default.splitn(3, "---\n").nth(2).unwrap_or_default();
    let odd = "\
%YAML 1.2
---
group: &g \"wh\\x65el\" # who
networks:
    # before
    'a-1': &a {mode: host, gateway: 10.1.0.1, dhcpEnd: ~}
    b:
        <<: *a
        gateway: >-
            10.2.0.1
        # inside
    ? c
    : {mode: bridged, interface: |-
        br0
      }
    0x10:
        mode: !!str user-v2
        gateway: 10.3.0.1
        vdeSwitch: [1, 2.50, *g]
...
";
    let wrong = "\
networks:
  a: {mode: host, gateway: 10.1.0.0}
  \"b \\e\": {mode: \"x\\u2028\", gateway: 300.1.0.1, netmask: 255.0.255.0}
  a: {}
\t c: *d
";
    let lima = "\
networks:
- lima: shared
- {lima: user-v2, macAddress: 52:55:55:00:00:01, interface: eth1, metric: 10}
- vzNAT: true
  interface: lima0
- socket: /nowhere
";
    let list = [("default", default), ("odd", odd), ("wrong", wrong), ("lima", lima)];
    list.into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect()
}

fn tap() -> Vec<(&'static str, Vec<u8>)> {
    // How the header is made, the segment's ends and flags, its length; see the target.
    let sound = |to: u8, flags: u8, len: u16| {
        let [high, low] = len.to_be_bytes();
        vec![1, to, flags, high, low, 5, 180]
    };
    let lying = |header: [u8; 10]| {
        let mut out = vec![2];
        out.extend_from_slice(&header);
        out.extend_from_slice(&sound(1, ACK, 9000)[1..]);
        out
    };
    let with = |setup: u8, ops: &[Vec<u8>]| [&[setup][..], &ops.concat()].concat();
    let talk = [sound(0, SYN, 0), sound(0, ACK, 0), sound(0, ACK, 60_000), sound(0, ACK, 100)];
    let mut raw = vec![0, 0, 30, 1, 1, 54, 0, 100, 0, 34, 0, 16, 0];
    raw.extend_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 20]);
    vec![
        ("talk", with(1, &talk)),
        ("talk6", with(0x83, &talk)),
        ("switched", with(1, &[sound(1, ACK, 20_000), sound(2, ACK, 20_000), sound(1, FIN, 1)])),
        ("datagrams", with(1, &[vec![3, 0, 0, 9, 1], vec![3, 1, 20, 0, 1], vec![3, 2, 200, 0, 1]])),
        ("raw", with(1, &[raw, vec![0, 0, 4, 1, 1, 1, 1], vec![0, 0, 0]])),
        ("tiny", with(1, &[lying([1, 1, 54, 0, 1, 0, 34, 0, 16, 0])])),
        ("zero", with(1, &[lying([1, 1, 54, 0, 0, 0, 34, 0, 16, 0])])),
        ("far", with(1, &[lying([1, 4, 255, 255, 255, 255, 255, 255, 255, 255])])),
        ("ecn", with(1, &[lying([1, 0x81, 54, 0, 100, 5, 34, 0, 16, 0])])),
        ("wrong", with(1, &[lying([3, 4, 0, 0, 100, 5, 13, 0, 1, 0])])),
    ]
}

fn proxy() -> Vec<(&'static str, Vec<u8>)> {
    // The size of the pieces first, 0 for a datagram.
    let name = [&b"\x03\x11lima-web.internal"[..], &[0x1f, 0x40]].concat();
    let v4 = [1, 10, 71, 0, 4, 0x1f, 0x40];
    let v6 = [&[4, 0xfd][..], &[0; 15], &[0x1f, 0x40]].concat();
    let socks = |command: u8, address: &[u8]| {
        [&[3, 5, 2, 0, 2, 5, command, 0][..], address, b"early"].concat()
    };
    let relayed = |address: &[u8]| [&[0, 0, 0, 0][..], address, b"data"].concat();
    vec![
        ("name", socks(1, &name)),
        ("v4", socks(1, &v4)),
        ("v6", socks(1, &v6)),
        ("bind", socks(2, &v4)),
        ("associate", socks(3, &v6)),
        ("password", vec![1, 5, 1, 2]),
        (
            "connect",
            b"\x07CONNECT lima-web.internal:8000 HTTP/1.1\r\nHost: x\r\n\r\nearly".to_vec(),
        ),
        ("connect6", b"\x07CONNECT [fd00::1]:8000 HTTP/1.0\r\n\r\n".to_vec()),
        ("get", b"\x09GET http://a/ HTTP/1.1\r\n\r\n".to_vec()),
        ("datagram", relayed(&v4)),
        ("datagram6", relayed(&v6)),
        ("datagram-name", relayed(&name)),
    ]
}
