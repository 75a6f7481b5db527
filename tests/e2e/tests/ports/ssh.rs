//! ssh in the place of the agent.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vmlan_e2e::World;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{Process, run};
use vmlan_e2e::server::{echo, echo_udp, exchange};
use vmlan_vm::ports::{Local, PortEvent, Ssh};

use crate::scene::{LOOPBACK, Scene, echoes, is_refused, within};

/// A world with a server for ssh in the guest, and how ssh reaches it: without waiting for agents.
fn world_with_ssh(dir: &Path) -> (World, Ssh, Process) {
    let world = World::with(&["--forward", "127.0.0.1:60022=192.168.5.15:22"]);
    let at = |name: &str| dir.join(name).display().to_string();
    run(Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f", &at("key")]), SOON);
    run(Command::new("dropbearkey").args(["-t", "ed25519", "-f", &at("host")]), SOON);
    fs::create_dir_all(dir.join("root/.ssh")).expect("a directory");
    fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o700)).expect("its mode");
    fs::copy(dir.join("key.pub"), dir.join("root/.ssh/authorized_keys")).expect("a key");
    let config = format!(
        "Host guest\n Hostname 127.0.0.1\n Port 60022\n User root\n IdentityFile {}\n \
         IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n \
         BatchMode yes\n LogLevel ERROR\n",
        at("key")
    );
    fs::write(dir.join("ssh.config"), config).expect("a file");
    let mut server = world.guest.command("sh");
    // The mounts are those of a mount namespace that `ip` has made.
    server.args(["-c", r#"mount --bind "$0/root" /root && exec dropbear -FEsr "$0/host" -p "$1""#]);
    server.arg(dir).arg("192.168.5.15:22");
    let server = Process::spawn(&mut server);
    let config = dir.join("ssh.config");
    (world, Ssh { config, host: "guest".into(), after: Duration::ZERO }, server)
}

#[test]
fn without_an_agent_ssh_leads_to_what_the_network_cannot_reach() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (world, ssh, _server) = world_with_ssh(dir.path());
    let mut scene = Scene::on(world, dir, "  []", |config| config.ssh = Some(ssh));
    scene.until(|event| *event == PortEvent::SshStandsIn);
    for at in ["127.0.0.1:8001", "[::1]:8002", "0.0.0.0:8003", "[::]:8004"] {
        echo(scene.tcp(at));
    }
    for port in 8001..=8004 {
        for host in ["127.0.0.1", "[::1]"] {
            let to: SocketAddr = format!("{host}:{port}").parse().expect("an address");
            echoes(within(SOON, to, || scene.world.host.connect(to).ok()));
        }
    }
    // An agent does it better: the ports change hands, and datagrams come too.
    scene.start_agent();
    echo_udp(scene.udp("127.0.0.1:8001"));
    let udp = Local::Udp((LOOPBACK, 8001).into());
    within(SOON, "every port without ssh", || {
        let list = scene.list();
        let is_there = list.iter().any(|state| state.port.local == udp);
        (is_there && list.iter().all(|state| state.problem.is_none())).then_some(())
    });
    echoes(scene.connect("127.0.0.1:8001"));
    assert!(!scene.dir.path().join("ports.ssh").exists());
}

#[test]
fn on_somebody_elses_network_ssh_does_it_all() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (world, ssh, _server) = world_with_ssh(dir.path());
    let scene = Scene::on(world, dir, "  []", |config| {
        config.control = None;
        config.ssh = Some(ssh);
    });
    let server = scene.tcp("0.0.0.0:8001");
    let connect = || scene.world.host.connect(SocketAddr::from((LOOPBACK, 8001)));
    let client = within(SOON, "a forward", || connect().ok());
    exchange(client, server.accept().expect("a client").0, 1 << 20);
    drop(server);
    within(SOON, "its end", || connect().is_err_and(|e| is_refused(&e)).then_some(()));
}
