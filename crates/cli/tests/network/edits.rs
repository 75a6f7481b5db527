//! `network create` and `network delete`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Home, NETWORKS};

#[test]
fn a_network_comes_and_goes() {
    let home = Home::with(NETWORKS);
    let said = home.network(&["create", "new", "--mode", "host", "--gateway", "10.73.0.1/25"]);
    assert_eq!(said.code, Some(0));
    assert!(said.err.ends_with("use it as lima:new\n"), "{}", said.err);
    let new = "  new:\n    mode: host\n    gateway: 10.73.0.1\n    dhcpEnd: 10.73.0.126\n    \
               netmask: 255.255.255.128\n";
    assert_eq!(home.text(), format!("{NETWORKS}{new}"));
    let listed = home.network(&["list", "new", "--json"]).quiet();
    assert!(listed.contains(r#""dhcpEnd":"10.73.0.126""#), "{listed}");
    assert_eq!(home.network(&["delete", "new"]).quiet(), "");
    assert_eq!(home.text(), NETWORKS);
}

#[test]
fn user_v2_is_the_default_mode_and_24_the_default_prefix() {
    let home = Home::with("");
    assert_eq!(home.network(&["create", "lab", "--gateway", "10.73.0.1"]).code, Some(0));
    let want = "networks:\n  lab:\n    mode: user-v2\n    gateway: 10.73.0.1\n    \
                netmask: 255.255.255.0\n";
    assert_eq!(home.text(), want);
}

#[test]
fn a_bridged_network_has_an_interface() {
    let home = Home::with("");
    let args = ["create", "lan", "--mode", "bridged", "--interface", "br0"];
    assert_eq!(home.network(&args).code, Some(0));
    assert_eq!(home.text(), "networks:\n  lan:\n    mode: bridged\n    interface: br0\n");
}

#[test]
fn what_cannot_be_created() {
    let home = Home::with(NETWORKS);
    let long = "x".repeat(70);
    let table: &[(&[&str], i32, &str)] = &[
        (&["lab", "--gateway", "10.73.0.1"], 1, "network `lab` already exists"),
        (&["user-v2", "--gateway", "10.73.0.1"], 1, "network `user-v2` already exists"),
        (&["a b", "--gateway", "10.73.0.1"], 2, "invalid network name `a b`"),
        (&["../x", "--gateway", "10.73.0.1"], 2, "invalid network name `../x`"),
        (&["x: {}\ny", "--gateway", "10.73.0.1"], 2, "invalid network name"),
        (&["new", "--mode", "nat"], 2, "there is no mode `nat`"),
        (&["new"], 2, "network mode `user-v2` requires specifying gateway; --gateway 192.168.1"),
        (&["new", "--mode", "bridged"], 2, "requires specifying interface"),
        (
            &["new", "--mode", "bridged", "--gateway", "10.73.0.1"],
            2,
            "network mode `bridged` does not support specifying gateway",
        ),
        (
            &["new", "--gateway", "10.73.0.1", "--interface", "br0"],
            2,
            "network mode `user-v2` does not support specifying interface",
        ),
        (
            &["new", "--mode", "bridged", "--interface", "br0 --pidfile=/x"],
            2,
            "invalid interface `br0 --pidfile=/x`",
        ),
        (&["new", "--gateway", "x"], 2, "`x` is not an IPv4 address"),
        (&["new", "--gateway", "10.73.0.1/33"], 2, "`10.73.0.1/33` is not an IPv4 address"),
        (&["new", "--gateway", "127.0.0.1"], 2, "invalid IP address: 127.0.0.1"),
        (&["new", "--gateway", "10.73.0.0/24"], 2, "is the network address of 10.73.0.0/24"),
        (&["new", "--gateway", "10.73.0.1/30"], 2, "too small"),
        (
            &["new", "--gateway", "10.71.0.1"],
            1,
            "10.71.0.0/24 overlaps network `lab` (10.71.0.0/24); --gateway 192.168.1",
        ),
        (&["new", "--gateway", "10.72.3.1"], 1, "overlaps network `old` (10.72.0.0/16)"),
        (&["new", "--gateway", "192.168.5.1"], 1, "overlaps the default network"),
        (&["new", "--gateway", "192.168.104.1"], 1, "overlaps network `user-v2`"),
        (&[&long, "--gateway", "10.73.0.1"], 1, "too long: must be less than UNIX_PATH_MAX="),
    ];
    for (args, code, want) in table {
        let error = home.network(&[&["create"], *args].concat()).failed(*code);
        assert!(error.contains(want), "{args:?}: no {want:?} in {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(home.text(), NETWORKS);
}

/// On a host of the test's own, whose routes are known.
#[test]
#[cfg(target_os = "linux")]
fn a_route_of_the_host_is_no_free_address() {
    let home = Home::with(NETWORKS);
    let create = |more: &str| {
        let script = format!(
            "ip link add up0 type veth peer name up1 && ip link set up1 up &&
             ip link set up0 up && ip addr add 10.74.0.9/16 dev up0 &&
             exec {} network create new --gateway 10.74.5.1/24 {more}",
            env!("CARGO_BIN_EXE_vmlan")
        );
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", &script]);
        command.env("LIMA_HOME", home.path("")).output().unwrap()
    };
    let refused = create("");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("overlaps the host's route to 10.74.0.0/16 on up0"), "{error}");
    assert_eq!(home.text(), NETWORKS);
    let forced = create("--force");
    assert_eq!(forced.status.code(), Some(0), "{}", String::from_utf8_lossy(&forced.stderr));
    assert!(home.text().contains("10.74.5.1"));
}

#[test]
fn a_network_in_use_stays() {
    let home = Home::with(NETWORKS);
    home.instance("web", "networks:\n- lima: old\n");
    let error = home.network(&["delete", "lan", "old"]).failed(1);
    assert_eq!(error, "vmlan: network `old` is used by web; see --force\n");
    home.instance("broken", "networks: [\n");
    let error = home.network(&["delete", "lan"]).failed(1);
    assert!(error.contains("may be used by broken"), "{error}");
    assert_eq!(home.text(), NETWORKS);
    assert_eq!(home.network(&["delete", "--force", "lan", "old"]).quiet(), "");
    let left = "# mine\nnetworks:\n  lab: # the lab\n    mode: user-v2\n    gateway: 10.71.0.1\n";
    assert_eq!(home.text(), left);
}

#[test]
fn what_is_not_there_cannot_be_deleted() {
    let home = Home::with(NETWORKS);
    let error = home.network(&["delete", "lab", "none"]).failed(1);
    assert!(error.contains("no network `none`"), "{error}");
    let error = home.network(&["rm", "user-v2"]).failed(1);
    assert!(error.contains("network `user-v2` is built in"), "{error}");
    assert_eq!(home.text(), NETWORKS);
    let said = home.network(&["remove", "-f", "none", "lab", "lab"]);
    assert_eq!(said.code, Some(0));
    assert!(said.err.contains("no network `none`"), "{}", said.err);
    assert!(!home.text().contains("lab"));
}

#[test]
fn user_v2_comes_back_as_it_is_built_in() {
    let home = Home::with("networks:\n  user-v2: {mode: user-v2, gateway: 10.73.0.1}\n");
    let said = home.network(&["delete", "user-v2"]);
    assert!(said.err.contains("`user-v2` is still there, with its built-in"), "{}", said.err);
    assert!(home.network(&["list"]).quiet().contains("192.168.104.1/24"));
}

#[test]
fn a_file_that_cannot_be_replaced_stays_as_it_is() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    // Root may write everywhere but into a directory that is immutable or read-only.
    let home = Home::with(NETWORKS);
    let script = r#"mount --bind "$1/_config" "$1/_config" &&
        mount -o remount,ro,bind "$1/_config" &&
        exec "$2" network create new --gateway 10.73.0.1"#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(home.path(""))
        .arg(env!("CARGO_BIN_EXE_vmlan"))
        .env("LIMA_HOME", home.path(""))
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("could not replace") && error.contains("Read-only"), "{error}");
    assert_eq!(home.text(), NETWORKS);
    assert_eq!(fs::read_dir(home.path("_config")).unwrap().count(), 1);
    assert_eq!(fs::metadata(home.networks_yaml()).unwrap().permissions().mode() & 0o777, 0o644);
}
