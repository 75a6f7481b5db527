use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use vmlan_wire::Offload;

use super::*;
use crate::stream::StreamLink;

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

fn exchange(capture: &Capture) -> (StreamLink, Captured<StreamLink>) {
    let (a, b) = UnixStream::pair().unwrap();
    let [mut plain, captured] = [a, b].map(|s| StreamLink::new(s.into()).unwrap());
    let mut captured = capture.wrap(captured, "guest one");
    let (request, answer) = (frame(60, 1), frame(61, 2));
    let pieces = OutFrame {
        head: &answer[..20],
        body: [&answer[20..33], &answer[33..]],
        offload: Offload::NONE,
    };
    plain.send(PeerId(0), &[OutFrame::whole(&request, Offload::NONE); 2]);
    plain.flush();
    let mut batch = FrameBatch::default();
    assert!(matches!(captured.recv(&mut batch), Recv::Frames { .. }));
    assert_eq!((batch.len(), captured.send(PeerId(0), &[pieces])), (2, 1));
    assert_eq!(captured.flush(), Flushed::Done);
    assert!(matches!(plain.recv(&mut batch), Recv::Frames { .. }));
    assert_eq!(batch.get(0).unwrap().data, answer);
    (plain, captured)
}

#[test]
fn tshark_reads_what_passed_several_links() {
    let dir = tempfile::tempdir().unwrap();
    let capture = Capture::create(&path(&dir)).unwrap();
    let (_plain, _captured) = exchange(&capture);
    let (_peer, other) = UnixStream::pair().unwrap();
    let mut other = capture.wrap(StreamLink::new(other.into()).unwrap(), "two");
    let big = frame(65_534, 3);
    assert_eq!(other.send(PeerId(0), &[OutFrame::whole(&big, Offload::NONE)]), 1);
    other.flush();
    // To tshark, what was received is 1 and what was sent 0.
    let expected = [
        "guest one 1 60 02:00:00:00:00:01",
        "guest one 1 60 02:00:00:00:00:01",
        "guest one 0 61 02:00:00:00:00:02",
        "two 0 65534 02:00:00:00:00:03",
    ];
    let bytes = std::fs::read(path(&dir)).unwrap();
    let kinds: Vec<_> = blocks(&bytes).iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET, PACKET, INTERFACE, PACKET]);
    assert_eq!(tshark(&path(&dir)), expected);
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_link() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let capture = Capture { writer: Arc::new(Mutex::new(Writer::new(full))) };
    let (_plain, _captured) = exchange(&capture);
    assert!(capture.take_failure().is_some());
    assert!(capture.take_failure().is_none());
    assert_eq!(capture.writer().pending.capacity(), 0);
}

#[test]
fn a_pipe_without_a_reader_is_refused_and_a_slow_one_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(Capture::create(&fifo).is_err());
    let mut reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let capture = Capture::create(&fifo).unwrap();
    let data = frame(60_000, 1);
    let sent = 200;
    for _ in 0..sent {
        capture.writer().frame(0, 0, Direction::Out, [&data, &[], &[]]);
    }
    assert!(capture.left_out() > 0);
    // What is read in the end is a file in good form, all the same.
    let mut got = Vec::new();
    let mut buf = vec![0; 65536];
    while !capture.writer().pending.is_empty() {
        let n = reader.read(&mut buf).unwrap();
        got.extend_from_slice(&buf[..n]);
        capture.writer().push();
    }
    drop(capture);
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    while let Ok(n) = reader.read(&mut buf) {
        got.extend_from_slice(&buf[..n]);
    }
    let packets = blocks(&got).iter().filter(|(kind, _)| *kind == PACKET).count();
    assert!(packets > 0 && packets < sent, "{packets}");
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Capture::create(&dir.path().join("none/file")).is_err());
    assert!(Capture::create(Path::new("/dev/full")).is_err());
}
