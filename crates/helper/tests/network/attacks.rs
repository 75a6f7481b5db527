//! What a user might try to become root by, or to do to others. All of it fails, and changes nothing.

use std::os::fd::AsFd;
use std::process::Stdio;

use crate::host::{Guest, Host, OTHER, USER};
use crate::lifecycle::HOST;

const ATTACH: &str = "attach --bridge=vmlan-host";

#[test]
fn namespaces_of_others_get_no_card() {
    let host = Host::new();
    let tap = host.start(USER, HOST);
    let before = host.listing();
    let veth = "veth eth0 52:55:55:00:00:01";
    let refused = |fd: std::os::fd::BorrowedFd<'_>, want: &str| {
        let helper = host.helper(USER, ATTACH);
        helper.say(veth, Some(fd));
        let why = helper.end().unwrap_err();
        assert!(why.contains(want), "{why}");
    };
    let other = Guest::new(OTHER);
    refused(other.0.network().as_fd(), "belongs to the user 61235, not to 61234");
    refused(host.network().as_fd(), "the host's own");
    let roots = Host::new();
    refused(roots.network().as_fd(), "belongs to the user 0, not to 61234");
    let file = tempfile::tempfile().unwrap();
    refused(file.as_fd(), "no network namespace");
    let own = Guest::new(USER);
    let users = std::fs::File::open(format!("/proc/{}/ns/user", own.0.id())).unwrap();
    refused(users.as_fd(), "no network namespace");
    host.listing().assert_same(&before);
    drop(tap);
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    let host = Host::new();
    let tap = host.start(USER, HOST);
    let before = host.listing();
    let own = Guest::new(USER);
    let long = format!("veth {} 52:55:55:00:00:01", "x".repeat(4000));
    for text in [
        "tap",
        "veth",
        "veth eth0",
        "veth eth0 52:55:55:00:00:01 more",
        "veth eth0/../x 52:55:55:00:00:01",
        "veth eth%d 52:55:55:00:00:01",
        "veth lo 52:55:55:00:00:01",
        "veth eth0;id 52:55:55:00:00:01",
        "veth eth0 ff:ff:ff:ff:ff:ff",
        "veth eth0 52:55:c0:a8:6a:01",
        "\0\0\0\0",
        &long,
    ] {
        let helper = host.helper(USER, ATTACH);
        helper.say(text, Some(own.0.network().as_fd()));
        helper.end().expect_err(text);
    }
    // Nothing is said at all: root does not wait for ever.
    let helper = host.helper(USER, ATTACH);
    let why = helper.end().unwrap_err();
    assert!(why.contains("cannot hear what is wanted"), "{why}");
    // A name that is taken in the guest's namespace.
    own.sh("ip link add eth0 type veth peer name eth1");
    let helper = host.helper(USER, ATTACH);
    helper.say("veth eth0 52:55:55:00:00:01", Some(own.0.network().as_fd()));
    assert_eq!(helper.end().unwrap().0, "there");
    host.listing().assert_same(&before);
    drop(tap);
}

#[test]
fn networks_of_others_are_left_alone() {
    let host = Host::new();
    let tap = host.start(USER, HOST);
    let before = host.listing();
    let why = host.run(OTHER, "stop --bridge=vmlan-host").unwrap_err();
    assert!(why.contains("is the user 61234's"), "{why}");
    let guest = Guest::new(OTHER);
    let helper = host.helper(OTHER, ATTACH);
    helper.say("veth eth0 52:55:55:00:00:01", Some(guest.0.network().as_fd()));
    assert!(helper.end().unwrap_err().contains("is the user 61234's"));
    for request in ["tap 52:55:55:00:00:01", "gone 52:55:55:00:00:01"] {
        let helper = host.helper(OTHER, ATTACH);
        helper.say(request, None);
        assert!(helper.end().unwrap_err().contains("is the user 61234's"), "{request}");
    }
    host.listing().assert_same(&before);
    drop(tap);
}

