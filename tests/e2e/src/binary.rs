//! The program under test: built once for each test binary, with the profile that the tests were
//! built with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The built `vmlan`; `VMLAN_BIN` names another one to test.
pub fn vmlan() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("VMLAN_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

/// Where cargo puts what it builds; the QEMU guest lies there too.
pub fn target_dir() -> PathBuf {
    profile_dir().parent().expect("target/PROFILE").to_owned()
}

/// `target/PROFILE` of `target/PROFILE/deps/TEST`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned()
}

fn build() -> PathBuf {
    let dir = profile_dir();
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("{} names no profile", dir.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "vmlan", "--profile", profile])
        .arg("--target-dir")
        .arg(target_dir())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo could not build vmlan");
    dir.join("vmlan")
}
