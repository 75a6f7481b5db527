//! A machine's disk: an empty qcow2 file over the image that it was made from, which stays as it is
//! and is shared by all machines made from it. What is in the file later is QEMU's business.
//!
//! The format is that of QEMU's `docs/interop/qcow2`, version 3.

mod raw;
mod unfold;
mod whole;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use raw::raw;
pub use whole::check;

/// What a file with a disk in it looks like inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The format of a disk image. What is no format that vmlan knows is a raw disk, except for those
/// that QEMU would know: they would boot nothing.
pub fn format_of(path: &Path) -> io::Result<Format> {
    let head = Head::read(path)?;
    if head.bytes().starts_with(MAGIC) {
        return Ok(Format::Qcow2);
    }
    let other = OTHERS.iter().find(|(magic, _)| head.bytes().starts_with(magic));
    match other {
        Some((_, name)) => Err(damaged(format!(
            "{} is {name}, and vmlan takes qcow2 and raw disks; convert it with `qemu-img convert -O qcow2`",
            path.display(),
        ))),
        None => Ok(Format::Raw),
    }
}

/// The size of the disk that is in an image. An image that wants other files with it is refused:
/// whoever made it would choose which of the host's files the guest reads.
pub fn size_of(path: &Path, format: Format) -> io::Result<u64> {
    match format {
        Format::Raw => Ok(path.metadata()?.len().next_multiple_of(SECTOR)),
        Format::Qcow2 => {
            let head = Head::read(path)?;
            let whole = head.bytes().starts_with(MAGIC) && head.bytes().len() >= 72;
            if !whole {
                return Err(damaged(format!("{} is not a whole qcow2 image", path.display())));
            }
            let incompatible = if head.u32(4) >= 3 { head.u64(72) } else { 0 };
            if head.u64(8) != 0 || incompatible & EXTERNAL_DATA != 0 {
                let what = "is only a part of an image, and names another file of this machine's";
                return Err(damaged(format!("{} {what}", path.display())));
            }
            Ok(head.u64(24))
        }
    }
}

/// Creates the empty disk `path` over the image `base`, which must stay where it is. The disk is
/// `size` bytes, or as large as the image where that is more. There must be no file yet, and there
/// is none after a failure.
pub fn overlay(path: &Path, base: &Path, format: Format, size: u64) -> io::Result<()> {
    let base = base.canonicalize()?;
    let size = size.max(size_of(&base, format)?).next_multiple_of(SECTOR);
    let bytes = empty(base.as_os_str().as_bytes(), format, size)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Makes the disk `path`, which nobody uses, `size` bytes large. One that is as large already stays
/// as it is, and so does a qcow2 file that `overlay` has not made. What a disk has grown by reads as
/// zeros.
pub fn grow(path: &Path, size: u64) -> io::Result<()> {
    let size = size.next_multiple_of(SECTOR);
    let head = Head::read(path)?;
    if !head.bytes().starts_with(MAGIC) {
        let file = OpenOptions::new().write(true).open(path)?;
        return if file.metadata()?.len() < size { file.set_len(size) } else { Ok(()) };
    }
    if !head.is_overlay() || head.u64(24) >= size {
        return Ok(());
    }
    let (entries, wanted) = (u64::from(head.u32(36)), size.div_ceil(PER_ENTRY));
    // The table owns whole clusters, and where its last one ends, somebody else's may begin.
    let room = (entries * 8).next_multiple_of(CLUSTER as u64) / 8;
    if wanted > room {
        let most = room.saturating_mul(PER_ENTRY) >> 30;
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("it can grow to {most} GiB at most; a larger one takes `qemu-img resize`"),
        ));
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let new = usize::try_from(wanted.saturating_sub(entries) * 8).unwrap_or(0);
    file.write_all_at(&vec![0; new], head.u64(40).saturating_add(entries * 8))?;
    file.sync_all()?;
    // Both numbers at once: they are in one sector.
    let mut numbers = Vec::with_capacity(16);
    numbers.extend_from_slice(&size.to_be_bytes());
    push(&mut numbers, &[0, u32::try_from(wanted.max(entries)).unwrap_or(u32::MAX)]);
    file.write_all_at(&numbers, 24)?;
    file.sync_all()
}

