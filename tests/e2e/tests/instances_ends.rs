//! Processes of a machine that are killed: what is left says so, and starts again.

use std::time::Duration;

use vmlan_e2e::netns::SOON;
use vmlan_e2e::world::OUTSIDE;
use vmlan_e2e::{Heartbeat, MachineHost};

/// How long a network is away whose daemon is killed.
const BOUND: Duration = Duration::from_secs(2);

/// The files of the network's daemon.
const NETWORK: &str = ".lima/_networks/user-v2";

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

/// Kills the network's daemon, and returns once it is dead.
fn kill_network(host: &MachineHost) {
    host.run(&format!(
        "p=$(cat {NETWORK}/usernet_user-v2.pid); kill -KILL $p
         while grep -qs '^State:\t[^Z]' /proc/$p/status; do :; done"
    ));
}

/// What the network's nameserver says.
fn look_up(host: &MachineHost, what: &str) -> String {
    host.run(&format!("vmlan dns query --network user-v2 {what} || true"))
}

#[test]
fn a_machine_whose_network_is_killed_goes_on_at_once_and_keeps_its_names() {
    let host = MachineHost::new();
    host.start("one", "networks:\n- lima: user-v2");
    let six = "ip -6 -o address show dev eth0 scope global | grep -v tentative | grep -o 'fd[^/]*'";
    let six = host.until(&format!("vmlan shell one sh -c \"{six}\""), SOON);
    let name = "lima-one.internal";
    let names = |host: &MachineHost| {
        let aaaa = look_up(host, &format!("{name} AAAA")).contains(&format!("\tAAAA\t{six}"));
        let ptr = look_up(host, &six).contains(&format!("\tPTR\t{name}."));
        [aaaa, ptr]
    };
    // It is in the file by then, or a moment later.
    host.until(&format!("grep {six} {NETWORK}/guests.json"), SOON);
    assert_eq!(names(&host), [true; 2]);

    let mut heartbeat = Heartbeat::listen(&host.outside, OUTSIDE);
    host.guest("one", &Heartbeat::script(OUTSIDE));
    let outage = heartbeat.outage(|| kill_network(&host));
    println!("a machine was without its network for {outage:?}");
    assert!(outage.traffic < BOUND && outage.reset < BOUND, "{outage:?}");
    assert_eq!(names(&host), [true; 2]);

    // What stands still says nothing by which it could be known.
    let machine = host.pid("one", "qemu.pid");
    host.run(&format!("kill -STOP {machine}"));
    kill_network(&host);
    let known = host.until(&format!("vmlan dns query --network user-v2 {name} A"), SOON);
    let now = names(&host);
    host.run(&format!("kill -CONT {machine}"));
    assert_eq!(now, [true; 2], "{known}");
    host.until("vmlan shell one true", SOON);
}
