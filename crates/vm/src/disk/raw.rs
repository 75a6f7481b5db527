//! A disk without a format, for drivers that read no other: a copy of a raw image, whose blocks the
//! file system shares where it can, or what is in a qcow2 image.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::unfold::unfold;
use super::{Format, SECTOR, format_of};

/// Creates the disk `path` from the image `base`: `size` bytes, or as many as the image has where that
/// is more. There is no half of one after a failure.
pub fn raw(path: &Path, base: &Path, size: u64) -> io::Result<()> {
    let new = path.with_extension("new");
    let copied = match format_of(base)? {
        Format::Raw => fs::copy(base, &new),
        Format::Qcow2 => File::create(&new).and_then(|file| unfold(base, &file)),
    };
    let made = copied
        .and_then(|least| finish(&new, size.max(least)))
        .and_then(|()| fs::rename(&new, path));
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made
}

/// Gives a disk its size, and sees that it stays.
fn finish(path: &Path, size: u64) -> io::Result<()> {
    // The image may be one that nobody writes to.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(size.next_multiple_of(SECTOR))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_image_is_copied_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let (base, disk) = (dir.path().join("basedisk"), dir.path().join("diffdisk"));
        fs::write(&base, [7; 1000]).unwrap();
        fs::set_permissions(&base, Permissions::from_mode(0o444)).unwrap();
        raw(&disk, &base, 1 << 20).unwrap();
        let there = fs::read(&disk).unwrap();
        assert_eq!((there.len(), &there[..1000]), (1 << 20, &[7; 1000][..]));
        raw(&disk, &base, 0).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 1024);
        // Of a damaged image nothing is left.
        fs::remove_file(&disk).unwrap();
        fs::remove_file(&base).unwrap();
        fs::write(&base, b"QFI\xfb").unwrap();
        assert!(raw(&disk, &base, 0).is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}
