//! The program under test: built once for each test binary, with the profile that the tests were
//! built with.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The built `vmlan`; `VMLAN_BIN` names another one to test.
pub fn vmlan() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("VMLAN_BIN") {
        Some(path) => path.into(),
        None => build("vmlan"),
    })
}

/// The built `vmlan-helper`.
pub fn helper() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("vmlan-helper"))
}

/// Where cargo puts what it builds; the QEMU guest lies there too.
pub fn target_dir() -> PathBuf {
    profile_dir().parent().expect("target/PROFILE").to_owned()
}

/// A file of the packages of Debian that `scripts/test packages` unpacks and does not install.
#[track_caller]
pub fn unpacked(name: &str) -> PathBuf {
    let path = target_dir().join("unpacked").join(name);
    assert!(path.exists(), "no {}: run `scripts/test packages` first", path.display());
    path
}

/// `LD_LIBRARY_PATH=...` for programs of these packages, and for their sources of nsswitch.
pub fn unpacked_libraries() -> OsString {
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let root = target_dir().join("unpacked");
    let dirs = ["lib", "usr/lib"].map(|dir| root.join(dir).join(&architecture));
    let private = root.join("usr/lib").join(&architecture).join("systemd");
    let mut setting = OsString::from("LD_LIBRARY_PATH=");
    let joined = std::env::join_paths(dirs.iter().chain([&private]));
    setting.push(joined.expect("no colon in the target directory's path"));
    setting
}

/// `target/PROFILE` of `target/PROFILE/deps/TEST`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned()
}

fn build(package: &str) -> PathBuf {
    let dir = profile_dir();
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("{} names no profile", dir.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", package, "--profile", profile])
        .arg("--target-dir")
        .arg(target_dir())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo could not build {package}");
    dir.join(package)
}
