//! What root's helper may do while it runs, by real sudo: the capabilities that it keeps, the files that
//! it has open, and what is there before a network is ready.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use vmlan_e2e::bridge_host::family;
use vmlan_e2e::process::{Process, eventually};
use vmlan_e2e::{As, BridgeHost};

const SOON: Duration = Duration::from_secs(30);

/// The files of the daemon that serves `shared`.
const NETWORK: &str = "/run/home/.lima/_networks/shared";

/// A field of a process's status.
#[track_caller]
fn status(pid: &str, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("a field").trim().replace('\t', " ")
}

/// The process among these and their children that runs this program.
fn running(pid: u32, program: &str) -> Option<String> {
    let name = |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm"));
    family(pid).into_iter().find(|pid| name(pid).is_ok_and(|name| name.trim_end() == program))
}

const NONE: &str = "0000000000000000";

/// `CAP_NET_ADMIN` and `CAP_NET_RAW`.
const KEPT: &str = "0000000000003000";

#[test]
fn the_helper_keeps_two_capabilities_and_what_stays_has_none() {
    let host = BridgeHost::new();
    let before = host.listing();
    let guest = host.guest("lima:shared", "one");

    // It waits for a word that does not come.
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let (ours, mut asked) = host.helper("vmlan-shared", log.as_file());
    let found = || {
        let pid = running(asked.id(), "vmlan-helper")?;
        (status(&pid, "NoNewPrivs") == "1").then_some(pid)
    };
    let helper = eventually("the helper", SOON, found);
    for (field, want) in [
        ("CapInh", NONE),
        ("CapPrm", KEPT),
        ("CapEff", KEPT),
        ("CapBnd", KEPT),
        ("CapAmb", NONE),
        ("Uid", "0 0 0 0"),
    ] {
        assert_eq!(status(&helper, field), want, "{field} of the helper");
    }
    // It has its standard input, once more as it is kept, and what it was given to write to.
    let open = |fd: &str| format!("/proc/{helper}/fd/{fd}");
    let mut fds: Vec<_> = fs::read_dir(open("")).expect("a process").flatten().collect();
    fds.sort_by_key(fs::DirEntry::file_name);
    let fds: Vec<_> = fds.iter().map(|fd| fd.file_name()).collect();
    assert_eq!(fds, ["0", "1", "2", "3"]);
    let kind = |fd| fs::read_link(open(fd)).expect("a descriptor");
    assert!(kind("0").to_string_lossy().starts_with("socket:"));
    assert_eq!(kind("0"), kind("3"));
    let inode = |path: &str| fs::metadata(path).expect("a file").ino();
    assert_eq!(inode(&open("2")), inode(&log.path().to_string_lossy()));
    assert!(!asked.wait(SOON).success(), "nothing was said to it");
    let said = fs::read_to_string(log.path()).expect("a log");
    assert!(said.contains("cannot hear what is wanted"), "{said}");
    drop(ours);

    // Who serves the network is the user, and nobody of root's is left.
    let netd = host.run(As::Root, &format!("cat {NETWORK}/usernet_shared.pid"));
    for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(&netd, field), NONE, "{field} of the daemon");
    }
    assert_eq!(status(&netd, "Uid"), "61234 61234 61234 61234");
    assert_eq!(status(&netd, "Gid"), "61234 61234 61234 61234");
    let roots = || {
        let of_host = |pid: &String| pid != &host.id().to_string() && host.is_home_of(pid);
        let all = fs::read_dir("/proc").expect("processes").flatten();
        let pids = all.filter_map(|entry| entry.file_name().into_string().ok());
        let pids = pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()));
        let uid = |pid: &String| fs::metadata(format!("/proc/{pid}")).map(|m| m.uid());
        let left: Vec<_> =
            pids.filter(of_host).filter(|pid| uid(pid).is_ok_and(|uid| uid == 0)).collect();
        left
    };
    assert!(host.is_home_of(netd.trim()), "the daemon is among those that are looked at");
    let left = roots();
    let names = left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")));
    assert!(left.is_empty(), "{:?}", names.collect::<Vec<_>>());
    drop(guest);
    host.await_listing(&before);
}

