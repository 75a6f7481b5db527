//! Processes of a machine that are killed: what is left says so, and starts again.

use vmlan_e2e::MachineHost;
use vmlan_e2e::netns::SOON;

fn kill(host: &MachineHost, pid: &str) {
    host.run(&format!("kill -KILL {pid}"));
}

#[track_caller]
fn works(host: &MachineHost) {
    host.until("vmlan shell one true", SOON);
    host.guest("one", "ping -c 1 -W 5 192.168.5.2");
    assert!(host.guest("one", "ip -4 address show dev eth0").contains("192.168.5.15/"));
    assert_eq!(host.status("one"), "Running");
}

#[track_caller]
fn nothing_is_left(host: &MachineHost) {
    host.await_end("qemu-system");
    host.await_end("vmlan");
    let files = host.run("ls .lima/one");
    for file in ["ha.sock", "qmp.sock", "agent.sock", "qemu.pid"] {
        assert!(!files.lines().any(|line| line == file), "{file} is still there");
    }
}

#[test]
fn killed_processes_leave_a_clean_state() {
    let host = MachineHost::new();
    host.start("one", "");

    // The network's daemon comes back, with the machine's address and ports.
    let daemon = host.pid("one", "default.pid");
    kill(&host, &daemon);
    host.until(&format!("[ \"$(cat .lima/one/default.pid)\" != {daemon} ]"), SOON);
    works(&host);

    // The machine: what was beside it goes.
    kill(&host, &host.pid("one", "qemu.pid"));
    host.until("vmlan list | grep -q Stopped", SOON);
    nothing_is_left(&host);
    host.run("vmlan start one");
    works(&host);

    // Who watches it: the listing tells, and a start replaces the machine.
    let machine = host.pid("one", "qemu.pid");
    kill(&host, &host.pid("one", "ha.pid"));
    let listed = host.listed("one").expect("a machine");
    assert_eq!(listed["status"], "Broken");
    let why = listed["errors"][0].as_str().expect("a reason");
    assert!(why.contains("host agent") && why.contains("vmlan start one"), "{why}");
    host.run("vmlan start one");
    works(&host);
    assert_ne!(host.pid("one", "qemu.pid"), machine);
    assert_eq!(host.processes("qemu-system").len(), 1);

    // Or it is stopped.
    kill(&host, &host.pid("one", "ha.pid"));
    host.run("vmlan stop one");
    assert_eq!(host.status("one"), "Stopped");
    nothing_is_left(&host);
}
