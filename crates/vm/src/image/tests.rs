use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::server::{Answer, Server};
use super::*;

/// A body that is not the same anywhere.
fn body(len: usize, salt: u32) -> Vec<u8> {
    let mut state = 2 * salt + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

struct Fixture {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("cache"));
        Self { dir, cache }
    }

    /// What [`id`] is of the file at `location`.
    fn fetch(&self, location: &str, digest: Option<Digest>) -> Result<String, ImageError> {
        let remote = Remote { location: location.into(), digest };
        let path = self.cache.fetch(&remote, &mut |_| ())?;
        Ok(id(&fs::read(path).unwrap()))
    }

    /// What is in the cache apart from locks, by the ends of the names.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path().join("cache")).unwrap();
        let mut names: Vec<_> = names
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .map(|name| match name.split_once('.') {
                Some((_, end)) => end.to_owned(),
                None => name.split('-').next().unwrap().to_owned(),
            })
            .filter(|end| end != "lock")
            .collect();
        names.sort();
        names
    }
}

/// Short, where an assertion shows it.
fn id(bytes: &[u8]) -> String {
    format!("{} bytes, {}", bytes.len(), sha256(bytes))
}

fn sha256(bytes: &[u8]) -> Digest {
    digest_of(bytes, "sha256:").map(Digest::Sha256).unwrap()
}

fn digest_of(bytes: &[u8], kind: &str) -> Option<String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let digests = store::digests(file.path()).unwrap();
    digests.iter().find_map(|digest| digest.strip_prefix(kind)).map(Into::into)
}

#[test]
fn a_file_is_loaded_once_and_asked_about_afterwards() {
    let fixture = Fixture::new();
    let content = body(300_000, 1);
    let server = Server::start("disk.qcow2", vec![Answer::of(&content)]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&content));
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&content));
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].if_none_match.as_deref(), Some("\"one\""));
    // With a digest there is nothing to ask.
    assert_eq!(fixture.fetch(&server.url, Some(sha256(&content))).unwrap(), id(&content));
    let sha512 = digest_of(&content, "sha512:").map(Digest::Sha512);
    assert_eq!(fixture.fetch(&server.url, sha512).unwrap(), id(&content));
    assert_eq!(server.requests(), Vec::new());
    assert_eq!(fixture.files(), ["json", "sha256"]);

    // A file in the cache is nobody's to write, and its directory nobody else's to read.
    let path = fixture
        .cache
        .fetch(&Remote { location: server.url.clone(), digest: None }, &mut |_| ())
        .unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    let dir = path.parent().unwrap().metadata().unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_changed_file_takes_the_place_of_the_old_one() {
    let fixture = Fixture::new();
    let (old, new) = (body(5000, 1), body(6000, 2));
    let server = Server::start("disk", vec![Answer::of(&old)]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&old));
    server.answer(vec![Answer { etag: Some("\"two\""), ..Answer::of(&new) }]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&new));
    assert_eq!(fixture.files(), ["json", "sha256"]);
    let url = server.url.clone();
    drop(server);
    // Nobody to be asked.
    assert_eq!(fixture.fetch(&url, None).unwrap(), id(&new));
}

#[test]
fn a_connection_that_ends_is_taken_up_where_it_ended() {
    let fixture = Fixture::new();
    let content = body(500_000, 3);
    for (digest, chunked) in [(None, false), (Some(sha256(&content)), false), (None, true)] {
        let whole = Answer { chunked, ..Answer::of(&content) };
        let cut = |n| Answer { cut: Some(n), ..whole.clone() };
        let server = Server::start("disk", vec![cut(100_000), cut(150_000), cut(0), whole]);
        let mut said = Vec::new();
        let remote = Remote { location: server.url.clone(), digest };
        let path = fixture.cache.fetch(&remote, &mut |progress| said.push(progress)).unwrap();
        assert_eq!(id(&fs::read(path).unwrap()), id(&content));
        let from: Vec<_> = server.requests().iter().map(|request| request.range).collect();
        assert_eq!(from, [None, Some(100_000), Some(250_000), Some(250_000)]);
        assert!(said.is_sorted_by_key(|progress| progress.done));
        assert_eq!(said.last(), Some(&Progress { done: 500_000, total: Some(500_000) }));
    }
}

