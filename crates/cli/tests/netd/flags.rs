//! Each flag's bad values: one line that names what is wrong, and status 2.

use crate::support::vmlan;

fn refusal(args: &[&str]) -> (Option<i32>, String) {
    let output = vmlan().arg("netd").args(args).output().unwrap();
    assert!(output.stdout.is_empty(), "{args:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn bad_values_are_named_in_one_line() {
    let long = format!("/tmp/{}", "x".repeat(110));
    let twice = ["--listen-qemu", "/tmp/a", "--control", "/tmp/a"];
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["no guest could join", "--listen-qemu"]),
        (&["--subnet", "x"], &["'x'", "--subnet", "192.168.5.0/24"]),
        (&["--subnet", "10.0.0.0/33"], &["10.0.0.0/33", "--subnet"]),
        (&["--subnet", "10.0.0.0/30"], &["10.0.0.0/30", "too small"]),
        (&["--subnet", "127.0.0.0/8"], &["127.0.0.0/8"]),
        (&["--subnet", "224.0.0.0/24"], &["224.0.0.0/24"]),
        (&["--gateway", "1.2.3"], &["'1.2.3'", "--gateway"]),
        (&["--gateway", "10.0.0.1"], &["10.0.0.1", "192.168.5.0/24"]),
        (&["--gateway", "192.168.5.255"], &["192.168.5.255"]),
        (&["--mtu", "many"], &["'many'", "--mtu"]),
        (&["--mtu", "100"], &["100", "--mtu", "576"]),
        (&["--mtu", "65521"], &["65521", "--mtu", "65520"]),
        (&["--listen-qemu", ""], &["--listen-qemu", "empty"]),
        (&["--listen-qemu", &long], &["--listen-qemu", "115 bytes", "107"]),
        (&["--control", &long], &["--control", "115 bytes", "107"]),
        (&twice, &["/tmp/a", "--control", "twice"]),
        (&["--forward", "80"], &["'80'", "--forward"]),
        (&["--forward", "80=1.2.3.4:80/x"], &["'80=1.2.3.4:80/x'", "--forward", "`x`"]),
        (&["--forward", "80=1.2.3.4:80"], &["1.2.3.4", "--forward 80=", "192.168.5.0/24"]),
        (&["--host-loopback", "0"], &["0", "--host-loopback"]),
        (&["--host-loopback", "80,x"], &["'x'", "--host-loopback"]),
        (&["--host-loopback", "80", "--no-host-loopback"], &["--no-host-loopback"]),
        (&["--ready-fd", "x"], &["'x'", "--ready-fd"]),
        (&["--ready-fd", "1"], &["--ready-fd", "standard"]),
        (&["--ready-fd", "999"], &["--ready-fd", "999", "not open"]),
        (&["--listen-dgram", &long], &["--listen-dgram", "115 bytes"]),
        (&["--listen-dgram", "/tmp/a", "--listen-qemu", "/tmp/a"], &["/tmp/a", "twice"]),
        (&["--fd", "x"], &["'x'", "--fd"]),
        (&["--fd", "0"], &["--fd 0", "standard"]),
        (&["--fd", "999"], &["--fd 999", "not open"]),
        (&["--fd", "9", "--ready-fd", "9"], &["--ready-fd 9", "twice"]),
        (&["--netns", ""], &["--netns", "no path"]),
        (&["--netns", "/x,eth0"], &["--netns", "'/x,eth0'", "`eth0`"]),
        (&["--netns", "/x,ifname=a/b"], &["--netns", "`a/b`"]),
        (&["--fault", "loss=lots"], &["--fault", "'loss=lots'"]),
        (&["--nonsense"], &["--nonsense"]),
        (&["--listen-qmu", "/tmp/a"], &["--listen-qmu", "similar", "--listen-qemu"]),
    ];
    for (args, wants) in table {
        // All of them are found before the daemon tries to listen.
        let listen: &[&str] = if args.is_empty() { &[] } else { &["--listen-qemu", "/dev/null/x"] };
        let (code, text) = refusal(&[listen, args].concat());
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert!(text.starts_with("vmlan: ") && text.ends_with('\n'), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        for want in *wants {
            assert!(text.contains(want), "{args:?}: no {want:?} in {text}");
        }
    }
}

#[test]
fn the_version_is_one_line() {
    let output = vmlan().arg("--version").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("vmlan {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_goes_to_standard_output() {
    let output = vmlan().args(["netd", "--help"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for flag in ["--subnet", "--listen-qemu", "--forward", "--control"] {
        assert!(text.contains(flag), "{flag}");
    }
    assert!(!text.contains("--fault"));
}
