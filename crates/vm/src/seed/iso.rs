//! Writes an ISO 9660 image: one directory of files, whose true names are Rock Ridge's. No boot
//! record, no Joliet, no sub-directories.
//!
//! ECMA-119, and the System Use Sharing and Rock Ridge Interchange Protocols (IEEE P1281, P1282).

use std::io::{self, Write};

/// A file of the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct File<'a> {
    /// At most 100 bytes, and not the same as another's.
    pub(super) name: &'a str,
    /// Its permissions; it is owned by root.
    pub(super) mode: u32,
    pub(super) content: &'a [u8],
}

/// Writes an image labelled `label`, which is at most 32 bytes.
pub(super) fn write(to: &mut impl Write, label: &str, files: &[File<'_>]) -> io::Result<()> {
    let plan = Plan::new(label, files)?;
    to.write_all(&[0; SECTOR * SYSTEM_AREA])?;
    to.write_all(&plan.primary())?;
    to.write_all(&terminator())?;
    to.write_all(&path_table(u32::to_le_bytes, u16::to_le_bytes))?;
    to.write_all(&path_table(u32::to_be_bytes, u16::to_be_bytes))?;
    to.write_all(&plan.directory)?;
    for file in &plan.files {
        to.write_all(file.content)?;
        to.write_all(&vec![0; padding(file.content.len())])?;
    }
    Ok(())
}

/// Where everything goes.
struct Plan<'a> {
    label: &'a str,
    /// In the order of their identifiers, which is that of the directory and of the disk.
    files: Vec<File<'a>>,
    directory: Vec<u8>,
    sectors: u32,
}

impl<'a> Plan<'a> {
    fn new(label: &'a str, files: &[File<'a>]) -> io::Result<Self> {
        let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let mut files = files.to_vec();
        files.sort_by_key(|file| identifier(file.name));
        if let Some(pair) =
            files.windows(2).find(|two| identifier(two[0].name) == identifier(two[1].name))
        {
            return Err(wrong(format!("two files of the image would be `{}`", pair[0].name)));
        }
        if let Some(long) = files.iter().find(|file| file.name.len() > MAX_NAME) {
            return Err(wrong(format!("`{}` is too long a name for the image", long.name)));
        }
        // Its length does not depend on where the files are, so that they can be placed after it.
        let mut plan = Self { label, files, directory: Vec::new(), sectors: 0 };
        plan.directory = plan.records(0, 0)?;
        let bytes = u32::try_from(plan.directory.len()).unwrap_or(u32::MAX);
        plan.directory = plan.records(ROOT + sectors(plan.directory.len())?, bytes)?;
        plan.sectors = ROOT + sectors(plan.directory.len())?;
        for file in &plan.files {
            plan.sectors = plan.sectors.saturating_add(sectors(file.content.len())?);
        }
        Ok(plan)
    }

    /// The root directory, if the first file is at sector `at` and the directory itself has that
    /// many `bytes`.
    fn records(&self, mut at: u32, bytes: u32) -> io::Result<Vec<u8>> {
        let mut directory = Vec::new();
        let mut own = Vec::from(*b"SP\x07\x01\xbe\xef\0");
        own.extend(posix(0o40_555, 2));
        own.extend_from_slice(b"ER\x12\x01\x0a\0\0\x01RRIP_1991A");
        directory.extend(record(ROOT, bytes, true, &[0], &own));
        directory.extend(record(ROOT, bytes, true, &[1], &posix(0o40_555, 2)));
        for file in &self.files {
            let mut system_use = posix(0o100_000 | file.mode, 1);
            system_use.extend_from_slice(b"NM");
            system_use.push(u8::try_from(5 + file.name.len()).unwrap_or(u8::MAX));
            system_use.extend_from_slice(&[1, 0]);
            system_use.extend_from_slice(file.name.as_bytes());
            let len = u32::try_from(file.content.len())
                .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            let entry = record(at, len, false, identifier(file.name).as_bytes(), &system_use);
            // No record lies across the border of two sectors.
            if directory.len() % SECTOR + entry.len() > SECTOR {
                directory.extend(vec![0; padding(directory.len())]);
            }
            directory.extend(entry);
            at = at.saturating_add(sectors(file.content.len())?);
        }
        directory.extend(vec![0; padding(directory.len())]);
        Ok(directory)
    }

    /// The primary volume descriptor.
    fn primary(&self) -> Vec<u8> {
        let mut to = descriptor(1);
        to.push(0);
        text(&mut to, "LINUX", 32);
        text(&mut to, self.label, 32);
        to.extend([0; 8]);
        both_32(&mut to, self.sectors);
        to.extend([0; 32]);
        both_16(&mut to, 1);
        both_16(&mut to, 1);
        both_16(&mut to, 2048);
        both_32(&mut to, PATH_TABLE_LEN);
        to.extend(PATH_TABLE.to_le_bytes());
        to.extend([0; 4]);
        to.extend((PATH_TABLE + 1).to_be_bytes());
        to.extend([0; 4]);
        let bytes = u32::try_from(self.directory.len()).unwrap_or(u32::MAX);
        to.extend(record(ROOT, bytes, true, &[0], &[]));
        // The volume set, publisher, preparer and application, then three files that tell of them.
        for len in [128, 128, 128, 128, 37, 37, 37] {
            text(&mut to, "", len);
        }
        for _ in 0..4 {
            // No date.
            to.extend([b'0'; 16]);
            to.push(0);
        }
        to.push(1);
        to.resize(SECTOR, 0);
        to
    }
}

