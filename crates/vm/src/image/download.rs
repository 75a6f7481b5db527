//! Loads a file over HTTP, however often the connection ends: each time from where it ended, if the
//! server lets it and the file is the same still (RFC 9110, 13 and 14).

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::store::Entry;
use super::{ImageError, Progress, written};

/// A file that is there.
pub(super) struct Loaded {
    /// What the server tells versions of the file apart by.
    pub(super) validator: Option<String>,
    /// Whether it has come in several parts.
    pub(super) joined: bool,
}

/// Loads `url` to the part of `entry`. With a digest that is `known`, parts from servers that tell
/// versions apart in different ways are put together.
pub(super) fn load(
    url: &str,
    entry: &Entry,
    known: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded, ImageError> {
    let agent = agent();
    let (mut tries, mut most) = (0, 0);
    loop {
        let error = match attempt(&agent, url, entry, known, progress) {
            Ok(loaded) => return Ok(loaded),
            Err(End::Final(error)) => return Err(error),
            Err(End::Again(error)) => error,
        };
        let len = part_len(&entry.part());
        tries = if len > most { 1 } else { tries + 1 };
        most = most.max(len);
        if tries > TRIES || most == 0 && matches!(error, ImageError::Connect { .. }) {
            return Err(match error {
                ImageError::Connect { url, source } if len > 0 => {
                    ImageError::Cut { url, done: len, source: io::Error::other(source) }
                }
                error => error,
            });
        }
        std::thread::sleep(PAUSE * (1 << tries));
    }
}

/// Whether the file at `url` is another than that with this validator. A server that does not
/// answer says nothing.
pub(super) fn has_changed(url: &str, validator: Option<&str>) -> bool {
    let Some(validator) = validator else { return true };
    let name = if validator.contains('"') { "If-None-Match" } else { "If-Modified-Since" };
    let answer = agent().head(url).header(name, validator).call();
    answer.is_ok_and(|answer| {
        answer.status().is_success() && validator_of(answer.headers()).as_deref() != Some(validator)
    })
}

/// A text of at most `limit` bytes.
pub(super) fn text(url: &str, limit: u64) -> Result<String, ImageError> {
    let connect = |source| ImageError::Connect { url: url.into(), source: Box::new(source) };
    let mut answer = agent().get(url).call().map_err(connect)?;
    let status = answer.status();
    if !status.is_success() {
        return Err(ImageError::Status { url: url.into(), status: status.as_u16() });
    }
    let mut bytes = Vec::new();
    let body = answer.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes);
    body.map_err(|source| ImageError::Cut { url: url.into(), done: 0, source })?;
    let fits = u64::try_from(bytes.len()).is_ok_and(|len| len <= limit);
    let text = String::from_utf8(bytes).ok().filter(|_| fits);
    text.ok_or_else(|| ImageError::Text { url: url.into(), limit })
}

/// How an attempt ended that did not bring the file.
enum End {
    /// Another one may bring it.
    Again(ImageError),
    Final(ImageError),
}

fn attempt(
    agent: &Agent,
    url: &str,
    entry: &Entry,
    known: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded, End> {
    let part = entry.part();
    let before = entry.part_validator();
    let mut have = if known || before.is_some() { part_len(&part) } else { 0 };
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
        if let Some(before) = before.as_ref().filter(|_| !known) {
            request = request.header("If-Range", before);
        }
    }
    let mut answer = request.call().map_err(|source| {
        End::Again(ImageError::Connect { url: url.into(), source: Box::new(source) })
    })?;
    let validator = validator_of(answer.headers());
    let range =
        answer.headers().get("content-range").and_then(|value| Range::parse(value.to_str().ok()?));
    match (answer.status().as_u16(), range) {
        (206, Some(range))
            if have > 0 && range.from == Some(have) && (known || validator == before) => {}
        (416, Some(range)) if have > 0 && range.total == Some(have) => {
            return Ok(Loaded { validator: before, joined: true });
        }
        (206 | 416, _) if have > 0 => {
            // Another file than the one of which there is a part.
            entry.forget_part();
            let source = io::Error::other("the file has changed meanwhile");
            return Err(End::Again(ImageError::Cut { url: url.into(), done: have, source }));
        }
        (200, _) => {
            have = 0;
            entry.begin_part(validator.as_deref()).map_err(End::Final)?;
        }
        (status, _) => {
            let error = ImageError::Status { url: url.into(), status };
            let passing = matches!(status, 408 | 429 | 500..);
            return Err(if passing { End::Again(error) } else { End::Final(error) });
        }
    }
    let total = range.and_then(|range| range.total);
    let total = total.or_else(|| length(&answer).map(|len| have + len));
    append(&mut answer, &part, url, have, total, progress)?;
    Ok(Loaded { validator, joined: have > 0 })
}

/// Writes the rest of a file to what there is of it.
fn append(
    answer: &mut Response<Body>,
    part: &Path,
    url: &str,
    mut done: u64,
    total: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), End> {
    let open = OpenOptions::new().create(true).append(true).open(part);
    let mut file =
        open.map_err(|source| End::Final(ImageError::Write { path: part.into(), source }))?;
    let mut body = answer.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 17];
    progress(Progress { done, total });
    let source = loop {
        let n = match body.read(&mut buffer) {
            Ok(0) if total.is_none_or(|total| total == done) => {
                return written(file.sync_all(), part, &file, url).map_err(End::Final);
            }
            Ok(0) => break io::ErrorKind::UnexpectedEof.into(),
            Ok(n) => n,
            Err(e) => break e,
        };
        let bytes = &buffer[..n];
        written(file.write_all(bytes), part, &file, url).map_err(End::Final)?;
        done += bytes.len() as u64;
        progress(Progress { done, total });
    };
    Err(End::Again(ImageError::Cut { url: url.into(), done, source }))
}

/// What a server tells versions of a file apart by: a strong entity tag, else when it was changed.
fn validator_of(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::to_owned);
    let strong = text("etag").filter(|tag| tag.starts_with('"'));
    strong.or_else(|| text("last-modified"))
}

fn length(answer: &Response<Body>) -> Option<u64> {
    answer.headers().get("content-length")?.to_str().ok()?.parse().ok()
}

fn part_len(part: &Path) -> u64 {
    part.metadata().map_or(0, |meta| meta.len())
}

/// The range that an answer has: `bytes 5-9/10`, or of a range that there is not, `bytes */10`.
#[derive(Clone, Copy, Debug)]
struct Range {
    from: Option<u64>,
    total: Option<u64>,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let from = range.split_once('-').and_then(|(from, _)| from.trim().parse().ok());
        Some(Self { from, total: total.trim().parse().ok() })
    }
}

/// Trusts what this machine trusts, asks its proxies, and gives up on a server that says nothing.
fn agent() -> Agent {
    let provider =
        if cfg!(target_os = "macos") { TlsProvider::NativeTls } else { TlsProvider::Rustls };
    let tls =
        TlsConfig::builder().provider(provider).root_certs(RootCerts::PlatformVerifier).build();
    Config::builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .user_agent(concat!("vmlan/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_per_read(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .build()
        .new_agent()
}

/// Attempts that bring nothing, one after the other.
const TRIES: u32 = 4;
/// Before the next attempt, and twice as long each time.
const PAUSE: Duration = Duration::from_millis(100);
const SILENCE: Duration = Duration::from_secs(30);
