//! The records after a message's question: where each one is, no more. Names in them are skipped,
//! and nothing follows a compression pointer, so that a walk ends where the message does.

use std::ops::Range;

use super::HEADER;

/// A resource record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// 0 answer, 1 authority, 2 additional.
    pub(crate) section: u8,
    pub(crate) start: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    pub(crate) ttl_at: usize,
    pub(crate) rdata: Range<usize>,
}

/// Walks the records that follow `from`, the end of the question section; yields `None` once and
/// ends where the message makes no sense.
pub(crate) fn records(message: &[u8], from: usize) -> impl Iterator<Item = Option<Record>> {
    let count = |at: usize| match message.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    let mut left = [count(6), count(8), count(10)];
    let mut at = from.max(HEADER);
    let mut ended = false;
    std::iter::from_fn(move || {
        let section = left.iter().position(|&count| count > 0).filter(|_| !ended)?;
        left[section] -= 1;
        let record = record(message, at, u8::try_from(section).unwrap_or(2));
        match &record {
            Some(record) => at = record.rdata.end,
            None => ended = true,
        }
        Some(record)
    })
}

fn record(message: &[u8], start: usize, section: u8) -> Option<Record> {
    let fixed_at = skip_name(message, start)?;
    let fixed = message.get(fixed_at..)?.first_chunk::<10>()?;
    let rdata =
        fixed_at + 10..fixed_at + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    message.get(rdata.clone())?;
    Some(Record {
        section,
        start,
        kind: u16::from_be_bytes([fixed[0], fixed[1]]),
        class: u16::from_be_bytes([fixed[2], fixed[3]]),
        ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        ttl_at: fixed_at + 4,
        rdata,
    })
}

/// Where a name ends.
pub(super) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + len,
            192..=255 => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}
