//! Whether an image is all there: looked at before anything is made of it, since a machine would
//! read zeros, or nothing, where the rest is missing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{COMPRESSED, Format, Head, OFFSET, damaged, format_of, number, size_of};

/// The size of the disk in an image, if every part of the disk is in the file.
pub fn check(path: &Path) -> io::Result<u64> {
    let format = format_of(path)?;
    let size = size_of(path, format)?;
    if size == 0 {
        return Err(damaged(format!("{} is an empty disk", path.display())));
    }
    if format == Format::Qcow2 && !is_whole(&Head::read(path)?, &File::open(path)?)? {
        let text = "is cut off or damaged: parts of the disk are not in the file";
        return Err(damaged(format!("{} {text}", path.display())));
    }
    Ok(size)
}

/// Whether the tables of a qcow2 file, and what they name, are within the file.
fn is_whole(head: &Head, file: &File) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let cluster_bits = head.u32(20);
    let is_known = (2..=3).contains(&head.u32(4)) && (9..=21).contains(&cluster_bits);
    if !is_known {
        return Ok(false);
    }
    let cluster = 1_u64 << cluster_bits;
    let entry = match head.u32(4) >= 3 && head.u64(72) & EXTENDED_TABLES != 0 {
        true => 16,
        false => 8,
    };
    let (counts, count_clusters) = (head.u64(48), u64::from(head.u32(56)));
    let (at, entries) = (head.u64(40), u64::from(head.u32(36)));
    let covered = u128::from(entries) * u128::from(cluster / entry) * u128::from(cluster);
    let ends_within = |at: u64, len_there: u64| at.checked_add(len_there).is_some_and(|e| e <= len);
    if entries > MAX_ENTRIES
        || covered < u128::from(head.u64(24))
        || !ends_within(at, entries * 8)
        || !ends_within(counts, count_clusters << cluster_bits)
    {
        return Ok(false);
    }
    let mut tables = 0;
    for table in numbers(file, at, entries * 8, 8)? {
        let table = table & OFFSET;
        if table == 0 {
            continue;
        }
        // No more than the file has room for, or it would be read for ever.
        tables += 1;
        if !ends_within(table, cluster) || tables > len >> cluster_bits {
            return Ok(false);
        }
        let is_there = |number: u64| match number & COMPRESSED != 0 {
            true => number & (u64::MAX >> (2 + cluster_bits - 8)) < len,
            false => number & OFFSET < len,
        };
        if !numbers(file, table, cluster, entry)?.into_iter().all(is_there) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first number of each entry of a table.
fn numbers(file: &File, at: u64, len: u64, entry: u64) -> io::Result<Vec<u64>> {
    let size = |n: u64| usize::try_from(n).map_err(io::Error::other);
    let mut bytes = vec![0; size(len)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.chunks_exact(size(entry)?).map(|entry| number(&entry[..8])).collect())
}

/// Of level 1, in QEMU too.
const MAX_ENTRIES: u64 = 4 << 20;
/// Entries of level 2 have a map of parts of their cluster.
const EXTENDED_TABLES: u64 = 1 << 4;
