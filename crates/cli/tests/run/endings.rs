//! Signals to the supervisor, and that nothing outlives the command or the supervisor.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::caller::{ending, run};

/// A guest under test; killed at the end whatever happens.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    /// Starts a command that says `up` when it is ready for what the test does.
    fn start(command: &[&str]) -> Self {
        let mut run = run([&["--"], command].concat());
        run.process_group(0);
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self { child, out }
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    fn finish(mut self) -> (String, String) {
        self.child.stdin = None;
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (rest, ending(self.child.wait().unwrap()))
    }

    /// Everything that the supervisor has started, directly and indirectly.
    fn family(&self) -> Vec<i32> {
        let mut family = vec![self.pid()];
        let mut next = 0;
        while let Some(&pid) = family.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            family.extend(children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
            next += 1;
        }
        family.remove(0);
        family
    }

    fn named(&self, name: &str) -> i32 {
        let named = |pid: &i32| comm(*pid).as_deref() == Some(name);
        self.family().into_iter().find(named).unwrap_or_else(|| panic!("no {name}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn comm(pid: i32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

fn namespace(pid: i32) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// Processes that are alive and in a network namespace of `namespaces`.
fn living_in(namespaces: &HashSet<std::path::PathBuf>) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| namespace(*pid).is_some_and(|ns| namespaces.contains(&ns))).collect()
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A script that reports the signals it gets, the last of which ends it.
const REPORT: &str = "
import signal as s, sys
names = 'HUP', 'INT', 'QUIT', 'USR1', 'USR2', 'WINCH', 'CONT', 'ALRM', 'TERM'
asked = {getattr(s, 'SIG' + name) for name in names}
s.pthread_sigmask(s.SIG_BLOCK, asked)
print('up', flush=True)
while True:
    got = s.Signals(s.sigwait(asked))
    print(got.name, flush=True)
    if got == s.SIGTERM:
        sys.exit(7)
";

#[test]
fn signals_to_the_supervisor_reach_the_command_once() {
    use Signal as S;
    let mut guest = Running::start(&["python3", "-c", REPORT]);
    let signals = [
        (S::HUP, "SIGHUP"),
        (S::INT, "SIGINT"),
        (S::QUIT, "SIGQUIT"),
        (S::USR1, "SIGUSR1"),
        (S::USR2, "SIGUSR2"),
        (S::WINCH, "SIGWINCH"),
        (S::ALARM, "SIGALRM"),
        (S::CONT, "SIGCONT"),
        (S::INT, "SIGINT"),
    ];
    for (signal, name) in signals {
        guest.signal(signal);
        let mut line = String::new();
        guest.out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), name);
    }
    guest.signal(S::TERM);
    assert_eq!(guest.finish(), ("SIGTERM\n".into(), "exit 7".into()));
}

/// A shell's `kill %1`, timeout(1) and the like send to the group, which the command is in.
#[test]
fn signals_to_the_group_reach_the_command_once() {
    let mut guest = Running::start(&["python3", "-c", REPORT]);
    let group = Pid::from_raw(guest.pid()).unwrap();
    for _ in 0..20 {
        kill_process_group(group, Signal::INT).unwrap();
        let mut line = String::new();
        guest.out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "SIGINT");
        // Would come before this one if it were sent on.
        guest.signal(Signal::USR1);
        line.clear();
        guest.out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "SIGUSR1");
    }
    kill_process_group(group, Signal::TERM).unwrap();
    assert_eq!(guest.finish(), ("SIGTERM\n".into(), "exit 7".into()));
}

#[test]
fn a_command_that_a_signal_ends_ends_the_supervisor_so() {
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2), (Signal::USR1, 10)] {
        let guest = Running::start(&["sh", "-c", "echo up; exec sleep 100"]);
        // The shell may not have become sleep yet, but either dies of it.
        guest.signal(signal);
        assert_eq!(guest.finish(), (String::new(), format!("signal {number}")));
    }
}

#[test]
fn the_command_stops_and_goes_on_with_the_supervisor() {
    let guest = Running::start(&["sh", "-c", "echo up; sleep 0.3; echo on"]);
    guest.signal(Signal::TSTP);
    let state = || fs::read_to_string(format!("/proc/{}/stat", guest.pid())).unwrap();
    wait_until("supervisor stopped", || state().contains(") T "));
    guest.signal(Signal::CONT);
    assert_eq!(guest.finish(), ("on\n".into(), "exit 0".into()));
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    let guest =
        Running::start(&["sh", "-c", "(trap '' HUP TERM; setsid sleep 1000) & echo up; read x"]);
    let namespaces: HashSet<_> = namespace(guest.named("netns-init")).into_iter().collect();
    assert_eq!(namespaces.len(), 1);
    // The end of its input is the command's end.
    assert_eq!(guest.finish().1, "exit 1");
    assert_eq!(living_in(&namespaces), [] as [i32; 0]);
}

/// Whatever is killed, and however hard, takes everything with it.
#[test]
fn nothing_is_left_after_kill_9() {
    for victim in ["supervisor", "netns-init"] {
        let guest = Running::start(&["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo up; wait"]);
        let family = guest.family();
        assert!(family.len() >= 5, "{family:?}");
        let namespaces: HashSet<_> = namespace(guest.named("netns-init")).into_iter().collect();
        let pid = if victim == "supervisor" { guest.pid() } else { guest.named(victim) };
        send(pid, Signal::KILL);
        assert_eq!(guest.finish().1, "signal 9", "{victim}");
        wait_until(victim, || {
            family.iter().all(|pid| comm(*pid).is_none()) && living_in(&namespaces).is_empty()
        });
    }
}

#[test]
fn a_network_that_is_killed_is_replaced() {
    let mut command =
        run(["--", "sh", "-c", "echo up; read line; ping -c3 -W5 192.168.5.2 >/dev/null"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let input = child.stdin.take();
    let guest = Running { child, out };
    let network = guest.named("vmlan-network");
    // One that dies at its very start is not replaced.
    std::thread::sleep(Duration::from_millis(1100));
    send(network, Signal::KILL);
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert_eq!(
        line,
        "vmlan: the network's process was killed by signal 9; another has taken its place\n"
    );
    std::io::Write::write_all(&mut input.unwrap(), b"go\n").unwrap();
    assert_eq!(guest.finish().1, "exit 0");
}
