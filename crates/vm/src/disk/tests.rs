use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

#[test]
fn an_overlay_is_as_large_as_asked_for_and_names_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(&dir, 1 << 20);
    for size in [0, 1 << 20, 3 << 30, 100 << 30, 5 << 40] {
        let disk = dir.path().join(format!("{size}.qcow2"));
        overlay(&disk, &base, Format::Raw, size).unwrap();
        assert_eq!(format_of(&disk).unwrap(), Format::Qcow2);
        let head = Head::read(&disk).unwrap();
        assert_eq!(head.u64(24), size.max(1 << 20));
        let bytes = fs::read(&disk).unwrap();
        let at = usize::try_from(head.u64(8)).unwrap();
        let len = usize::try_from(head.u32(16)).unwrap();
        assert_eq!(&bytes[at..at + len], base.canonicalize().unwrap().as_os_str().as_bytes());
    }
}

#[test]
fn an_overlay_replaces_no_file_and_leaves_none_behind() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(&dir, 1 << 20);
    let disk = dir.path().join("disk");
    let none = overlay(&disk, &dir.path().join("missing"), Format::Raw, 0).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert_eq!(
        overlay(&disk, &base, Format::Raw, 1 << 60).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(!disk.exists());
    fs::write(&disk, "precious").unwrap();
    assert_eq!(overlay(&disk, &base, Format::Raw, 0).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&disk).unwrap(), b"precious");
}

#[test]
fn an_image_that_names_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(&dir, 1 << 20);
    let disk = dir.path().join("disk");
    overlay(&disk, &base, Format::Raw, 0).unwrap();
    let error = overlay(&dir.path().join("second"), &disk, Format::Qcow2, 0).unwrap_err();
    assert!(error.to_string().contains("names another file"), "{error}");

    let mut bytes = fs::read(&disk).unwrap();
    bytes[8..20].fill(0);
    fs::write(&disk, &bytes).unwrap();
    assert_eq!(size_of(&disk, Format::Qcow2).unwrap(), 1 << 20);
    bytes[79] = 4;
    fs::write(&disk, &bytes).unwrap();
    let error = size_of(&disk, Format::Qcow2).unwrap_err();
    assert!(error.to_string().contains("names another file"), "{error}");
    fs::write(&disk, &bytes[..30]).unwrap();
    let error = size_of(&disk, Format::Qcow2).unwrap_err();
    assert!(error.to_string().contains("not a whole"), "{error}");
}

#[test]
fn what_boots_nothing_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for (head, name) in OTHERS {
        fs::write(&file, head).unwrap();
        assert!(format_of(&file).unwrap_err().to_string().contains(name));
    }
    fs::write(&file, []).unwrap();
    assert_eq!(format_of(&file).unwrap(), Format::Raw);
}

/// What QEMU itself makes of a disk: the size, the base and its format.
#[test]
fn qemu_takes_an_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(&dir, 3 << 20);
    let disk = dir.path().join("disk");
    overlay(&disk, &base, Format::Raw, 600 << 30).unwrap();
    let mut qemu = Qemu::start(&dir.path().join("qmp"), &disk, "qcow2");
    let block = qemu.ask(&json!({"execute": "query-block"}));
    let image = &block[0]["inserted"]["image"];
    assert_eq!(image["format"], "qcow2");
    assert_eq!(image["virtual-size"], 600_u64 << 30);
    assert_eq!(image["cluster-size"], CLUSTER);
    assert_eq!(image["backing-image"]["format"], "raw");
    assert_eq!(image["backing-image"]["virtual-size"], 3 << 20);
    // Read through to the base, written here, and kept.
    let io = |line: &str| {
        json!({"execute": "human-monitor-command",
               "arguments": {"command-line": format!("qemu-io disk \"{line}\"")}})
    };
    for line in ["read -P 0x5a 1M 64k", "read -P 0 4M 64k", "write -P 0x33 599G 1M", "flush"] {
        let said = qemu.ask(&io(line)).as_str().unwrap().to_owned();
        assert!(!said.contains("rror") && !said.contains("failed"), "{line}: {said}");
    }
    qemu.ask(&json!({"execute": "quit"}));
    qemu.ended();
    let mut again = Qemu::start(&dir.path().join("qmp2"), &disk, "qcow2");
    let said = again.ask(&io("read -P 0x33 599G 1M")).as_str().unwrap().to_owned();
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(fs::metadata(&base).unwrap().len(), 3 << 20);
}

