//! What is in a qcow2 image, written to a disk without a format. The image is one that has been found
//! whole; what it names that is not there all the same is an error.
//!
//! The format is that of QEMU's `docs/interop/qcow2`, versions 2 and 3.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::bufread::DeflateDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::{COMPRESSED, OFFSET, SECTOR, check, damaged, number};

/// Bytes of the header that are looked at, the way of compression included.
const HEAD: usize = 112;

/// What may be set and makes no difference to who only reads: it was not closed, and the way of
/// compression is told.
const HARMLESS: u64 = 1 << 0 | COMPRESSION_TOLD;
const COMPRESSION_TOLD: u64 = 1 << 3;

/// Nothing but zeros, whatever is allocated.
const ZEROS: u64 = 1 << 0;

/// Writes the disk in `image` to the empty file `to`, with holes where the disk has zeros. Returns its
/// size.
pub(super) fn unfold(image: &Path, to: &File) -> io::Result<u64> {
    let size = check(image)?;
    let file = File::open(image)?;
    let image = Image::open(file, size).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => damaged(format!("{}: {e}", image.display())),
        _ => e,
    })?;
    image.write_to(to).map(|()| size)
}

struct Image {
    file: File,
    size: u64,
    cluster_bits: u32,
    tables_at: u64,
    compression: Compression,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

impl Image {
    fn open(file: File, size: u64) -> io::Result<Self> {
        let mut head = [0; HEAD];
        // Version 2 has a shorter one.
        read_all(&file, &mut head, 0)?;
        let u32 = |at: usize| number(&head[at..at + 4]);
        let u64 = |at: usize| number(&head[at..at + 8]);
        let features = if u32(4) >= 3 { u64(72) } else { 0 };
        if u32(32) != 0 {
            return Err(damaged("it is encrypted".into()));
        }
        if features & !HARMLESS != 0 {
            return Err(damaged(format!(
                "it has features that vmlan does not know: {features:#x}"
            )));
        }
        let told = features & COMPRESSION_TOLD != 0 && u32(100) > 104;
        let compression = match head.get(104).filter(|_| told) {
            None | Some(0) => Compression::Deflate,
            Some(1) => Compression::Zstd,
            Some(other) => return Err(damaged(format!("its compression {other} is unknown"))),
        };
        let cluster_bits = u32::try_from(u32(20)).unwrap_or(0);
        Ok(Self { file, size, cluster_bits, tables_at: u64(40), compression })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn write_to(&self, to: &File) -> io::Result<()> {
        let cluster = self.cluster();
        // Entries of a table of level 2, and what one of them stands for on the disk.
        let entries = cluster / 8;
        let tables = self.size.div_ceil(entries * cluster);
        let mut table = vec![0; bytes(cluster)?];
        let mut data = vec![0; bytes(cluster)?];
        for index in 0..tables {
            let mut entry = [0; 8];
            self.file.read_exact_at(&mut entry, self.tables_at + index * 8)?;
            let at = u64::from_be_bytes(entry) & OFFSET;
            if at == 0 {
                continue;
            }
            self.file.read_exact_at(&mut table, at)?;
            for (i, entry) in (0_u64..).zip(table.chunks_exact(8)) {
                let place = (index * entries + i) * cluster;
                let Some(left) = self.size.checked_sub(place).filter(|left| *left > 0) else {
                    return Ok(());
                };
                if self.read(number(entry), &mut data)? {
                    let len = bytes(left.min(cluster))?;
                    let data = data.get(..len).unwrap_or_default();
                    if data.iter().any(|byte| *byte != 0) {
                        to.write_all_at(data, place)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the cluster that an entry stands for; false if it is not there, and all zeros.
    fn read(&self, entry: u64, data: &mut [u8]) -> io::Result<bool> {
        if entry & COMPRESSED != 0 {
            return self.unpack(entry, data).map(|()| true);
        }
        let at = entry & OFFSET;
        if entry & ZEROS != 0 || at == 0 {
            return Ok(false);
        }
        // The last one may end with the file.
        let there = read_all(&self.file, data, at)?;
        data.get_mut(there..).unwrap_or_default().fill(0);
        Ok(true)
    }

    fn unpack(&self, entry: u64, data: &mut [u8]) -> io::Result<()> {
        let bits_of_offset = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << bits_of_offset) - 1);
        let more_sectors = (entry & (COMPRESSED - 1)) >> bits_of_offset;
        let len = (more_sectors + 1) * SECTOR - at % SECTOR;
        let mut packed = vec![0; bytes(len)?];
        let there = read_all(&self.file, &mut packed, at)?;
        let packed = packed.get(..there).unwrap_or_default();
        let done = match self.compression {
            Compression::Deflate => DeflateDecoder::new(packed).read_exact(data),
            Compression::Zstd => StreamingDecoder::new(packed)
                .map_err(io::Error::other)
                .and_then(|mut decoder| decoder.read_exact(data)),
        };
        done.map_err(|e| damaged(format!("compressed data at {at} cannot be read: {e}")))
    }
}

/// Reads until the room or the file is at its end, and returns how much there was.
fn read_all(file: &File, room: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = room.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn bytes(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(io::Error::other)
}
