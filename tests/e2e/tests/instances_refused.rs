//! Machines that cannot be made or started: the reason is said, and nothing half-made is left.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use vmlan_e2e::MachineHost;
use vmlan_e2e::instances::{Image, PATIENT};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::capture;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Nothing of an instance is there, and no process.
#[track_caller]
fn nothing_is_made(host: &MachineHost, home: &str) {
    let there = host.run(&format!("ls -A {home} 2>/dev/null || true"));
    let instances: Vec<_> = there.lines().filter(|name| !name.starts_with('_')).collect();
    assert_eq!(instances, [""; 0]);
    host.await_end("vmlan");
    host.await_end("qemu-system");
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "`{word}` is not in {said}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let host = MachineHost::new();
    host.describe("one", Image::Small, "");

    let few = "mkdir few; for p in sh ssh ssh-keygen cat; do ln -s $(command -v $p) few/; done
               PATH=$HOME/few:/run/bin vmlan start one.yaml";
    says(
        &host.fail(few),
        &["qemu-system-x86_64", "not installed", "apt-get install", "qemu-system-x86"],
    );
    nothing_is_made(&host, ".lima");

    host.root("ln -s /usr/bin/qemu-system-x86_64 /run/home/few/; rm /run/home/few/ssh");
    let said = host.fail("PATH=$HOME/few:/run/bin vmlan start one.yaml");
    says(&said, &["`ssh` is not installed", "openssh-client"]);
    nothing_is_made(&host, ".lima");

    let long = "x".repeat(80);
    let said = host.fail(&format!("LIMA_HOME=$HOME/{long} vmlan start one.yaml"));
    says(&said, &["too long", "LIMA_HOME"]);
    nothing_is_made(&host, &long);

    let there = fs::read_to_string(host.home().join("one.yaml")).expect("a file");
    let line = there.lines().position(|line| line.starts_with("cpus")).expect("a line") + 1;
    let at = format!("wrong.yaml:{line}:1");
    for (wrong, words) in [
        (there.replace("small.raw", "none.raw"), &["none.raw", "No such file"][..]),
        (there.replace("cpus", "cpu"), &[&at, "cpu"]),
        (format!("{there}networks:\n- lima: nowhere\n"), &["nowhere"]),
        (format!("{there}networks:\n- vzNAT: true\n"), &["vzNAT"]),
    ] {
        fs::write(host.home().join("wrong.yaml"), wrong).expect("a file in the home");
        says(&host.fail("vmlan start wrong.yaml"), words);
        nothing_is_made(&host, ".lima");
    }
}

#[test]
fn a_damaged_image_is_refused() {
    let host = MachineHost::new();
    host.describe("one", Image::Small, "");
    let good = fs::read_to_string(host.home().join("one.yaml")).expect("a file");

    let digest = format!("digest: sha256:{}", "0".repeat(64));
    let at = "location: /run/machines/small.raw\n";
    let wrong = good.replace(at, &format!("{at}  {digest}\n"));
    fs::write(host.home().join("one.yaml"), wrong).expect("a file in the home");
    says(&host.fail("vmlan start one.yaml"), &["small.raw", "sha256"]);
    nothing_is_made(&host, ".lima");

    // The first bytes of a qcow2; the header of one whose tables are missing; and one that names a
    // file of the host's as the rest of it.
    let wrong = good.replace("/run/machines/small.raw", "/run/home/bad.qcow2");
    fs::write(host.home().join("two.yaml"), wrong).expect("a file in the home");
    let mut header = [0; 104];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    for (at, number) in
        [(20, 16_u32), (28, 1 << 20), (36, 1), (44, 3 << 16), (52, 1 << 16), (56, 1)]
    {
        header[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    let mut over_another = header;
    over_another[8..20].copy_from_slice(b"\0\0\0\0\0\0\0\x60\0\0\0\x04");
    over_another[96..100].copy_from_slice(b"/etc");
    for (bytes, words) in [
        (&header[..8], &["qcow2", "not a whole"][..]),
        (&header[..], &["bad.qcow2", "cut off"]),
        (&over_another[..], &["bad.qcow2", "names another file"]),
    ] {
        fs::write(host.home().join("bad.qcow2"), bytes).expect("a file in the home");
        says(&host.fail("vmlan start two.yaml"), words);
        nothing_is_made(&host, ".lima");
    }
}

#[test]
fn a_full_disk_leaves_no_half_of_a_machine() {
    let host = MachineHost::new();
    // Its image is written to the home, and a little more than the home takes.
    let image = fs::File::create(host.home().join("large.raw")).expect("a file in the home");
    for at in 0..64 {
        image.write_all_at(&[1; 65_536], at << 16).expect("room on the machine that tests");
    }
    host.describe("one", Image::Small, "");
    let text = fs::read_to_string(host.home().join("one.yaml")).expect("a file");
    let text = text.replace("/run/machines/small.raw", "/run/home/large.raw");
    fs::write(host.home().join("one.yaml"), text).expect("a file in the home");
    host.root("mkdir /run/tiny; mount -t tmpfs -o size=2M,uid=61234 tmpfs /run/tiny");
    let said = host.fail("LIMA_HOME=/run/tiny vmlan start one.yaml");
    says(&said, &["No space left"]);
    nothing_is_made(&host, "/run/tiny");
    let left = host.run("du -s /run/tiny | cut -f 1").parse::<u32>().expect("a size");
    assert!(left < 64, "{left} KiB are left: {}", host.run("find /run/tiny"));
}

#[test]
fn a_machine_whose_disk_finds_no_room_says_so_and_goes_on() {
    let host = MachineHost::new();
    host.root("mkdir /run/tiny; mount -t tmpfs -o size=60M,uid=61234 tmpfs /run/tiny");
    host.describe("one", Image::Small, "");
    let vmlan = "export LIMA_HOME=/run/tiny; vmlan";
    host.run(&format!("{vmlan} start one.yaml"));
    let fill = "dd if=/dev/zero of=/run/tiny/fill bs=4k 2>/dev/null || true";
    host.run(fill);
    let ssh = "ssh -F /run/tiny/one/ssh.config -l root lima-one";
    let write = "dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync >/run/dd 2>&1 &";
    host.run(&format!("{ssh} '{write}'"));
    let list = host.until(&format!("{vmlan} list one | grep -A 1 degraded"), SOON);
    assert!(list.contains("is paused") && list.contains("room"), "{list}");
    host.run("rm /run/tiny/fill");
    host.until(&format!("{vmlan} list one | grep 'Running  '"), SOON);
    let written = host.until(&format!("{ssh} 'grep records.out /run/dd'"), SOON);
    assert_eq!(written, "8+0 records out");
    host.run(&format!("{vmlan} stop one"));
}

#[test]
fn a_taken_port_is_named_and_can_be_freed() {
    let host = MachineHost::new();
    let taken = host.net.listen((LOOPBACK, 60022));
    host.describe("one", Image::Small, "ssh:\n  localPort: 60022");
    says(&host.fail("vmlan start one.yaml"), &["60022"]);
    assert_eq!(host.status("one"), "Stopped");
    host.await_end("vmlan");
    host.await_end("qemu-system");
    assert!(!host.dir("one").join("ha.sock").exists());
    drop(taken);
    says(&host.run("vmlan start one"), &["127.0.0.1:60022"]);
}

/// Serves files by HTTP: each in two halves, the second of which waits for the word to go on.
/// What was asked for is told.
fn slow_server(host: &MachineHost, bytes: Vec<u8>) -> (Sender<()>, Receiver<String>) {
    let listener = host.net.listen((LOOPBACK, 8000));
    let (go_on, may) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let _ = answer(stream, &bytes, &may, &tell);
        }
    });
    (go_on, told)
}

