//! A real nameserver as the host's upstream: BIND, with the zones of `zones/` and some records that
//! no file should hold. It answers for its zones, follows delegations to a second face of its own,
//! and knows that the rest of the world does not exist.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;

use crate::binary::{unpacked, unpacked_libraries};
use crate::dns_client::Client;
use crate::dns_message::{DNSKEY, NOERROR, Query};
use crate::netns::{Netns, SOON};
use crate::process::{Process, eventually, run};
use crate::world::OUTSIDE;

/// A running nameserver at port 53 of `OUTSIDE` and `OUTSIDE6`.
#[derive(Debug)]
pub struct Named {
    process: Process,
    dir: TempDir,
}

impl Named {
    /// Starts it in the outside of a world, and waits until it answers.
    #[track_caller]
    pub fn start(outside: &Netns) -> Self {
        // The nameserver of the delegated zone, and an address where nobody answers.
        outside.ip("address replace 198.51.100.3/24 dev down0");
        outside.ip("address replace 198.51.100.4/24 dev down0");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path();
        write(path, "test.zone", &[include_str!("../zones/test.zone"), &long_records()].concat());
        write(path, "child.test.zone", include_str!("../zones/child.test.zone"));
        write(path, "in-addr.arpa.zone", include_str!("../zones/in-addr.arpa.zone"));
        write(path, "ip6.arpa.zone", include_str!("../zones/ip6.arpa.zone"));
        write(path, "root.zone", include_str!("../zones/root.zone"));
        write(path, "signed.test.zone", include_str!("../zones/signed.test.zone"));
        write(path, "named.conf", &configuration(path));
        sign(path, "signed.test");
        let mut command = outside.command("env");
        command.arg(unpacked_libraries()).arg(unpacked("usr/sbin/named"));
        command.args(["-f", "-n", "1", "-c"]).arg(path.join("named.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut named = Self { process: Process::spawn(&mut command), dir };
        let query = Query::new("signed.test", DNSKEY);
        eventually("the nameserver's first answer", SOON, || {
            assert!(named.process.is_running(), "the nameserver ended");
            // Nobody listens at first, which is an error of the socket.
            let mut client = Client::new(outside, OUTSIDE);
            let reply = client.exchange_tcp(&query.encode(1)).ok()?;
            (u16::from(reply[3] & 0xf) == NOERROR).then_some(())
        });
        let said = named.process.stderr();
        assert!(!said.contains("not loaded"), "a zone has a mistake");
        named
    }

    /// What was asked of it: `NAME CLASS TYPE`, with the letters as they came.
    pub fn questions(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("queries")).unwrap_or_default();
        let lines = log.lines().filter_map(|line| line.split_once(" query: "));
        lines
            .filter_map(|(_, said)| {
                Some(said.split_once(" +").or_else(|| said.split_once(" -"))?.0.into())
            })
            .collect()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("a file in a temporary directory");
}

/// More than fits the sizes that askers announce.
fn long_records() -> String {
    let mut zone = String::new();
    let mut line = |text: &str| writeln!(zone, "{text}").expect("a string takes everything");
    // About 600, 1 000, 2 000, 3 000 and 6 000 bytes of addresses.
    for (name, count) in
        [("many", 35), ("hundred", 60), ("crowd", 120), ("throng", 180), ("mob", 370)]
    {
        for n in 0..count {
            line(&format!("{name} A 203.0.{}.{}", 113 + n / 200, n % 200));
        }
    }
    for n in 0..50 {
        line(&format!("crowd6 AAAA 2001:db8:1::{n:x}"));
        line(&format!("mails MX {n} relay{n}.mail.elsewhere.example."));
        line(&format!("_many._tcp SRV {n} 0 443 target{n}"));
    }
    let words = |count: usize| format!(" \"{}\"", "x".repeat(255)).repeat(count);
    line(&format!("text255 TXT{}", words(1)));
    line(&format!("text2k TXT{}", words(8)));
    line(&format!("text6k TXT{}", words(24)));
    line(&format!("text60k TXT{}", words(235)));
    // The longest name that there is: 255 bytes with the lengths and the root.
    let label = "l".repeat(61);
    line(&format!("l{label}.{label}.{label}.{label} A 203.0.113.37"));
    zone
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"
        options {{
            directory "{dir}"; pid-file none; session-keyfile none; lock-file none;
            listen-on port 53 {{ 198.51.100.2; 198.51.100.3; }};
            listen-on-v6 port 53 {{ 2001:db8:1::2; }};
            recursion yes; allow-query {{ any; }}; allow-recursion {{ any; }};
            dnssec-validation no; empty-zones-enable no; querylog yes; notify no;
            check-names primary ignore; max-records-per-type 0; minimal-responses no; minimal-any no; rrset-order {{ order none; }};
            max-udp-size 4096; version "a test's"; qname-minimization off; clients-per-query 0;
        }};
        controls {{ }};
        logging {{
            channel queries {{ file "queries"; buffered no; }};
            category queries {{ queries; }};
            category query-errors {{ null; }};
            category default {{ default_stderr; }};
        }};
        view child {{
            match-destinations {{ 198.51.100.3; }};
            recursion no;
            zone child.test {{ type primary; file "child.test.zone"; }};
        }};
        view world {{
            zone "." {{ type primary; file "root.zone"; }};
            zone test {{ type primary; file "test.zone"; }};
            zone signed.test {{ type primary; file "signed.test.zone.signed"; }};
            zone refused.test {{ type primary; file "in-addr.arpa.zone"; allow-query {{ none; }}; }};
            zone in-addr.arpa {{ type primary; file "in-addr.arpa.zone"; }};
            zone ip6.arpa {{ type primary; file "ip6.arpa.zone"; }};
        }};
        "#
    )
}

/// Signs a zone with a key made for it.
#[track_caller]
fn sign(dir: &Path, zone: &str) {
    let tool = |name: &str| {
        let mut command = std::process::Command::new("env");
        command.arg(unpacked_libraries()).arg(unpacked(name)).current_dir(dir);
        command
    };
    run(tool("usr/bin/dnssec-keygen").args(["-a", "ECDSAP256SHA256", "-f", "KSK", zone]), SOON);
    run(tool("usr/bin/dnssec-keygen").args(["-a", "ECDSAP256SHA256", zone]), SOON);
    let file = format!("{zone}.zone");
    run(tool("usr/bin/dnssec-signzone").args(["-S", "-o", zone, &file]), SOON);
}
