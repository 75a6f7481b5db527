//! What stands in the way is named, and so is the way out.

use crate::caller::{Told, outer_sh, run, user_where, vmlan_path};

#[track_caller]
fn assert_refused(output: &std::process::Output, cause: &str, way_out: &str) {
    let error = output.error();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(output.stdout.is_empty());
    assert!(error.contains(cause) && error.contains(way_out), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn no_user_namespaces() {
    // The limit holds for the user namespace that it is set in.
    let script = "unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; \
                  exec \"$VMLAN\" run -- echo ran'";
    let output = outer_sh(script).output().unwrap();
    assert_refused(&output, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=");
}

#[test]
fn no_tun_device() {
    let run_where = |setup| {
        let mut command = user_where(setup, vmlan_path());
        command.args(["run", "--", "echo", "ran"]).output().unwrap()
    };
    assert_refused(&run_where("rm /dev/net/tun"), "/dev/net/tun is missing", "modprobe tun");
    let closed = run_where("chmod 600 /dev/net/tun");
    assert_refused(&closed, "/dev/net/tun may not be opened", "chmod 0666 /dev/net/tun");
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    for (args, telling) in [
        (&["-p", "http:80", "true"][..], "http"),
        (&["-p", "80", "true"], "80"),
        (&["--mtu", "100", "true"], "100"),
        (&["--mtu", "65521", "true"], "65521"),
        (&["--nonsense", "true"], "--nonsense"),
        (&[], "COMMAND"),
    ] {
        let output = run(args).output().unwrap();
        let error = output.error();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(telling) && error.lines().count() == 1, "{args:?}: {error}");
    }
}