#[test]
fn what_an_ended_download_left_is_used_by_the_next() {
    let fixture = Fixture::new();
    let content = body(50_000, 4);
    let cut = |n| Answer { cut: Some(n), ..Answer::of(&content) };
    let server = Server::start("disk", vec![cut(20_000), cut(0)]);
    let error = fixture.fetch(&server.url, None).unwrap_err();
    assert!(matches!(error, ImageError::Cut { done: 20_000, .. }), "{error}");
    assert_eq!(fixture.files(), ["part", "part.validator"]);
    server.requests();
    server.answer(vec![Answer::of(&content)]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&content));
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (requests[0].range, requests[0].if_range.as_deref()),
        (Some(20_000), Some("\"one\""))
    );
    assert_eq!(fixture.files(), ["json", "sha256"]);
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let fixture = Fixture::new();
    let content = body(50_000, 5);
    let whole = Answer { ranges: false, ..Answer::of(&content) };
    let cut = Answer { cut: Some(20_000), ..whole.clone() };
    let server = Server::start("disk", vec![cut, whole]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&content));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_file_that_changes_meanwhile_is_not_made_of_two() {
    let fixture = Fixture::new();
    let (old, new) = (body(50_000, 6), body(60_000, 7));
    let cut = |n| Answer { cut: Some(n), ..Answer::of(&old) };
    let changed = Answer { etag: Some("\"two\""), ..Answer::of(&new) };
    let server = Server::start("disk", vec![cut(20_000), changed.clone()]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&new));

    // No telling versions apart: nothing is taken up.
    let untold = |answer| Answer { etag: None, ..answer };
    let server = Server::start("disk", vec![untold(cut(20_000)), untold(changed.clone())]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&new));
    assert!(server.requests().iter().all(|request| request.range.is_none()));

    // By the digest it comes out, and then all of it is loaded.
    let server = Server::start("disk", vec![untold(cut(20_000)), untold(changed.clone())]);
    assert_eq!(fixture.fetch(&server.url, Some(sha256(&new))).unwrap(), id(&new));
    let from: Vec<_> = server.requests().iter().map(|request| request.range).collect();
    assert_eq!(from, [None, Some(20_000), None]);

    // A server that ignores the condition and sends the end of another file.
    let ignoring = Answer { cut: Some(5), ..changed };
    let server = Server::start("disk", vec![cut(20_000), ignoring, Answer::of(&old)]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&old));
}

#[test]
fn a_damaged_file_is_refused_and_not_kept() {
    let fixture = Fixture::new();
    let (wanted, sent) = (body(5000, 8), body(5000, 9));
    let server = Server::start("disk", vec![Answer::of(&sent)]);
    let error = fixture.fetch(&server.url, Some(sha256(&wanted))).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&sha256(&wanted).to_string()) && text.contains(&sha256(&sent).to_string())
    );
    assert_eq!(fixture.files(), Vec::<String>::new());
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_file_that_was_damaged_in_the_cache_is_loaded_again() {
    let fixture = Fixture::new();
    let content = body(5000, 10);
    let server = Server::start("disk", vec![Answer::of(&content)]);
    let remote = Remote { location: server.url.clone(), digest: Some(sha256(&content)) };
    let path = fixture.cache.fetch(&remote, &mut |_| ()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, &content[..4000]).unwrap();
    assert_eq!(fixture.fetch(&server.url, remote.digest).unwrap(), id(&content));
}

#[test]
fn answers_that_are_no_file() {
    let fixture = Fixture::new();
    let status = |status| Answer { status: Some(status), ..Answer::of(&[]) };
    let content = body(10, 11);
    let server = Server::start("disk", vec![status(404)]);
    let error = fixture.fetch(&server.url, None).unwrap_err();
    assert!(matches!(error, ImageError::Status { status: 404, .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
    server.answer(vec![status(503), Answer::of(&content)]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&content));

    let elsewhere = Answer { location: Some(server.url.clone()), ..status(302) };
    let other = Server::start("moved", vec![elsewhere]);
    assert_eq!(fixture.fetch(&other.url, None).unwrap(), id(&content));

    let url = server.url.replace("disk", "other");
    drop(server);
    let error = fixture.fetch(&url, None).unwrap_err();
    assert!(matches!(error, ImageError::Connect { .. }), "{error}");
}

#[test]
fn a_full_disk_says_so_and_is_left_as_it_was() {
    let fixture = Fixture::new();
    let server = Server::start("disk", vec![Answer::of(&body(5000, 12))]);
    let entry = Entry::lock(&fixture.cache.dir, &server.url, &mut |_| ()).unwrap();
    // A part that is there, and cannot grow.
    let part = entry.part();
    drop(entry);
    symlink("/dev/full", &part).unwrap();
    fs::write(part.with_extension("part.validator"), "\"one\"").unwrap();
    let full = File::options().append(true).open(&part).unwrap();
    let error = written((&full).write_all(b"x"), &part, &full, "here").unwrap_err();
    assert!(matches!(error, ImageError::Full { .. }), "{error}");
    assert!(error.to_string().contains("Make room"));
    assert!(!part.exists() && !part.is_symlink());
}

#[test]
fn two_at_once_load_it_once() {
    let fixture = Fixture::new();
    let content = body(3_000_000, 13);
    let server = Server::start("disk", vec![Answer::of(&content)]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(&content)));
        }
    });
    let loaded = server.requests().iter().filter(|request| request.line.starts_with("GET")).count();
    assert_eq!(loaded, 1);
}