fn terminator() -> Vec<u8> {
    let mut to = descriptor(255);
    to.resize(SECTOR, 0);
    to
}

/// The start of a volume descriptor.
fn descriptor(kind: u8) -> Vec<u8> {
    let mut to = vec![kind];
    to.extend(b"CD001\x01");
    to
}

/// The table of all directories, of which there is one, in one byte order.
fn path_table(of_32: fn(u32) -> [u8; 4], of_16: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut to = vec![1, 0];
    to.extend(of_32(ROOT));
    to.extend(of_16(1));
    to.extend([0, 0]);
    to.resize(SECTOR, 0);
    to
}

/// An entry of a directory: `len` bytes from sector `at`.
fn record(at: u32, len: u32, directory: bool, identifier: &[u8], system_use: &[u8]) -> Vec<u8> {
    let mut to = vec![0, 0];
    both_32(&mut to, at);
    both_32(&mut to, len);
    // All files are from the first of January 1980: an image does not depend on when it was made.
    to.extend([80, 1, 1, 0, 0, 0, 0]);
    to.extend([if directory { 2 } else { 0 }, 0, 0]);
    both_16(&mut to, 1);
    to.push(u8::try_from(identifier.len()).unwrap_or(u8::MAX));
    to.extend(identifier);
    if !to.len().is_multiple_of(2) {
        to.push(0);
    }
    to.extend(system_use);
    if !to.len().is_multiple_of(2) {
        to.push(0);
    }
    to[0] = u8::try_from(to.len()).unwrap_or(u8::MAX);
    to
}

/// Rock Ridge's `PX`: type and permissions, links, user and group.
fn posix(mode: u32, links: u32) -> Vec<u8> {
    let mut to = Vec::from(*b"PX\x24\x01");
    for number in [mode, links, 0, 0] {
        both_32(&mut to, number);
    }
    to
}

/// The name as ECMA-119 has it, for who does not know Rock Ridge.
fn identifier(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(allowed).take(28).collect();
    format!("{name}.;1")
}

/// Numbers are in both byte orders, little-endian first.
fn both_32(to: &mut Vec<u8>, number: u32) {
    to.extend(number.to_le_bytes());
    to.extend(number.to_be_bytes());
}

fn both_16(to: &mut Vec<u8>, number: u16) {
    to.extend(number.to_le_bytes());
    to.extend(number.to_be_bytes());
}

/// Text in a field of `len` bytes, filled with blanks.
fn text(to: &mut Vec<u8>, text: &str, len: usize) {
    to.extend(text.bytes().chain(std::iter::repeat(b' ')).take(len));
}

fn sectors(len: usize) -> io::Result<u32> {
    u32::try_from(len.div_ceil(SECTOR)).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// What is missing to a whole sector.
fn padding(len: usize) -> usize {
    len.next_multiple_of(SECTOR) - len
}

const SECTOR: usize = 2048;
/// The sectors before the first descriptor, of which there are two.
const SYSTEM_AREA: usize = 16;
/// The little-endian table of paths; the other one follows, then the root directory.
const PATH_TABLE: u32 = 18;
const PATH_TABLE_LEN: u32 = 10;
const ROOT: u32 = 20;
/// So that a record fits in its byte of length.
const MAX_NAME: usize = 100;
