//! What goes wrong under a network: killed daemons and guests, full and read-only disks.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::lab::{Guest, Lab, eventually};

/// It takes some 10 ms, and a guest's kernel repeats a segment after 200 ms.
const BOUND: Duration = Duration::from_secs(2);

#[test]
fn traffic_flows_again_after_a_daemon_is_killed_and_old_flows_are_reset() {
    let lab = Lab::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let sink = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        // Until the daemon is gone, whose socket it is.
        let mut data = Vec::new();
        let _ = stream.read_to_end(&mut data);
        data.len()
    });
    let mut guest = Guest::start(&lab, &["--name", "a"]);
    let address = guest.addresses();
    let reset = lab.0.path("reset");
    let send = format!(
        "bash -c 'trap \"\" PIPE; exec 3<>/dev/tcp/10.71.0.2/{port} && while echo data >&3; do sleep \
         0.02; done; echo reset >{}' 2>/dev/null & echo started",
        reset.display()
    );
    assert_eq!(guest.line(&send), "started");
    let first = lab.pid().unwrap();
    thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    kill_process(first, Signal::KILL).unwrap();
    let ping = "until ping -q -c 1 -W 0.1 10.71.0.1 >/dev/null 2>&1; do :; done; echo back";
    assert_eq!(guest.line(ping), "back");
    let back = killed.elapsed();
    eventually("the flow's reset", || reset.exists().then_some(()));
    let over = killed.elapsed();
    println!("traffic flowed again after {back:?}, the old flow was reset after {over:?}");
    assert!(back < BOUND && over < BOUND, "{back:?} {over:?}");
    assert!(sink.join().unwrap() > 0);
    assert_eq!(guest.addresses(), address);
    assert_ne!(lab.pid(), Some(first));
}

/// Dead processes that a process or one of its children has not seen the end of.
fn zombies(of: u32) -> Vec<String> {
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|p| fs::read_to_string(p.path().join("stat")).ok());
    // Number, name, state and parent.
    let processes: Vec<(u32, String, u32)> = stats
        .filter_map(|stat| {
            let (pid, rest) = stat.split_once(" (")?;
            let (name, rest) = rest.rsplit_once(") ")?;
            let (state, rest) = rest.split_once(' ')?;
            let parent = rest.split_once(' ')?.0.parse().ok()?;
            Some((pid.parse().ok()?, format!("{state} {name}"), parent))
        })
        .collect();
    let is_child = |pid| processes.iter().any(|(p, _, parent)| *p == pid && *parent == of);
    let family = processes.iter().filter(|(_, _, parent)| *parent == of || is_child(*parent));
    family.filter(|(_, name, _)| name.starts_with('Z')).map(|(_, name, _)| name.clone()).collect()
}

#[test]
fn a_killed_daemon_leaves_no_zombie() {
    let lab = Lab::new();
    // It starts the first daemon, and the process that serves its card those that follow.
    let mut guest = Guest::start(&lab, &["--name", "a"]);
    let ping = "until ping -q -c 1 -W 0.1 10.71.0.1 >/dev/null 2>&1; do :; done; echo back";
    for _ in 0..3 {
        let daemon = lab.pid().unwrap();
        kill_process(daemon, Signal::KILL).unwrap();
        eventually("another daemon", || lab.pid().filter(|pid| *pid != daemon));
        assert_eq!(guest.line(ping), "back");
        let none = || zombies(guest.child.id()).is_empty().then_some(());
        eventually("no zombie", none);
    }
}

/// Runs a script where `$HOME_DIR` is a file system of its own of 128 KiB.
fn on_a_small_disk(script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=128k tmpfs \"$LIMA_HOME\" && cd \"$LIMA_HOME\" || exit 9\n\
         mkdir _config && echo 'networks: {{lab: {{mode: user-v2, gateway: 10.71.0.1}}}}' \
         >_config/networks.yaml\n{script}\n\
         for p in _networks/*/*.pid; do kill -9 $(cat $p) 2>/dev/null; done; true"
    );
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
        ])
        .arg(script)
        .env("LIMA_HOME", dir.path())
        .env("VMLAN", env!("CARGO_BIN_EXE_vmlan"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out} {error}");
    format!("{out}{error}")
}

