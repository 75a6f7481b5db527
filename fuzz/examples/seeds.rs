//! Writes the committed corpora.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    for (target, _) in vmlan_fuzz::TARGETS.iter().copied() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&dir)?;
        for (name, input) in vmlan_fuzz::seeds::of(target) {
            fs::write(dir.join(name), input)?;
        }
    }
    Ok(())
}
