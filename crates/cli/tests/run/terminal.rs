//! Terminals: keys that make signals, job control, window sizes, hang-ups.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use tempfile::NamedTempFile;

use crate::caller::{ending, outer_sh, run};
use crate::pty::Pty;

/// Counts SIGINTs until a SIGQUIT.
const COUNT: &str = "
import signal as s
asked = {s.SIGINT, s.SIGQUIT}
s.pthread_sigmask(s.SIG_BLOCK, asked)
print('up', flush=True)
n = 0
while s.sigwait(asked) == s.SIGINT:
    n += 1
    print('int', n, flush=True)
print('total', n, flush=True)
";

#[test]
fn ctrl_c_reaches_the_command_once() {
    let mut pty = Pty::start(&run(["--", "python3", "-c", COUNT]));
    pty.expect("up");
    for n in 1..=50 {
        pty.type_in("\x03");
        pty.expect(&format!("int {n}"));
    }
    pty.type_in("\x1c");
    pty.expect("total 50");
    assert_eq!(ending(pty.finish().1), "exit 0");
}

#[test]
fn ctrl_c_ends_the_command_and_the_supervisor_alike() {
    for (key, signal) in [("\x03", "signal 2"), ("\x1c", "signal 3")] {
        let mut pty = Pty::start(&run(["--", "sh", "-c", "echo up; exec sleep 100"]));
        pty.expect("up");
        pty.type_in(key);
        assert_eq!(ending(pty.finish().1), signal);
    }
}

/// A command that tells when it has started and when it goes on. One process that waits for its
/// signals: a shell that is stopped while it starts another process may hang, and a Python that is
/// interrupted just before it sleeps sleeps on, with or without vmlan.
const LONG: &str = "
import os, signal as s
asked = {s.SIGCONT, s.SIGINT}
s.pthread_sigmask(s.SIG_BLOCK, asked)
print('up', flush=True)
while s.sigwait(asked) == s.SIGCONT:
    print('again', flush=True)
s.signal(s.SIGINT, s.SIG_DFL)
s.pthread_sigmask(s.SIG_UNBLOCK, asked)
os.kill(os.getpid(), s.SIGINT)
";

/// [`LONG`], to be named in a shell.
fn long() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(LONG.as_bytes()).unwrap();
    fs::set_permissions(file.path(), Permissions::from_mode(0o644)).unwrap();
    file
}

/// An interactive bash by the ordinary user, with a prompt that tells its level.
fn shell() -> Pty {
    let mut pty = Pty::start(&outer_sh("exec bash --norc --noediting -i"));
    pty.type_in("PS1='ou''ter> '\n");
    pty.expect("outer> ");
    pty
}

#[test]
fn a_shell_stops_and_resumes_the_command_as_its_job() {
    let mut pty = shell();
    let long = long();
    pty.type_in(&format!("\"$VMLAN\" run -- python3 {}\n", long.path().display()));
    pty.expect("up");
    pty.type_in("\x1a");
    pty.expect("Stopped");
    pty.expect("outer> ");
    pty.type_in("jobs -l; fg\n");
    pty.expect("Stopped");
    pty.expect("again");
    pty.type_in("\x03");
    pty.expect("outer> ");
    pty.type_in("echo code=$?\n");
    pty.expect("code=130");

    // In the background it goes on, and stops when it wants the terminal.
    let reader = "import time; print(\"u\" + \"p\"); time.sleep(0.3); print(\"do\" + \"ne\"); \
                  print(\"g\" + \"ot\", input())";
    pty.type_in(&format!("\"$VMLAN\" run -- python3 -uc '{reader}'\n"));
    pty.expect("up");
    pty.type_in("\x1a");
    pty.expect("Stopped");
    pty.type_in("bg\n");
    pty.expect("done");
    pty.type_in("until jobs | grep -q Stopped; do sleep 0.05; done; jobs\n");
    pty.expect("Stopped");
    pty.expect("outer> ");
    pty.type_in("fg\n");
    pty.expect("input");
    pty.type_in("line\n");
    pty.expect("got line");
    pty.expect("outer> ");
    pty.type_in("exit 3\n");
    assert_eq!(ending(pty.finish().1), "exit 3");
}

#[test]
fn a_pipeline_shares_the_terminal() {
    let mut pty = shell();
    pty.type_in(
        "\"$VMLAN\" run -- sh -c 'echo u''p; cat' | sed 's/a/b/'; echo code=${PIPESTATUS[*]}\n",
    );
    pty.expect("up");
    pty.type_in("xax\n");
    pty.expect("xbx");
    pty.type_in("\x04");
    pty.expect("code=0 0");
    pty.type_in("\"$VMLAN\" run -- sh -c 'echo u''p >&2; exec sleep 100' | cat\n");
    pty.expect("up");
    pty.type_in("\x03");
    pty.expect("outer> ");
    pty.type_in("exit\n");
    pty.finish();
}

#[test]
fn a_shell_in_the_guest_has_job_control() {
    let mut pty = shell();
    pty.type_in("\"$VMLAN\" run -- bash --norc --noediting -i\n");
    pty.expect("$ ");
    pty.type_in("PS1='in''ner> '\n");
    pty.expect("inner> ");
    let long = long();
    pty.type_in(&format!("python3 {}\n", long.path().display()));
    pty.expect("up");
    pty.type_in("\x1a");
    pty.expect("Stopped");
    pty.type_in("fg\n");
    pty.expect("again");
    pty.type_in("\x03");
    pty.expect("inner> ");
    pty.type_in("echo code=$?\n");
    pty.expect("code=130");

    // The outer shell sees the inner one as one job, stopped and resumed.
    pty.type_in("suspend\n");
    pty.expect("Stopped");
    pty.expect("outer> ");
    pty.type_in("fg\n");
    pty.expect("inner> ");
    pty.type_in("exit 5\n");
    pty.expect("outer> ");
    pty.type_in("echo code=$?\n");
    pty.expect("code=5");
    pty.type_in("exit\n");
    pty.finish();
}

/// Somebody without job control goes on with the terminal after a shell that has it.
#[test]
fn a_shell_in_the_guest_gives_the_terminal_back() {
    let script = "\"$VMLAN\" run -- bash --norc --noediting -i; echo back; read x; echo got $x";
    let mut pty = Pty::start(&outer_sh(script));
    pty.expect("$ ");
    pty.type_in("exit\n");
    pty.expect("back");
    pty.type_in("line\n");
    pty.expect("got line");
    assert_eq!(ending(pty.finish().1), "exit 0");
}

#[test]
fn the_window_size_is_told() {
    let script = "trap 'stty size' WINCH; echo up; while :; do read -t 0.1 x && exit; done";
    let mut pty = Pty::start(&run(["--", "bash", "-c", script]));
    pty.expect("up");
    pty.resize(33, 77);
    pty.expect("33 77");
    pty.type_in("\n");
    let (rest, status) = pty.finish();
    assert!(!rest.contains("33 77"), "told twice: {rest}");
    assert_eq!(ending(status), "exit 0");
}

#[test]
fn a_hang_up_ends_the_command() {
    let mut pty = Pty::start(&run([
        "--",
        "sh",
        "-c",
        "trap 'exit 9' HUP; echo up; while :; do sleep 0.1; done",
    ]));
    pty.expect("up");
    assert!(pty.pid() > 0);
    pty.hang_up();
    assert_eq!(ending(pty.wait()), "exit 9");
}