#[test]
fn logs_are_whose_they_are() {
    let host = BridgeHost::new();
    let before = host.listing();
    // A user's log that leads to a file of root's: whoever opens it is the user.
    host.run(As::Root, "echo untouched >/run/layers/roots && chmod 644 /run/layers/roots");
    host.run(As::User, &format!("mkdir -p {NETWORK}"));
    let run = "vmlan run --network lima:shared -- true";
    for log in ["stdout", "stderr"] {
        let path = format!("{NETWORK}/usernet.shared.{log}.log");
        host.run(As::User, &format!("rm -f {path}; ln -s /run/layers/roots {path}"));
        let said = host.fail(As::User, run);
        assert!(said.contains("ermission denied"), "{log}: {said}");
        host.run(As::User, &format!("rm {path}"));
    }
    assert_eq!(host.run(As::Root, "cat /run/layers/roots"), "untouched\n");
    // What the helper says comes by the descriptor that it was given, to whoever called it.
    host.run(As::Root, "ip link add vmlan-shared type bridge");
    let said = host.fail(As::User, run);
    assert!(said.contains("there is an interface vmlan-shared that vmlan has not made"), "{said}");
    host.run(As::Root, "ip link del vmlan-shared");
    host.run(As::User, run);
    host.await_listing(&before);
}

/// In the place of `sudo`: a start waits for a word, or fails.
const SUDO: &str = "#!/bin/sh
case \"$*\" in *' start '*)
    touch /run/home/asked
    until [ -e /run/home/go ]; do [ ! -e /run/home/fail ] || exit 1; sleep 0.02; done
esac
exec /usr/bin/sudo \"$@\"
";

/// The daemon's sockets and pid file that are there.
fn files(host: &BridgeHost) -> Vec<String> {
    let entries = fs::read_dir(host.path(NETWORK)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".sock") || name.ends_with(".pid")).collect()
}

#[test]
fn sockets_and_pidfile_are_there_when_the_network_is() {
    let host = BridgeHost::new();
    let before = host.listing();
    let path = host.path("/usr/local/bin/sudo");
    fs::write(&path, SUDO).expect("the host's /usr/local can be written");
    host.run(As::Root, "chmod 755 /usr/local/bin/sudo");
    let run = "exec vmlan run --network lima:shared -- ping -q -c 1 -W 5 192.168.105.1";
    let start = || {
        let mut command = host.command(As::User, run);
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()));
        host.eventually("[ -e /run/home/asked ]");
        host.run(As::Root, "rm /run/home/asked");
        assert_eq!(files(&host), [""; 0], "before the network is there");
        process
    };
    // One that fails leaves none.
    let mut failed = start();
    host.run(As::User, "touch /run/home/fail");
    assert!(!failed.wait(SOON).success());
    assert_eq!(files(&host), [""; 0], "{}", failed.stderr());
    host.run(As::User, "rm /run/home/fail");
    host.run(As::Root, "! ip link show vmlan-shared 2>/dev/null");

    let mut guest = start();
    host.run(As::User, "touch /run/home/go");
    let socket = host.path(&format!("{NETWORK}/shared_ep.sock"));
    let pidfile = host.path(&format!("{NETWORK}/usernet_shared.pid"));
    let deadline = Instant::now() + SOON;
    while !fs::exists(&pidfile).expect("a directory") {
        assert!(Instant::now() < deadline, "{}", guest.stderr());
    }
    // There is no moment at which it says that it is there and does not answer.
    let mut stream = UnixStream::connect(socket).expect("a socket that listens");
    stream.set_read_timeout(Some(SOON)).expect("a deadline");
    let ask = b"GET /v1/network HTTP/1.1\r\nHost: vmlan\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).expect("a question");
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    host.run(As::Root, "ip link show vmlan-shared | grep -q UP");
    assert!(guest.wait(SOON).success(), "{}", guest.stderr());
    host.run(As::Root, "rm /usr/local/bin/sudo");
    host.await_listing(&before);
}