#[test]
fn standard_input_must_be_the_callers_socket() {
    let host = Host::new();
    let start = format!("start {HOST}");
    let why = host.run(USER, &start).unwrap_err();
    assert!(why.contains("not the socket"), "{why}");
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = host.command(USER, &start);
    let status = command.stdin(std::os::fd::OwnedFd::from(stream)).status();
    assert!(!status.unwrap().success());
    // The socket is another user's.
    let mut command = host.command(USER, &start);
    let (_ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let output = command.stdin(theirs).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("another user's socket"));
    let why = host.command(USER, &start).env("SUDO_UID", "0x").output().unwrap();
    assert!(String::from_utf8_lossy(&why.stderr).contains("SUDO_UID"));
    assert!(!host.can("test -e /run/lima"));
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    for (make, want) in [
        ("mkdir -m 777 /run/lima", "sudo chmod go-w /run/lima"),
        ("mkdir /run/lima; chown 61234 /run/lima", "does not belong to root"),
        ("mkdir /run/x; ln -s /run/x /run/lima", "open /run/lima"),
        ("touch /run/lima", "open /run/lima"),
    ] {
        let host = Host::new();
        host.sh(make);
        let before = host.listing();
        let why = host.helper(USER, &format!("start {HOST}")).end().unwrap_err();
        assert!(why.contains(want), "{make}: {why}");
        host.listing().assert_same(&before);
    }
    // Links in place of its files are not followed.
    let host = Host::new();
    host.sh("mkdir /run/lima; touch /run/x; ln -s /run/x /run/lima/vmlan-host.state");
    let why = host.helper(USER, &format!("start {HOST}")).end().unwrap_err();
    assert!(why.contains("read /run/lima/vmlan-host.state"), "{why}");
    assert_eq!(host.sh("cat /run/x"), "");
}

#[test]
fn interfaces_of_others_are_not_taken() {
    let host = Host::new();
    host.sh("ip link add vmlan-host type bridge");
    let before = host.listing();
    let why = host.helper(USER, &format!("start {HOST}")).end().unwrap_err();
    assert!(why.contains("vmlan has not made; remove it with: sudo ip link del"), "{why}");
    host.run(USER, "stop --bridge=vmlan-host").unwrap();
    host.listing().assert_same(&before);
}

#[test]
fn without_root_nothing_happens() {
    let host = Host::new();
    // Where every user may go.
    host.sh(&format!("install -m 755 {} /run/helper", env!("CARGO_BIN_EXE_vmlan-helper")));
    let before = host.listing();
    let user = "setpriv --reuid 61234 --regid 61234 --clear-groups";
    for args in ["stop --bridge=vmlan-host", ATTACH, &format!("start {HOST}")] {
        // Whatever it is told of who calls.
        let said = host.sh(&format!("! SUDO_UID=0 {user} /run/helper {args} 2>&1 </dev/null"));
        assert!(said.contains("only root can do this: vmlan runs it by sudo"), "{said}");
    }
    host.listing().assert_same(&before);
}

#[test]
fn limits_and_signals_of_the_caller_do_not_stop_it_half_way() {
    let host = Host::new();
    let before = host.listing();
    let helper = env!("CARGO_BIN_EXE_vmlan-helper");
    // A file size of zero would kill whoever writes, a full pipe hold up whoever tells.
    let script = format!(
        "trap '' INT; ulimit -f 0; ulimit -n 20; cd /tmp; export SUDO_UID=0; exec {helper} stop \
         --bridge=vmlan-host"
    );
    // Where limits cannot be lifted, nothing is begun.
    host.can(&script);
    host.listing().assert_same(&before);
    let tap = host.start(USER, HOST);
    let mut child = host
        .command(USER, "stop --bridge=vmlan-host")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::HUP);
    child.wait().unwrap();
    drop(tap);
    host.run(USER, "stop --bridge=vmlan-host").unwrap();
    host.listing().assert_same(&before);
}
