//! What the machine's boot script has noted for the host: a file for each, of one line.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use vmlan_agent::message::{MAX_NOTE, MAX_NOTES};

/// Where `boot.sh` of the seed has them; only root may write there.
const DIR: &str = "/run/vmlan/notes";

/// The notes, in the order of their names.
pub(crate) fn list() -> Vec<String> {
    list_in(Path::new(DIR))
}

fn list_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: &Path| {
        let mut text = Vec::new();
        File::open(path).ok()?.take(MAX_NOTE as u64).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).lines().next()?.to_owned())
    };
    paths.iter().filter_map(|path| read(path)).take(MAX_NOTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_in_order_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(list_in(&dir.path().join("none")), Vec::<String>::new());
        fs::write(dir.path().join("b"), "second\nand more\n").unwrap();
        fs::write(dir.path().join("a"), "x".repeat(MAX_NOTE + 1)).unwrap();
        fs::write(dir.path().join("c"), "").unwrap();
        assert_eq!(list_in(dir.path()), ["x".repeat(MAX_NOTE), "second".into()]);
        for n in 0..MAX_NOTES {
            fs::write(dir.path().join(format!("d{n}")), "one").unwrap();
        }
        assert_eq!(list_in(dir.path()).len(), MAX_NOTES);
    }
}
