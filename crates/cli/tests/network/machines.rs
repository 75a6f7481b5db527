//! Machines that somebody connects to a network's socket by hand, and that say by DHCP what they are
//! called.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::lab::{Lab, eventually};

/// A machine's network card, in QEMU's framing.
struct Machine {
    stream: UnixStream,
    mac: [u8; 6],
}

impl Machine {
    fn connect(lab: &Lab, number: u8) -> Self {
        let stream = UnixStream::connect(lab.0.path("_networks/lab/lab_qemu.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { stream, mac: [0x52, 0x54, 0, 0, 0, number] }
    }

    /// Gets a lease, and says what it is called.
    fn lease(&mut self, name: &str) -> [u8; 4] {
        self.send(1, &[], name);
        let offered = self.answer();
        self.send(3, &[&[50, 4], &offered[..], &[54, 4, 10, 71, 0, 1]].concat(), name);
        assert_eq!(self.answer(), offered);
        offered
    }

    fn send(&mut self, kind: u8, options: &[u8], name: &str) {
        let mut bootp = vec![1, 1, 6, 0, 9, 9, 9, self.mac[5]];
        bootp.resize(28, 0);
        bootp.extend(self.mac);
        bootp.resize(236, 0);
        bootp.extend([99, 130, 83, 99, 53, 1, kind, 12, u8::try_from(name.len()).unwrap()]);
        bootp.extend(name.as_bytes());
        bootp.extend(options);
        bootp.push(255);
        let len = |more: usize| u16::try_from(bootp.len() + more).unwrap().to_be_bytes();
        let mut ip = [&[0x45, 0][..], &len(28), &[0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0]].concat();
        ip.extend([255; 4]);
        let sum: u32 =
            ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let udp = [&[0, 68, 0, 67][..], &len(8), &[0, 0]].concat();
        let mac = self.mac;
        self.put(&[&[255; 6], &mac, &[8, 0], &ip, &udp, &bootp]);
    }

    /// The address in the next answer.
    fn answer(&mut self) -> [u8; 4] {
        loop {
            let mut length = [0; 4];
            self.stream.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            self.stream.read_exact(&mut frame).unwrap();
            if frame.get(12..14) == Some(&[8, 0]) && frame.get(34..38) == Some(&[0, 67, 0, 68]) {
                return frame[58..62].try_into().unwrap();
            }
        }
    }
}

#[test]
fn machines_have_the_names_that_they_say() {
    let lab = Lab::with(
        "networks:\n  lab:\n    mode: user-v2\n    gateway: 10.71.0.1\n    reservations:\n    \
         - {mac: '52:54:00:00:00:09', ip: 10.71.0.9, name: db}\n",
    );
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    let look = |name: &str| {
        let ask = format!("getent ahostsv4 lima-{name}.internal | head -1 | cut -d ' ' -f 1");
        lab.output(&["--", "sh", "-c", &ask]).trim_end().to_owned()
    };
    let mut first = Machine::connect(&lab, 1);
    assert_eq!(first.lease("lima-Builder"), [10, 71, 0, 4]);
    assert_eq!(look("builder"), "10.71.0.4");
    let pointer = lab.output(&["--", "getent", "hosts", "10.71.0.4"]);
    assert!(pointer.contains("lima-builder.internal"), "{pointer}");
    // Nobody takes another's name, nor one that is reserved.
    let mut second = Machine::connect(&lab, 2);
    let other = Ipv4Addr::from(second.lease("builder")).to_string();
    let mut third = Machine::connect(&lab, 3);
    third.lease("db");
    assert_eq!((look("builder"), look("db")), ("10.71.0.4".to_owned(), String::new()));
    let mut db = Machine::connect(&lab, 9);
    assert_eq!(db.lease("whatever"), [10, 71, 0, 9]);
    assert_eq!((look("db"), look("whatever")), ("10.71.0.9".to_owned(), String::new()));
    let shown = lab.0.network(&["show", "lab"]).quiet();
    assert!(shown.contains("guest       builder, 10.71.0.4"), "{shown}");
    // A guest that joins by name comes first, and what was there before comes back after it.
    let own = "getent ahostsv4 lima-builder.internal | head -1 | cut -d ' ' -f 1; hostname -I 2>/dev/null | cut -d ' ' -f 1";
    let said = lab.output(&["--name", "builder", "--", "sh", "-c", own]);
    assert!(!said.contains("10.71.0.4"), "{said}");
    eventually("the name's return", || (look("builder") == "10.71.0.4").then_some(()));
    drop(first);
    eventually("the next with the name", || (look("builder") == other).then_some(()));
}

/// The beginning of the network's IPv6 addresses.
const PREFIX: &str = "fd76:6d6c:a47:0";

/// What is looked for is what the network has seen, whoever would like it to see something else.
#[test]
fn a_machines_name_has_the_ipv6_address_that_it_uses() {
    let lab = Lab::new();
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    let look = |name: &str| {
        let host = format!("lima-{name}.internal");
        let said = lab.0.vmlan(&["dns", "query", "--network", "lab", &host, "AAAA"], "").out;
        let record = said.lines().find(|line| line.contains("\tAAAA\t"))?.to_owned();
        Some(record.rsplit('\t').next()?.parse::<Ipv6Addr>().unwrap())
    };
    let address = |text: &str| format!("{PREFIX}{text}").parse::<Ipv6Addr>().unwrap();
    let mut first = Machine::connect(&lab, 1);
    first.lease("builder");
    assert_eq!(look("builder"), None);
    let own = address(":1234::1");
    first.asks_for("2001:db8::1".parse().unwrap());
    first.asks_for(own);
    eventually("the address", || (look("builder") == Some(own)).then_some(()));
    let pointer = lab.0.vmlan(&["dns", "query", "--network", "lab", &own.to_string()], "").out;
    assert!(pointer.contains("lima-builder.internal"), "{pointer}");
    assert!(lab.0.vmlan(&["list"], "").quiet().contains(&own.to_string()));

    let mut thief = Machine::connect(&lab, 2);
    thief.lease("thief");
    let (gateway, other) = (address("::1"), address(":4321::1"));
    for wish in [own, gateway, other] {
        thief.asks_for(wish);
    }
    eventually("the other address", || (look("thief") == Some(other)).then_some(()));
    assert_eq!(look("builder"), Some(own));

    // Lies are counted, and shown with whose they are.
    for _ in 0..3 {
        thief.says_it_is([10, 71, 0, 1]);
    }
    let shown = || {
        let said = lab.0.network(&["show", "lab"]).quiet();
        let of =
            |start: &str| said.lines().any(|l| l.starts_with(start) && l.contains("3 spoofed"));
        (of("dropped") && of("guest       thief,")).then_some(())
    };
    eventually("the lies in the listing", shown);
}

/// Whatever was known of a machine, the next daemon knows when it is there again, though it speaks of
/// its IPv4 address only.
#[test]
fn a_machine_that_comes_back_to_another_daemon_has_its_name_and_addresses() {
    let lab = Lab::new();
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    let ask = |what: &str, kind: &str| {
        let mut words = vec!["dns", "query", "--network", "lab", what];
        // Of an address it is what is asked for.
        words.extend((kind != "PTR").then_some(kind));
        let said = lab.0.vmlan(&words, "").out;
        let of = format!("\t{kind}\t");
        let line = said.lines().find(|line| line.contains(&of)).unwrap_or_default().to_owned();
        line.rsplit('\t').next().unwrap_or_default().to_owned()
    };
    let six: Ipv6Addr = format!("{PREFIX}:1234::1").parse().unwrap();
    let host = "lima-builder.internal";
    let file = lab.0.path("_networks/lab/guests.json");
    let mut machine = Machine::connect(&lab, 1);
    let four = machine.lease("builder");
    machine.asks_for(six);
    let is_saved =
        || std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&six.to_string()));
    eventually("the address in the file", || is_saved().then_some(()));

