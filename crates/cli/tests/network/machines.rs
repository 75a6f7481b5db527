//! Machines that somebody connects to a network's socket by hand, and that say by DHCP what they are
//! called.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

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
        let frame = [&[255; 6][..], &self.mac, &[8, 0], &ip, &udp, &bootp].concat();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.stream.write_all(&[&length[..], &frame].concat()).unwrap();
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