#[test]
fn packed_files_are_unpacked_with_holes() {
    let fixture = Fixture::new();
    let mut content = vec![0; 20 << 20];
    content[..100_000].copy_from_slice(&body(100_000, 14));
    content[10 << 20..][..70_001].copy_from_slice(&body(70_001, 15));
    for (end, command) in [("gz", "gzip -1"), ("xz", "xz -0"), ("zst", "zstd -1")] {
        let packed = pack(command, &content);
        let server = Server::start(&format!("disk.raw.{end}?x=.y"), vec![Answer::of(&packed)]);
        let remote = Remote { location: server.url.clone(), digest: Some(sha256(&packed)) };
        let path = fixture.cache.fetch(&remote, &mut |_| ()).unwrap();
        assert!(fs::read(&path).unwrap() == content, "{end}");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap());
        assert!(blocks * 512 < 1 << 20, "{blocks}");
        fixture.cache.fetch(&remote, &mut |_| ()).unwrap();
        assert_eq!(server.requests().len(), 1);

        // Not all of it, and one byte wrong.
        for (i, damaged) in [&packed[..packed.len() - 3], &flipped(&packed)].into_iter().enumerate()
        {
            let server = Server::start(&format!("{i}.{end}"), vec![Answer::of(damaged)]);
            let error = fixture.fetch(&server.url, None).err();
            assert!(matches!(error, Some(ImageError::Unpack { .. })), "{i} {end}: {error:?}");
        }
        assert_eq!(fixture.files().last().map(String::as_str), Some("sha256"));
        assert!(!fixture.files().iter().any(|file| file == "part" || file == "unpacked"));
    }
    // Several frames one after the other.
    let two = [pack("zstd", b"one "), pack("zstd", b"two")].concat();
    let server = Server::start("two.zst", vec![Answer::of(&two)]);
    assert_eq!(fixture.fetch(&server.url, None).unwrap(), id(b"one two"));
}

fn flipped(packed: &[u8]) -> Vec<u8> {
    let mut damaged = packed.to_vec();
    damaged[packed.len() / 4] ^= 0x10;
    damaged
}

fn pack(command: &str, content: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("{command} -c")])
        .stdin(Stdio::from(file))
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}");
    output.stdout
}

#[test]
fn a_file_of_this_machine_is_used_where_it_is() {
    let fixture = Fixture::new();
    let file = fixture.dir.path().join("my disk.img");
    fs::write(&file, b"disk").unwrap();
    for location in [file.display().to_string(), format!("file://{}", file.display())] {
        let remote = Remote { location, digest: Some(sha256(b"disk")) };
        let path = fixture.cache.fetch(&remote, &mut |_| ()).unwrap();
        assert_eq!(path, file.canonicalize().unwrap());
        let error = fixture.fetch(&remote.location, Some(sha256(b"other"))).unwrap_err();
        assert!(matches!(error, ImageError::Digest { .. }), "{error}");
    }
    let packed = fixture.dir.path().join("disk.gz");
    fs::write(&packed, pack("gzip", b"disk")).unwrap();
    assert_eq!(fixture.fetch(packed.to_str().unwrap(), None).unwrap(), id(b"disk"));
    fs::write(&packed, pack("gzip", b"another")).unwrap();
    assert_eq!(fixture.fetch(packed.to_str().unwrap(), None).unwrap(), id(b"another"));

    for wrong in ["", "ftp://x/y", "file://relative", "http://"] {
        let error = fixture.fetch(wrong, None).unwrap_err();
        assert!(matches!(error, ImageError::Location(_)), "{wrong}: {error}");
    }
    for missing in ["/nonexistent/disk", "/"] {
        let error = fixture.fetch(missing, None).unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "{missing}: {error}");
    }
}

#[test]
fn a_text_is_bounded() {
    let server = Server::start("x.yaml", vec![Answer::of(b"cpus: 2\n")]);
    assert_eq!(fetch_text(&server.url, 8).unwrap(), "cpus: 2\n");
    let error = fetch_text(&server.url, 7).unwrap_err();
    assert!(matches!(error, ImageError::Text { limit: 7, .. }), "{error}");
    server.answer(vec![Answer::of(b"\xff\xfe")]);
    assert!(matches!(fetch_text(&server.url, 9).unwrap_err(), ImageError::Text { .. }));
    server.answer(vec![Answer { status: Some(404), ..Answer::of(b"") }]);
    assert!(matches!(fetch_text(&server.url, 9).unwrap_err(), ImageError::Status { .. }));
    assert!(is_url(&server.url) && !is_url("x.yaml") && !is_url("/x.yaml"));
}

#[test]
fn caches_are_where_the_platform_has_them() {
    let of = |pairs: &'static [(&str, &str)]| {
        Cache::place(move |name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, path)| path.into())
        })
    };
    assert_eq!(of(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), Some("/c/vmlan/images".into()));
    assert_eq!(of(&[("XDG_CACHE_HOME", "relative")]), None);
    #[cfg(target_os = "linux")]
    assert_eq!(of(&[("HOME", "/h")]), Some("/h/.cache/vmlan/images".into()));
}
