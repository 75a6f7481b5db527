//! QEMU's framing on a byte stream: however the stream is cut into reads, the same frames come
//! out, each within bounds, and the same error at the same place.

use vmlan_link::CloseReason;
use vmlan_link::framing::{Deframer, Framing, LENGTH, MAX_FRAME, MIN_FRAME, Progress};
use vmlan_wire::FrameBatch;

use crate::script::Script;

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    // How the stream is cut; what follows is the stream.
    let cuts: Vec<usize> = script.sized().iter().map(|b| cut(*b)).collect();
    let stream = script.0;
    let (want, ended) = reference(stream);
    let mut deframer = Deframer::new(Framing::Qemu);
    let mut batch = FrameBatch::default();
    let mut frames = Vec::new();
    let (mut at, mut turn) = (0, 0);
    let mut failed = None;
    while at < stream.len() && failed.is_none() {
        let most = cuts.get(turn % cuts.len().max(1)).copied().unwrap_or(usize::MAX);
        turn += 1;
        let read = |room: &mut [u8]| {
            let n = room.len().min(most.max(1)).min(stream.len() - at);
            room[..n].copy_from_slice(&stream[at..at + n]);
            at += n;
            Ok(n)
        };
        match deframer.read_with(&mut batch, read) {
            Ok(Ok(Progress::Read { .. })) => frames.extend(batch.iter().map(|f| f.data.to_vec())),
            Ok(other) => panic!("{other:?} of a stream that goes on"),
            Err(CloseReason::Framing(len)) => {
                // Frames that came whole before the error in the same read may be given or not.
                failed = Some(len);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(failed, ended);
    assert!(frames.len() <= want.len() && frames[..] == want[..frames.len()]);
    assert!(failed.is_some() || frames.len() == want.len());
}

fn cut(byte: u8) -> usize {
    match byte {
        0..200 => usize::from(byte),
        _ => (usize::from(byte) - 199) * 1500,
    }
}

/// The definition, frame by frame.
fn reference(mut stream: &[u8]) -> (Vec<Vec<u8>>, Option<u32>) {
    let mut frames = Vec::new();
    while let Some((word, rest)) = stream.split_first_chunk::<LENGTH>() {
        let word = u32::from_be_bytes(*word);
        let len = word as usize;
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return (frames, Some(word));
        }
        let Some((frame, rest)) = rest.split_at_checked(len) else { break };
        frames.push(frame.to_vec());
        stream = rest;
    }
    (frames, None)
}