fn answer(
    stream: TcpStream,
    bytes: &[u8],
    may: &Receiver<()>,
    tell: &Sender<String>,
) -> Option<()> {
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    while !request.ends_with("\r\n\r\n") {
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
    }
    let lower = request.to_ascii_lowercase();
    let _ = tell.send(request);
    let from = lower.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next());
    let from: usize = from.map_or(Some(0), |from| from.trim().parse().ok())?;
    let status = if from == 0 { "200 OK" } else { "206 Partial Content" };
    let all = bytes.len();
    let rest = bytes.get(from..)?;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"v1\"\r\nAccept-Ranges: bytes\r\n\
         Content-Range: bytes {from}-{}/{all}\r\nConnection: close\r\n\r\n",
        rest.len(),
        all - 1
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    if lower.starts_with("head ") {
        return Some(());
    }
    let (one, two) = rest.split_at(if from == 0 { rest.len() / 2 } else { 0 });
    stream.write_all(one).ok()?;
    if !one.is_empty() {
        may.recv().ok()?;
    }
    stream.write_all(two).ok()
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    let host = MachineHost::new();
    let image: Vec<u8> = (0..2_000_000_u32).flat_map(|n| (n / 7).to_be_bytes()).collect();
    let (go_on, asked) = slow_server(&host, image.clone());
    host.describe("one", Image::Small, "");
    let text = fs::read_to_string(host.home().join("one.yaml")).expect("a file");
    let url = "http://127.0.0.1:8000/small.raw";
    let text = text.replace("/run/machines/small.raw", url);
    fs::write(host.home().join("one.yaml"), text).expect("a file in the home");

    let mut start = host.command("exec setsid -w sh -c 'echo $$ >pid; exec vmlan start one.yaml'");
    let outcome = thread::scope(|scope| {
        let started = scope.spawn(|| capture(&mut start, PATIENT));
        asked.recv_timeout(SOON).expect("a request");
        host.until("[ $(du -s .cache | cut -f 1) -gt 3000 ]", SOON);
        host.run("kill -INT -$(cat pid)");
        started.join().expect("an end")
    });
    assert_eq!(outcome.status.code(), Some(130));
    says(&String::from_utf8_lossy(&outcome.stderr), &["interrupted", "is kept"]);
    nothing_is_made(&host, ".lima");
    let _ = go_on.send(());

    host.run("vmlan start one.yaml");
    let again = asked.iter().find(|request| request.starts_with("GET")).expect("a request");
    assert!(again.to_ascii_lowercase().contains("range: bytes="), "{again}");
    fs::write(host.home().join("whole"), image).expect("a file in the home");
    host.run("cmp .lima/one/basedisk whole");
}
