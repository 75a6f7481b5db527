//! The guest's own resolv.conf, hosts and nsswitch.conf, whatever the host has there.

use crate::caller::{Told, outer_sh, run_sh, user_where, vmlan_path};

#[test]
fn the_files_name_the_guests_resolver() {
    let text =
        run_sh("cat /etc/resolv.conf; getent hosts localhost; getent ahosts $(hostname)").text();
    assert!(text.starts_with("nameserver 192.168.5.3\n"), "{text}");
    assert!(text.contains("localhost"), "{text}");
    assert!(run_sh("cat /etc/nsswitch.conf").text().contains("hosts: files dns\n"));
}

#[test]
fn the_files_are_everybodys_to_read() {
    let script = "umask 077; \"$VMLAN\" run -- stat -c %a /etc/resolv.conf /etc/hosts";
    assert_eq!(outer_sh(script).output().unwrap().text(), "644\n644\n");
}

/// Runs a script in a guest on a host that `setup` has changed. /run and /etc are copies.
fn on_host(setup: &str, script: &str) -> String {
    let prepared = format!(
        "mount -t tmpfs tmpfs /run
         mount -t tmpfs tmpfs /mnt; mkdir /mnt/up /mnt/work
         mount -t overlay -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work overlay /etc
         {setup}"
    );
    let mut command = user_where(&prepared, vmlan_path());
    command.args(["run", "--", "sh", "-c", script]).output().unwrap().text()
}

const ASK: &str = "cat /etc/resolv.conf; getent hosts host.lima.internal";

fn assert_resolves(text: &str) {
    assert!(text.starts_with("nameserver 192.168.5.3\n"), "{text}");
    assert!(text.contains("host.lima.internal"), "{text}");
}

#[test]
fn a_link_to_systemd_resolveds_file() {
    let setup = "mkdir -p /run/systemd/resolve; rm /etc/resolv.conf
        printf 'nameserver 127.0.0.53\\nsearch corp.example\\n' >/run/systemd/resolve/stub-resolv.conf
        touch /run/systemd/resolve/io.systemd.Resolve
        ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf";
    let text = on_host(setup, &format!("{ASK}; ls /run/systemd/resolve"));
    assert_resolves(&text);
    assert!(text.contains("search corp.example"), "{text}");
    assert!(!text.contains("io.systemd.Resolve") && !text.contains("127.0.0.53"), "{text}");
}

#[test]
fn no_resolv_conf_at_all_and_a_link_to_nowhere() {
    assert_resolves(&on_host("rm /etc/resolv.conf /etc/hosts", ASK));
    assert_resolves(&on_host("ln -sf /run/absent/resolv.conf /etc/resolv.conf", ASK));
    let text = on_host("rm /etc/resolv.conf /etc/hosts", "cat /etc/hosts; test -f /etc/passwd");
    assert!(text.contains("127.0.0.1\tlocalhost"), "{text}");
}

#[test]
fn sockets_of_the_hosts_resolvers_are_hidden() {
    let setup =
        "mkdir /run/nscd /run/avahi-daemon; touch /run/nscd/socket /run/avahi-daemon/socket";
    assert_eq!(on_host(setup, "ls /run/nscd /run/avahi-daemon | grep -c socket; true"), "0\n");
}

#[test]
fn control_sockets_of_vmlan_are_hidden() {
    let places =
        ["/run/vmlan", "/run/user/1/vmlan", "/run/home/.lima/_networks", "/run/lima/_networks"];
    let made: String =
        places.iter().map(|at| format!("mkdir -p {at}/user-v2; touch {at}/net.sock\n")).collect();
    let environment = [
        ("XDG_RUNTIME_DIR", "/run/user/1", &[0, 1, 2][..]),
        ("LIMA_HOME", "/run/lima", &[0, 3]),
        ("LIMA_HOME", "", &[0, 2]),
    ];
    for (name, value, hidden) in environment {
        let mut command = user_where(&format!("mount -t tmpfs tmpfs /run\n{made}"), vmlan_path());
        command.args(["run", "--", "ls", "-d"]).args(places.map(|at| format!("{at}/net.sock")));
        for name in ["XDG_RUNTIME_DIR", "LIMA_HOME"] {
            command.env_remove(name);
        }
        let output = command.env("HOME", "/run/home").env(name, value).output().unwrap();
        let seen = String::from_utf8_lossy(&output.stdout);
        for (i, place) in places.iter().enumerate() {
            assert_eq!(seen.contains(place), !hidden.contains(&i), "{place}, {name}={value}");
        }
    }
}

/// The host changes networks while the command runs.
#[test]
fn files_that_the_host_replaces_stay_the_guests() {
    let setup = "mkdir -p /run/nscd
        (
            cd /etc
            for n in $(seq 400); do test -e /run/up && break; sleep 0.05; done
            for n in 1 2 3; do
                echo nameserver 10.0.0.$n >new; mv new resolv.conf; sleep 0.05
                rm hosts; sleep 0.15; echo 10.0.0.$n odd >hosts
            done
            rmdir /run/nscd; mkdir /run/nscd; touch /run/nscd/socket
            touch /run/done
        ) >/dev/null 2>&1 &
        chmod 777 /run";
    // What is removed and made again may be seen for the moment that it takes to hide it.
    let script = "touch /run/up; until test -e /run/done; do sleep 0.05; done
        until ! ls /run/nscd | grep -q socket && ! grep -q odd /etc/hosts; do sleep 0.05; done
        cat /etc/resolv.conf /etc/hosts";
    let text = on_host(setup, script);
    assert!(text.starts_with("nameserver 192.168.5.3\n") && text.contains("localhost"), "{text}");
}

#[test]
fn the_hosts_own_names_are_kept() {
    let setup = "echo '10.9.8.7 attic # nas' >>/etc/hosts
                 echo 'hosts: resolve [!UNAVAIL=return] files' >/etc/nsswitch.conf";
    let text = on_host(setup, "getent hosts attic; cat /etc/nsswitch.conf");
    assert!(text.contains("10.9.8.7"), "{text}");
    assert!(text.contains("hosts: files dns") && !text.contains("resolve"), "{text}");
}

#[test]
fn a_container_that_hides_parts_of_proc() {
    let mut command = user_where("mount --bind /dev/null /proc/version", vmlan_path());
    let output =
        command.args(["run", "--", "sh", "-c", "ping -c1 -W5 192.168.5.2"]).output().unwrap();
    assert!(output.error().starts_with("vmlan: /proc shows"), "{}", output.error());
    assert_eq!(output.error().lines().count(), 1);
    assert!(output.text().contains("1 received"));
}
