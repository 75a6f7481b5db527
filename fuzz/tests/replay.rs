//! The corpora, and a bounded number of random mutations of them, on any Rust. The time is bounded
//! by `VMLAN_FUZZ_SECONDS` for each target (default 5); `VMLAN_FUZZ_SEED` gives another run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmlan_fuzz::{TARGETS, Target};
use vmlan_testkit::Rng;
use vmlan_testkit::memory::Counting;

#[global_allocator]
static HEAP: Counting = Counting;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .map(|path| (path.clone(), fs::read(&path).expect("a readable input")))
        .collect();
    files.sort();
    files
}

/// Runs one input; a panic's message names what to do to see it again.
fn attempt((name, run): Target, input: &[u8], what: &str) {
    let result = std::panic::catch_unwind(|| run(input));
    if result.is_err() {
        let path = std::env::temp_dir().join(format!("vmlan-fuzz-{name}-{}", std::process::id()));
        fs::write(&path, input).expect("the input is kept");
        panic!("{name} failed on {what}; the input is in {}", path.display());
    }
}

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|t| t.0 == name).expect("a target")
}

fn replay(name: &str) {
    let target = target(name);
    let inputs = corpus(name);
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    for (path, input) in &inputs {
        attempt(target, input, &path.display().to_string());
    }
    let seed = number("VMLAN_FUZZ_SEED", 1);
    let limit = Duration::from_secs(number("VMLAN_FUZZ_SECONDS", 5));
    let mut rng = Rng::new(seed);
    let start = Instant::now();
    let mut runs = 0;
    while start.elapsed() < limit {
        let pick = &inputs[rng.below(inputs.len())].1;
        let other = &inputs[rng.below(inputs.len())].1;
        let input = mutate(pick, other, &mut rng);
        attempt(target, &input, &format!("mutation {runs} of seed {seed}"));
        runs += 1;
    }
    println!("{name}: {} inputs, {runs} mutations", inputs.len());
}

fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..1 + rng.below(8) {
        let at = rng.below(out.len() + 1);
        let len = rng.below(32);
        match rng.below(6) {
            0 if at < out.len() => out[at] ^= 1 << rng.below(8),
            1 if at < out.len() => out[at] = rng.next_u64() as u8,
            2 => drop(out.drain(at..(at + len).min(out.len()))),
            3 => {
                let mut bytes = vec![0; len];
                rng.fill(&mut bytes);
                out.splice(at..at, bytes);
            }
            4 => {
                let from = rng.below(other.len() + 1);
                let part = &other[from..(from + 4 * len).min(other.len())];
                out.splice(at..at, part.iter().copied());
            }
            _ => {
                let end = (at + 4 * len).min(out.len());
                let again = out[at..end].to_vec();
                out.splice(at..at, again);
            }
        }
    }
    out.truncate(1 << 16);
    out
}

#[test]
fn engine() {
    replay("engine");
}

#[test]
fn dhcp() {
    replay("dhcp");
}

#[test]
fn dns() {
    replay("dns");
}

#[test]
fn resolver() {
    replay("resolver");
}

#[test]
fn proxy() {
    replay("proxy");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn segment() {
    replay("segment");
}

#[test]
#[cfg(target_os = "linux")]
fn datagram() {
    replay("datagram");
}

#[test]
#[cfg(target_os = "linux")]
fn tap() {
    replay("tap");
}

#[test]
fn stream() {
    replay("stream");
}

#[test]
#[cfg(target_os = "linux")]
fn seeds_reach_flows_and_the_switch_by_the_device() {
    let play = |name: &str| {
        let (_, input) = corpus("tap").into_iter().find(|(path, _)| path.ends_with(name)).unwrap();
        vmlan_fuzz::tap::play(&input)
    };
    for name in ["talk", "talk6"] {
        let stats = play(name);
        assert_eq!((stats.tcp_opened, stats.drops().count()), (1, 0), "{name}: {stats:?}");
        assert!(stats.bytes_out > 60_000, "nothing came back: {stats:?}");
    }
    assert!(play("switched").bytes_out > 40_000);
    assert!(play("datagrams").udp_opened > 0);
}

/// Pure noise, from nothing.
#[test]
fn noise() {
    let mut rng = Rng::new(number("VMLAN_FUZZ_SEED", 1));
    for target in TARGETS.iter().copied() {
        for _ in 0..200 {
            let mut input = vec![0; rng.below(2000)];
            rng.fill(&mut input);
            attempt(target, &input, "noise");
        }
    }
}

/// The seeds get as deep as they are meant to; otherwise the format has changed under them.
#[test]
fn seeds_reach_every_part_of_the_engine() {
    let (mut tcp, mut again, mut udp, mut pings) = (0, 0, 0, 0);
    let mut reasons = std::collections::HashSet::new();
    for (_, input) in corpus("engine") {
        let stats = vmlan_fuzz::engine::play(&input);
        tcp += stats.tcp_opened;
        again += stats.tcp_retransmits;
        udp += stats.udp_opened;
        pings += stats.ping_opened;
        reasons.extend(stats.drops().map(|(reason, _)| reason));
    }
    assert!(tcp > 50 && again > 5 && udp > 0 && pings > 0, "{tcp} {again} {udp} {pings}");
    assert!(reasons.len() >= 5, "{reasons:?}");
}
