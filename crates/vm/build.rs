//! Builds the agent for guests, which the binary carries: a static program for each architecture
//! whose standard library is installed, by a cargo of its own, below this build's own directory.
//! Where none can be built the binary carries none, and says so when it matters.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for path in ["../agent/src", "../agent/Cargo.toml", "../../Cargo.lock", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(var("OUT_DIR"));
    for arch in ["x86_64", "aarch64"] {
        let built = targets(arch).find_map(|target| build(&target, &out));
        let text = match built {
            Some(path) => format!("Some(include_bytes!({path:?}))"),
            None => "None".to_owned(),
        };
        fs::write(out.join(format!("agent-{arch}.rs")), text).expect("OUT_DIR can be written");
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Targets for guests of an architecture that can be built here, the best first. musl's standard
/// library brings all that a static program needs, whatever this machine is.
fn targets(arch: &str) -> impl Iterator<Item = String> {
    let musl = format!("{arch}-unknown-linux-musl");
    let gnu = format!("{arch}-unknown-linux-gnu");
    // With the C library of another machine it could not be linked.
    let is_native = var("HOST") == gnu && var("TARGET") == gnu;
    let gnu = is_native.then_some(gnu);
    Some(musl).filter(|target| has_std(target)).into_iter().chain(gnu)
}

fn has_std(target: &str) -> bool {
    let asked =
        Command::new(var("RUSTC")).args(["--print", "target-libdir", "--target", target]).output();
    let Ok(asked) = asked else { return false };
    let dir = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    asked.status.success() && fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some())
}

fn build(target: &str, out: &Path) -> Option<PathBuf> {
    let dir = out.join("agent");
    let mut flags = vec!["-Ctarget-feature=+crt-static"];
    if target.ends_with("musl") {
        flags.extend(["-Clinker=rust-lld", "-Clink-self-contained=yes"]);
    }
    let mut cargo = Command::new(var("CARGO"));
    cargo
        // Everything it needs, the build that calls has.
        .args(["build", "--quiet", "--offline", "--locked", "--profile", "agent"])
        .args(["--package", "vmlan-agent", "--bin", "vmlan-agent", "--target", target])
        .arg("--target-dir")
        .arg(&dir)
        .current_dir(var("CARGO_MANIFEST_DIR"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // What the calling build is done with is not meant for this one: clippy, for instance.
    for name in ["RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        cargo.env_remove(name);
    }
    match cargo.output() {
        Ok(output) if output.status.success() => {
            Some(dir.join(target).join("agent").join("vmlan-agent"))
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("cargo::warning=no agent for {target} guests can be built:");
            said.lines().for_each(|line| println!("cargo::warning={line}"));
            None
        }
        Err(error) => {
            println!("cargo::warning=no agent for {target} guests can be built: {error}");
            None
        }
    }
}