#[test]
fn a_full_disk_is_named_and_nothing_half_written() {
    let said = on_a_small_disk(
        "cat /dev/zero >fill 2>/dev/null\n\
         $VMLAN run --network lima:lab -- true 2>&1; echo code $?\n\
         $VMLAN network start lab 2>&1; echo code $?\n\
         $VMLAN network create dmz --gateway 10.72.0.1 2>&1; echo code $?\n\
         rm fill; cat _config/networks.yaml; ls _config; find _networks -type f -size +0\n\
         $VMLAN run --network lima:lab -- echo well 2>&1",
    );
    let no_space = "No space left on device";
    assert!(said.contains("code 125\n") && said.matches("code 1\n").count() == 2, "{said}");
    assert_eq!(said.matches(no_space).count(), 3, "{said}");
    let rest = said.rsplit_once("code 1\n").unwrap().1;
    let yaml = "networks: {lab: {mode: user-v2, gateway: 10.71.0.1}}\nnetworks.yaml\nwell\n";
    assert_eq!(rest, yaml, "{said}");
}

#[test]
fn a_read_only_home_is_named() {
    let said = on_a_small_disk(
        "mount -o remount,ro . || exit 8\n\
         timeout 30 $VMLAN run --network lima:lab -- true 2>&1; echo code $?\n\
         timeout 30 $VMLAN network start lab 2>&1; echo code $?\n\
         timeout 30 $VMLAN network create dmz --gateway 10.72.0.1 2>&1; echo code $?\n\
         timeout 30 $VMLAN network stop lab 2>&1; echo code $?\n\
         timeout 30 $VMLAN network list --json 2>&1 | head -1 | cut -c 1-13",
    );
    assert_eq!(said.matches("Read-only file system").count(), 3, "{said}");
    assert!(said.contains("code 125\n") && said.contains("code 0\n{\"name\":\"lab\""), "{said}");
}

#[test]
fn a_path_that_is_too_long_for_sockets_is_refused_with_the_limit() {
    let lab = Lab::new();
    let home = lab.0.path(&"x".repeat(90));
    let mut command = lab.run_alone(&["--network", "lima:user-v2", "--", "true"]);
    let output = command.env("LIMA_HOME", &home).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(error.contains("too long: must be less than UNIX_PATH_MAX=108 bytes"), "{error}");
    assert!(!home.join("_networks").exists());
}

/// Processes with this home.
fn processes(lab: &Lab) -> Vec<String> {
    let wanted = format!("LIMA_HOME={}", lab.0.path("").display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter(|process| {
        let environ = fs::read(process.path().join("environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|one| one == wanted.as_bytes())
    });
    let name = |p: fs::DirEntry| fs::read_to_string(p.path().join("cmdline")).unwrap_or_default();
    found.map(name).collect()
}

#[test]
fn nothing_is_left_of_many_guests() {
    const ROUNDS: usize = 25;
    let lab = Lab::new();
    for round in 0..ROUNDS {
        let guests: Vec<Child> = (0..8)
            .map(|n| {
                let name = format!("g{n}");
                let mut command = lab.run(&[]);
                match n % 4 {
                    // One that would stay, one without a name, and two that come and go.
                    0 => command.args(["--name", &name, "--", "sleep", "1000"]),
                    1 => command.args(["--", "true"]),
                    _ => command.args(["--name", &name, "--", "true"]),
                };
                command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        if round % 5 == 4
            && let Some(pid) = lab.pid()
        {
            let _ = kill_process(pid, Signal::KILL);
        }
        for (n, mut guest) in guests.into_iter().enumerate() {
            if n % 4 == 0 {
                // Killed at a different point of its start each time.
                thread::sleep(Duration::from_millis(2 * round as u64));
                guest.kill().unwrap();
            }
            guest.wait().unwrap();
        }
    }
    // The daemon may have been killed last. What it has left is cleared by the next.
    assert!(!processes(&lab).is_empty() || !lab.left().is_empty());
    lab.output(&["--", "true"]);
    eventually("the end of every process", || processes(&lab).is_empty().then_some(()));
    assert_eq!(lab.left(), Vec::<String>::new());
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.contains(&*lab.0.path("").to_string_lossy()), "{sockets}");
}