    let first = lab.pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = eventually("another daemon", || lab.pid().filter(|pid| *pid != first));
    let socket = lab.0.path("_networks/lab/lab_qemu.sock");
    eventually("its socket", || UnixStream::connect(&socket).ok());
    // Names are guests' that are there.
    assert_eq!([ask(host, "A"), ask(host, "AAAA")], ["", ""]);
    let mut machine = Machine::connect(&lab, 1);
    machine.says_it_is(four);
    let known = || {
        let found = [ask(host, "A"), ask(host, "AAAA"), ask(&six.to_string(), "PTR")];
        let want = [Ipv4Addr::from(four).to_string(), six.to_string(), format!("{host}.")];
        (found == want).then_some(())
    };
    eventually("the name and its addresses", known);
    assert_eq!(lab.pid(), Some(second));
    // Gone with its guest, at once and for the next who asks.
    drop(machine);
    eventually("the end of the name", || ask(host, "AAAA").is_empty().then_some(()));
    let mut other = Machine::connect(&lab, 2);
    other.lease("other");
    other.asks_for(six);
    let others = || (ask("lima-other.internal", "AAAA") == six.to_string()).then_some(());
    eventually("the address with its next owner", others);
    assert_eq!(lab.0.network(&["stop", "lab"]).quiet(), "");
    drop(other);
    eventually("the daemon's end", || (lab.left().is_empty()).then_some(()));
}

impl Machine {
    /// Asks whether anybody has an address, which it would like to have (RFC 4862 section 5.4).
    fn asks_for(&mut self, wish: Ipv6Addr) {
        let [.., a, b, c] = wish.octets();
        let group = Ipv6Addr::from_bits(
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits()
                | u128::from_be_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c]),
        );
        let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &wish.octets()].concat();
        let pseudo = [&group.octets()[..], &[0, 24, 0, 58], &message].concat();
        let sum: u32 =
            pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        message[2..4].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
        let head = [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &[0; 16], &group.octets()].concat();
        let mac = self.mac;
        self.put(&[&[0x33, 0x33, 0xff, a, b, c], &mac, &[0x86, 0xdd], &head, &message]);
    }

    /// Tells everybody that an address is its own (RFC 826).
    fn says_it_is(&mut self, address: [u8; 4]) {
        let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
        let mac = self.mac;
        self.put(&[&[255; 6], &mac, &kind, &mac, &address, &[255; 6], &address]);
    }

    fn put(&mut self, parts: &[&[u8]]) {
        let frame = parts.concat();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.stream.write_all(&[&length[..], &frame].concat()).unwrap();
    }
}
