//! A disk without a format, for drivers that read no other: a copy of the image, whose blocks the file
//! system shares where it can.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Format, SECTOR, damaged, format_of};

/// Creates the disk `path` from the image `base`: `size` bytes, or as many as the image has where that
/// is more. There is no half of one after a failure.
pub fn raw(path: &Path, base: &Path, size: u64) -> io::Result<()> {
    let new = path.with_extension("new");
    let made = match format_of(base)? {
        Format::Raw => fs::copy(base, &new).map(drop),
        Format::Qcow2 => Err(damaged(format!(
            "{} is a qcow2 image, and vmType vz takes raw ones; convert it with `qemu-img convert -O \
             raw`, or use vmType: qemu",
            base.display()
        ))),
    };
    let made = made.and_then(|()| finish(&new, size)).and_then(|()| fs::rename(&new, path));
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
    let size = size.max(file.metadata()?.len()).next_multiple_of(SECTOR);
    file.set_len(size)?;
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
        fs::write(&base, "QFI\u{fb}").unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }
}