/// A disk that is in use already, at sizes with the same and with a longer table.
#[test]
fn a_disk_grows_and_keeps_what_is_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(&dir, 1 << 20);
    let disk = dir.path().join("disk");
    overlay(&disk, &base, Format::Raw, 10 << 20).unwrap();
    let mut head = Head::read(&disk).unwrap();
    assert_eq!(head.u32(36), 1);
    const M: u64 = 1 << 20;
    let steps =
        [(10 * M, 10 * M), (5 * M, 10 * M), (20 * M, 20 * M), (2_048_000 * M, 2_048_000 * M)];
    for (i, (size, is)) in steps.into_iter().enumerate() {
        grow(&disk, size).unwrap();
        let mut qemu = Qemu::start(&dir.path().join(format!("qmp{i}")), &disk, "qcow2");
        let block = qemu.ask(&json!({"execute": "query-block"}));
        assert_eq!(block[0]["inserted"]["image"]["virtual-size"], is);
        let mut lines =
            vec!["read -P 0x5a 0 1M".to_owned(), format!("read -P 0 {} 64k", is - 65536)];
        if i > 0 {
            lines.push("read -P 0x33 8M 1M".into());
        }
        lines.push("write -P 0x33 8M 1M".into());
        lines.push("flush".into());
        for line in lines {
            let command = format!("qemu-io disk \"{line}\"");
            let said = qemu.ask(&json!({
                "execute": "human-monitor-command", "arguments": {"command-line": command}
            }));
            let said = said.as_str().unwrap().to_owned();
            assert!(!said.contains("rror") && !said.contains("failed"), "{line}: {said}");
        }
        qemu.ask(&json!({"execute": "quit"}));
        qemu.ended();
    }
    head = Head::read(&disk).unwrap();
    assert_eq!(head.u32(36), 4000);
    let error = grow(&disk, 1 << 50).unwrap_err();
    assert!(error.to_string().contains("4096 GiB"), "{error}");
    // And one without a format.
    for (size, is) in [(3 << 20, 3 << 20), (2 << 20, 3 << 20)] {
        grow(&base, size).unwrap();
        assert_eq!(base.metadata().unwrap().len(), is);
    }
}

fn raw(dir: &tempfile::TempDir, len: usize) -> PathBuf {
    let path = dir.path().join("base.img");
    fs::write(&path, vec![0x5a; len]).unwrap();
    path
}

/// A QEMU that never runs its machine, only looks at a disk.
struct Qemu {
    child: Child,
    answers: BufReader<UnixStream>,
}

