//! Images that are packed, which their name says: `.gz`, `.xz` and `.zst`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

use super::{ImageError, written};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Xz,
    Zstd,
}

impl Packing {
    /// How the file with this path or URL is packed, if it is.
    pub(super) fn of(location: &str) -> Option<Self> {
        let path = match location.contains("://") {
            true => location.split(['?', '#']).next().unwrap_or(location),
            false => location,
        };
        match path.rsplit_once('.')?.1 {
            "gz" => Some(Self::Gzip),
            "xz" => Some(Self::Xz),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Unpacks `from` to the file `to`, in place of any that is there; it is gone after a failure.
    pub(super) fn unpack(
        self,
        from: &Path,
        to: &Path,
        location: &str,
    ) -> Result<PathBuf, ImageError> {
        let read = |source| ImageError::Read { path: from.into(), source };
        let packed = BufReader::with_capacity(1 << 16, File::open(from).map_err(read)?);
        // Not only cut: as it may be read-only, or someone's link.
        let _ = fs::remove_file(to);
        let create = |source| ImageError::Write { path: to.into(), source };
        let mut file = File::create_new(to).map_err(create)?;
        let done = match self {
            Self::Gzip => copy(&mut MultiGzDecoder::new(packed), &mut file, to, location),
            Self::Xz => copy(&mut XzReader::new(packed, true), &mut file, to, location),
            Self::Zstd => copy(&mut Frames(Frame::Next(packed)), &mut file, to, location),
        };
        let done = done.and_then(|()| written(file.sync_all(), to, &file, location));
        if done.is_err() {
            let _ = fs::remove_file(to);
        }
        done.map(|()| to.into())
    }
}

/// Copies, and leaves holes where there is nothing: an unpacked disk is mostly that.
fn copy(from: &mut dyn Read, file: &mut File, to: &Path, location: &str) -> Result<(), ImageError> {
    let mut block = vec![0; 1 << 16];
    let mut len = 0;
    loop {
        let n = fill(from, &mut block)
            .map_err(|source| ImageError::Unpack { location: location.into(), source })?;
        let bytes = &block[..n];
        let hole = bytes.iter().all(|byte| *byte == 0);
        let result = match hole {
            true => file.seek(SeekFrom::Current(i64::try_from(n).unwrap_or(0))).map(drop),
            false => file.write_all(bytes),
        };
        written(result, to, file, location)?;
        len += bytes.len() as u64;
        if n < block.len() {
            return written(file.set_len(len), to, file, location);
        }
    }
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match from.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// The frames of a zstd file one after the other, each with its checksum.
struct Frames<R: BufRead>(Frame<R>);

enum Frame<R: BufRead> {
    /// Between two frames.
    Next(R),
    Within(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    /// Of the file, or of what can be read of it.
    End,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.0, Frame::End) {
                Frame::End => return Ok(0),
                Frame::Next(mut packed) => {
                    if packed.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(packed).map_err(io::Error::other)?;
                    self.0 = Frame::Within(Box::new(decoder));
                }
                Frame::Within(mut decoder) => {
                    let n = decoder.read(buffer)?;
                    if n > 0 {
                        self.0 = Frame::Within(decoder);
                        return Ok(n);
                    }
                    let said = decoder.decoder.get_checksum_from_data();
                    if said.is_some() && said != decoder.decoder.get_calculated_checksum() {
                        return Err(io::Error::other("its checksum is wrong"));
                    }
                    self.0 = Frame::Next(decoder.into_inner());
                }
            }
        }
    }
}
