//! An ordinary user to run vmlan as.
//!
//! Where the tests run as root, that is a user id of no account, in a mount namespace of its own
//! with a /dev/net/tun that it may open, as on ordinary machines, and with whatever else a test
//! wants to find there. Elsewhere it is whoever runs the tests.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};

/// The user that tests run as under root.
pub(crate) const UID: &str = "54321";

/// Where that user finds the binary: the build's own directory may be closed to it.
const BINARY: &str = "/dev/net/vmlan";

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program`, run by the ordinary user.
pub(crate) fn user(program: &str) -> Command {
    user_where("", program)
}

/// The same where `setup`, a shell script run as root in the private mount namespace, has changed
/// things.
pub(crate) fn user_where(setup: &str, program: &str) -> Command {
    let becoming = format!("--reuid {UID} --regid {UID} --clear-groups");
    caller_where(setup, &becoming, program)
}

/// [`user_where`] with `becoming`, options of setpriv(1), for who the caller is.
pub(crate) fn caller_where(setup: &str, becoming: &str, program: &str) -> Command {
    let mut command;
    if is_root() {
        let script = format!(
            "set -e
             mount -t tmpfs -o mode=755 tmpfs /dev/net
             mknod -m 666 /dev/net/tun c 10 200
             touch {BINARY}; mount --bind {} {BINARY}
             {setup}
             exec setpriv {becoming} -- \"$@\"",
            env!("CARGO_BIN_EXE_vmlan"),
        );
        command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script, "sh", program]);
    } else {
        assert!(setup.is_empty(), "this test needs root");
        command = Command::new(program);
    }
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// The path of vmlan, for scripts that [`user`] runs.
pub(crate) fn vmlan_path() -> &'static str {
    if is_root() { BINARY } else { env!("CARGO_BIN_EXE_vmlan") }
}

/// `vmlan run ARGS`, by the ordinary user.
pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = user(vmlan_path());
    command.arg("run").args(args);
    command
}

/// `vmlan run -- sh -c SCRIPT`, to its end.
pub(crate) fn run_sh(script: &str) -> Output {
    run(["--", "sh", "-c", script]).output().unwrap()
}

/// A shell script by the ordinary user in which `$VMLAN` is the program.
pub(crate) fn outer_sh(script: &str) -> Command {
    let mut command = user("bash");
    command.args(["-c", script]).env("VMLAN", vmlan_path());
    command
}

pub(crate) fn feed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

pub(crate) trait Told {
    fn text(&self) -> String;
    fn error(&self) -> String;
}

impl Told for Output {
    /// What a command printed that ended well.
    #[track_caller]
    fn text(&self) -> String {
        assert!(self.status.success(), "{}: {}", ending(self.status), self.error());
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}