impl Qemu {
    fn start(socket: &Path, disk: &Path, format: &str) -> Self {
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-S",
                "-M",
                "q35,accel=tcg",
            ])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-drive")
            .arg(format!("id=disk,if=none,format={format},file={}", disk.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut qemu = Self { child, answers: BufReader::new(stream) };
        qemu.ask(&json!({"execute": "qmp_capabilities"}));
        qemu
    }

    fn ask(&mut self, question: &Value) -> Value {
        self.answers.get_mut().write_all(question.to_string().as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "QEMU has ended");
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{question}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    /// Makes an image, and opens it as `image`.
    fn create(&mut self, image: &Path, size: u64, compression: &str) {
        fs::write(image, "").unwrap();
        self.ask(&json!({"execute": "blockdev-add", "arguments": {
            "driver": "file", "node-name": "file", "filename": image
        }}));
        self.ask(&json!({"execute": "blockdev-create", "arguments": {"job-id": "create",
            "options": {"driver": "qcow2", "file": "file", "size": size,
                        "compression-type": compression}}}));
        loop {
            let jobs = self.ask(&json!({"execute": "query-jobs"}));
            assert_eq!(jobs[0].get("error"), None, "{jobs}");
            if jobs[0]["status"] == "concluded" {
                break;
            }
        }
        self.ask(&json!({"execute": "blockdev-add", "arguments": {
            "driver": "qcow2", "node-name": "image", "file": "file"
        }}));
    }

    fn io(&mut self, node: &str, line: &str) {
        let line = format!("qemu-io {node} \"{line}\"");
        let said = self.ask(&json!({
            "execute": "human-monitor-command", "arguments": {"command-line": line}
        }));
        let said = said.as_str().unwrap();
        assert!(!said.contains("rror") && !said.contains("ailed"), "{line}: {said}");
    }

    fn ended(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A disk that QEMU has written to, compressed data and its reference counts included.
#[test]
fn an_image_that_is_cut_off_is_told_from_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(&dir, 3 << 20);
    assert_eq!(check(&base).unwrap(), 3 << 20);
    let image = dir.path().join("image");
    overlay(&image, &base, Format::Raw, 2 << 30).unwrap();
    let mut whole = fs::read(&image).unwrap();
    whole[8..20].fill(0);
    fs::write(&image, &whole).unwrap();
    assert_eq!(check(&image).unwrap(), 2 << 30);
    let mut qemu = Qemu::start(&dir.path().join("qmp"), &image, "qcow2");
    for line in ["write -P 1 0 1M", "write -c -P 2 4M 64k", "write -P 3 1G 1M", "flush"] {
        let line = format!("qemu-io disk \"{line}\"");
        let said = qemu.ask(&json!({
            "execute": "human-monitor-command", "arguments": {"command-line": line}
        }));
        assert!(!said.as_str().unwrap().contains("ailed"), "{said}");
    }
    qemu.ask(&json!({"execute": "quit"}));
    qemu.ended();
    assert_eq!(check(&image).unwrap(), 2 << 30);

    let whole = fs::read(&image).unwrap();
    assert!(whole.len() > 2 << 20);
    for len in [8, 71, 104, 70_000, whole.len() / 2, whole.len() - CLUSTER] {
        fs::write(&image, &whole[..len]).unwrap();
        let error = check(&image).unwrap_err().to_string();
        assert!(error.contains("whole") || error.contains("cut off"), "{len}: {error}");
    }
    // Numbers that lead nowhere.
    for at in [4, 20, 36, 40, 48, 56] {
        let mut wrong = whole.clone();
        wrong[at..at + 4].fill(0xfe);
        fs::write(&image, wrong).unwrap();
        assert!(check(&image).is_err(), "{at}");
    }
    fs::write(&image, "").unwrap();
    assert!(check(&image).unwrap_err().to_string().contains("empty"));
}

/// A disk that QEMU has written to in every way.
#[test]
fn a_qcow2_image_becomes_the_disk_that_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
    for compression in ["zlib", "zstd"] {
        let mut qemu = Qemu::start(&dir.path().join(compression), &raw(&dir, 1 << 20), "raw");
        // The last cluster is half one.
        let size = (1_u64 << 30) + 4096;
        qemu.create(&image, size, compression);
        for line in [
            "write -P 1 0 1M",
            "write -c -P 2 4M 64k",
            "write -c -P 3 900M 64k",
            "write -z 64k 64k",
            "write -P 4 1G 4k",
            "flush",
        ] {
            qemu.io("image", line);
        }
        qemu.ask(&json!({"execute": "quit"}));
        qemu.ended();

        super::raw(&disk, &image, 0).unwrap();
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0xee; len];
            let file = File::open(&disk).unwrap();
            file.read_exact_at(&mut bytes, at).unwrap();
            let first = bytes[0];
            assert!(bytes.iter().all(|byte| *byte == first), "{at}");
            first
        };
        const K: u64 = 1 << 10;
        assert_eq!(fs::metadata(&disk).unwrap().len(), size);
        let there = [0, 64 * K, 128 * K, 4 << 20, 900 << 20].map(|at| bytes(at, 64 << 10));
        assert_eq!(there, [1, 0, 1, 2, 3]);
        assert_eq!((bytes(1 << 30, 4096), bytes(500 << 20, 1 << 20)), (4, 0));
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk).unwrap());
        assert!(blocks * 512 < 4 << 20, "{blocks} blocks: zeros are holes");
        super::raw(&disk, &image, 2 << 30).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 2 << 30);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn an_image_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
    overlay(&image, &raw(&dir, 1 << 20), Format::Raw, 0).unwrap();
    let mut whole = fs::read(&image).unwrap();
    whole[8..20].fill(0);
    for (at, value, part) in [(35, 1, "encrypted"), (79, 0x10, "0x10"), (79, 2, "0x2")] {
        let mut wrong = whole.clone();
        wrong[at] = value;
        fs::write(&image, wrong).unwrap();
        let error = super::raw(&disk, &image, 0).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    fs::write(&image, whole).unwrap();
    super::raw(&disk, &image, 0).unwrap();
}