/// A whole file: one cluster each for the header, the table of reference counts and their only
/// block, then the level 1 table, in which nothing is allocated.
fn empty(base: &[u8], format: Format, size: u64) -> io::Result<Vec<u8>> {
    let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
    if base.len() > MAX_BASE {
        return Err(wrong("the path of the image is longer than a qcow2 file can name"));
    }
    let entries = size.div_ceil(PER_ENTRY);
    let table = (entries * 8).div_ceil(CLUSTER as u64);
    let clusters = usize::try_from(L1 + table).unwrap_or(usize::MAX);
    if clusters > CLUSTER / 2 {
        return Err(wrong("the disk is larger than one qcow2 file can hold"));
    }
    let name = format.name().as_bytes();
    let mut head = Vec::with_capacity(clusters * CLUSTER);
    let at = HEADER as usize + 8 + name.len().next_multiple_of(8) + 8;
    head.extend_from_slice(MAGIC);
    push(&mut head, &[3]);
    head.extend_from_slice(&(at as u64).to_be_bytes());
    push(&mut head, &[u32::try_from(base.len()).unwrap_or(0), CLUSTER.ilog2()]);
    head.extend_from_slice(&size.to_be_bytes());
    // No encryption; then the level 1 table.
    push(&mut head, &[0, u32::try_from(entries).unwrap_or(u32::MAX)]);
    head.extend_from_slice(&(L1 * CLUSTER as u64).to_be_bytes());
    head.extend_from_slice(&(CLUSTER as u64).to_be_bytes());
    // The reference counts' table is one cluster; no snapshots and features.
    push(&mut head, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Reference counts are of 16 bits; then the length of the header.
    push(&mut head, &[4, HEADER]);
    push(&mut head, &[BACKING_FORMAT, u32::try_from(name.len()).unwrap_or(0)]);
    head.extend_from_slice(name);
    head.resize(at - 8, 0);
    push(&mut head, &[0, 0]);
    head.extend_from_slice(base);
    head.resize(CLUSTER, 0);
    head.extend_from_slice(&(2 * CLUSTER as u64).to_be_bytes());
    head.resize(2 * CLUSTER, 0);
    for _ in 0..clusters {
        head.extend_from_slice(&1_u16.to_be_bytes());
    }
    head.resize(clusters * CLUSTER, 0);
    Ok(head)
}

fn push(to: &mut Vec<u8>, numbers: &[u32]) {
    for number in numbers {
        to.extend_from_slice(&number.to_be_bytes());
    }
}

/// The first bytes of a file.
struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    fn read(path: &Path) -> io::Result<Self> {
        let mut head = Self { bytes: [0; HEAD], len: 0 };
        let mut file = File::open(path)?;
        while let Some(room) = head.bytes.get_mut(head.len..).filter(|room| !room.is_empty()) {
            match file.read(room)? {
                0 => break,
                n => head.len += n,
            }
        }
        Ok(head)
    }

    /// Whether this is of a disk that `overlay` has made.
    fn is_overlay(&self) -> bool {
        let whole = self.bytes().starts_with(MAGIC) && self.len == HEAD;
        whole && self.u64(8) != 0 && self.u32(20) == CLUSTER.ilog2()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn u32(&self, at: usize) -> u32 {
        self.bytes[at..at + 4].iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
    }

    fn u64(&self, at: usize) -> u64 {
        number(&self.bytes[at..at + 8])
    }
}

/// A number of the format's, which has the highest byte first.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

const SECTOR: u64 = 512;
const HEAD: usize = 80;
const CLUSTER: usize = 1 << 16;
/// What one entry of the level 1 table leads to: a level 2 table, each of whose entries is a
/// cluster.
const PER_ENTRY: u64 = (CLUSTER as u64 / 8) * CLUSTER as u64;
/// The cluster at which the level 1 table begins.
const L1: u64 = 3;
const HEADER: u32 = 104;
/// The most that the format allows for a path.
const MAX_BASE: usize = 1023;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
/// Where a table or a cluster is, of an entry of a table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an entry that leads to compressed data.
const COMPRESSED: u64 = 1 << 62;
const EXTERNAL_DATA: u64 = 1 << 2;
const MAGIC: &[u8] = b"QFI\xfb";
const OTHERS: &[(&[u8], &str)] = &[
    (b"KDMV", "a VMDK disk"),
    (b"# Disk Descriptor", "a VMDK disk"),
    (b"vhdxfile", "a VHDX disk"),
    (b"<<< ", "a VDI disk"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
];

#[cfg(test)]
mod tests;
