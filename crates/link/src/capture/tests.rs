use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use vmlan_wire::Offload;

use super::*;

fn frame(len: usize, first: u8) -> Vec<u8> {
    let mut data = vec![0x5a; len];
    data[..14].copy_from_slice(&[2, 0, 0, 0, 0, first, 2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    data
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("capture.pcapng")
}

/// What a reader of the file sees: interface, direction, length, destination.
fn tshark(path: &Path) -> Vec<String> {
    let fields = ["frame.interface_name", "frame.p2p_dir", "frame.len", "eth.dst"];
    let mut command = Command::new("tshark");
    command.args(["-r".as_ref(), path.as_os_str()]).args(["-T", "fields", "-E", "separator=/s"]);
    let out = command.args(fields.iter().flat_map(|f| ["-e", f])).output().expect("tshark runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The blocks of a file, checked for their form, as type and body.
fn blocks(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = 0;
    let mut blocks = Vec::new();
    while at < bytes.len() {
        let len = word(at + 4) as usize;
        assert!(len.is_multiple_of(4) && len >= 12, "length {len} at {at}");
        assert_eq!(word(at + len - 4) as usize, len);
        blocks.push((word(at), bytes[at + 8..at + len - 4].to_vec()));
        at += len;
    }
    blocks
}

fn batch(frames: &[Vec<u8>]) -> FrameBatch {
    let mut batch = FrameBatch::default();
    for frame in frames {
        batch.push_copy(frame, Offload::NONE);
    }
    batch
}

fn send(capture: &mut Capture, interface: Interface, frame: &[u8]) {
    capture.sent(interface, [OutFrame::whole(frame, Offload::NONE)].iter());
}

#[test]
fn tshark_reads_what_passed_several_guests() {
    let dir = tempfile::tempdir().unwrap();
    let mut capture = Capture::create(&path(&dir)).unwrap();
    let one = capture.interface("guest one").unwrap();
    capture.received(one, &batch(&[frame(60, 1), frame(62, 1)]));
    let answer = frame(61, 2);
    let body = [&answer[20..33], &answer[33..]];
    let pieces = OutFrame { head: &answer[..20], body, offload: Offload::NONE };
    capture.sent(one, [pieces].iter());
    let two = capture.interface("two").unwrap();
    send(&mut capture, two, &frame(65_534, 3));
    assert!(capture.push());
    assert_eq!(capture.counts(one), Counts { captured: 3, left_out: 0 });
    // To tshark, what was received is 1 and what was sent 0.
    let expected = [
        "guest one 1 60 02:00:00:00:00:01",
        "guest one 1 62 02:00:00:00:00:01",
        "guest one 0 61 02:00:00:00:00:02",
        "two 0 65534 02:00:00:00:00:03",
    ];
    assert_eq!(tshark(&path(&dir)), expected, "while it goes on");
    drop(capture);
    assert_eq!(tshark(&path(&dir)), expected);
    let bytes = std::fs::read(path(&dir)).unwrap();
    let kinds: Vec<_> = blocks(&bytes).iter().map(|(kind, _)| *kind).collect();
    let head = [SECTION, INTERFACE, PACKET, PACKET, PACKET, INTERFACE, PACKET];
    assert_eq!(kinds, [&head[..], &[STATISTICS, STATISTICS]].concat());
}

#[test]
fn a_full_disk_ends_the_capture() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut capture = Capture::new(full, &[]);
    let one = capture.interface("one").unwrap();
    send(&mut capture, one, &frame(60, 1));
    assert!(!capture.has_failed());
    capture.push();
    assert!(capture.has_failed());
    assert!(capture.take_failure().is_some());
    assert!(capture.take_failure().is_none());
    send(&mut capture, one, &frame(60, 1));
    assert_eq!(capture.pending.capacity(), 0);
}

#[test]
fn a_pipe_without_a_reader_is_refused_and_a_slow_one_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(Capture::create(&fifo).is_err());
    let mut reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let mut capture = Capture::create(&fifo).unwrap();
    let one = capture.interface("one").unwrap();
    let data = frame(60_000, 1);
    let sent = 200;
    for _ in 0..sent {
        send(&mut capture, one, &data);
        assert!(capture.pending.len() <= PENDING_MAX + 1024);
    }
    let Counts { captured, left_out } = capture.counts(one);
    assert!(captured > 0 && left_out > 0 && captured + left_out == sent);
    while capture.interface("another").is_some() {}
    assert!(capture.pending.len() <= PENDING_MAX + 1024);
    // What is read in the end is a file in good form, all the same, and says what is missing.
    let mut got = Vec::new();
    let mut buf = vec![0; 65536];
    while !capture.push() {
        let n = reader.read(&mut buf).unwrap();
        got.extend_from_slice(&buf[..n]);
    }
    drop(capture);
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    while let Ok(n) = reader.read(&mut buf) {
        got.extend_from_slice(&buf[..n]);
    }
    let blocks = blocks(&got);
    let packets = blocks.iter().filter(|(kind, _)| *kind == PACKET).count();
    assert_eq!(packets as u64, captured);
    let (_, statistics) = blocks.iter().find(|(kind, _)| *kind == STATISTICS).unwrap();
    let count = |at: usize| u64::from_ne_bytes(statistics[at..at + 8].try_into().unwrap());
    assert_eq!((count(16), count(28)), (sent, left_out));
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Capture::create(&dir.path().join("none/file")).is_err());
    assert!(Capture::create(Path::new("/dev/full")).is_err());
}
