//! `vmlan shell`: what goes in and comes out of a machine is as it would be of a program here.

use std::process::Command;
use std::time::Duration;

use vmlan_e2e::instances::Image;
use vmlan_e2e::world::OUTSIDE;
use vmlan_e2e::{MachineHost, nameserver, pattern};

#[path = "../../../crates/cli/tests/run/pty.rs"]
mod pty;

use pty::Pty;

const LENGTH: usize = 4 << 20;

/// A moment that is enough for a command to come to its end, and not for one that waits for another.
const MOMENT: Duration = Duration::from_secs(10);

/// A server that is dropbear, and one that is OpenSSH's.
#[test]
fn a_command_is_as_one_of_the_hosts() {
    let host = MachineHost::new();
    host.start("one", "");
    command_is_as_one_of_the_hosts(&host, "one");
    // An interactive shell, and the end that it has said.
    let mut shell = Pty::start(&host.command("exec vmlan shell one"));
    shell.expect("$ ");
    shell.resize(33, 101);
    // Until it has heard of it.
    shell.type_in("until stty size | grep '33 101'; do sleep 0.1; done\n");
    shell.expect("33 101\r\n");
    shell.type_in("trap 'echo caught; exit 7' INT; echo wait''ing; while :; do sleep 0.1; done\n");
    shell.expect("waiting\r\n");
    shell.type_in("\x03");
    shell.expect("caught");
    assert_eq!(shell.finish().1.code(), Some(7));
    let mut shell = Pty::start(&host.command("exec vmlan shell one"));
    shell.expect("$ ");
    shell.type_in("(exit 5)\n\x04");
    assert_eq!(shell.finish().1.code(), Some(5));
    // A command on the terminal, which Ctrl-C ends, or which makes of it what it likes.
    let mut command = Pty::start(&host.command("exec vmlan shell one sh -c 'echo on; sleep 600'"));
    command.expect("on\r\n");
    command.type_in("\x03");
    assert_eq!(command.finish().1.code(), Some(130));
    // It may have come to reading by then or not.
    let read = "until read word; do sleep 0.1; done";
    let catch = format!("'trap \"echo caught\" INT; echo on; {read}; echo $word; exit 6'");
    let mut command = Pty::start(&host.command(&format!("exec vmlan shell one sh -c {catch}")));
    command.expect("on\r\n");
    command.type_in("\x03");
    command.expect("caught\r\n");
    command.type_in("word\n");
    command.expect("word\r\n");
    assert_eq!(command.finish().1.code(), Some(6));
    // A window that is closed.
    let mut shell = Pty::start(&host.command("exec vmlan shell one"));
    shell.expect("$ ");
    shell.hang_up();
    shell.wait();
    host.await_end("ssh -F");
    let left = host.guest("one", "ps | grep -c '[y]es\\|[s]leep 6' || true");
    assert_eq!(left, "0");
}

#[test]
fn a_command_of_openssh_is_as_one_of_the_hosts() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    let lines = format!("hostResolver: {{enabled: false}}\ndns: [{OUTSIDE}]");
    host.describe("deb", Image::Debian, &lines);
    host.run("vmlan start deb.yaml 2>&1");
    command_is_as_one_of_the_hosts(&host, "deb");
    // What follows the end of its output is done, and its end told.
    let script = "vmlan shell deb sh -c \"yes 2>/dev/null; sleep 1; touch done; exit 5\"";
    assert_eq!(host.run(&format!("({script} || echo $? >code) | head -n 1; cat code")), "y\n5");
    host.run("vmlan shell deb test -e done");
    // The name servers that it is to have are the first that it asks.
    let first = host.run("vmlan shell deb resolvectl dns eth0");
    assert!(first.contains(&format!("(eth0): {OUTSIDE}")), "{first}");
    assert!(host.run("vmlan shell deb getent ahostsv4 known.test").contains("203.0.113.7"));
}

#[track_caller]
fn command_is_as_one_of_the_hosts(host: &MachineHost, name: &str) {
    let status = |script: &str| host.output(script).status.code();
    for (words, code) in
        [("false", 1), ("sh -c 'exit 3'", 3), ("sh -c 'kill -9 $$'", 137), ("nosuchcommand", 127)]
    {
        assert_eq!(status(&format!("vmlan shell {name} {words}")), Some(code), "{words}");
        // Whether anybody reads what it says or not.
        let read = format!("(vmlan shell {name} {words} || echo $? >code) | cat; exit $(cat code)");
        assert_eq!(status(&read), Some(code), "{words}");
    }

    let words = r#"'a b' "it's" '"' '$HOME' '*' '\' '' '
' é"#;
    let here = host.run(&format!("/usr/bin/printf '[%s]' {words}"));
    assert_eq!(host.run(&format!("vmlan shell {name} printf '[%s]' {words}")), here);
    assert_eq!(host.run(&format!("vmlan shell --workdir /usr/bin {name} pwd")), "/usr/bin");
    assert_eq!(
        host.run(&format!("cd /; vmlan shell {name} sh -c 'pwd; echo $HOME' | uniq | wc -l")),
        "1"
    );

    // Bytes of all values, in and out, by a pipe and by a file.
    let mut bytes = std::fs::File::create(host.home().join("bytes")).expect("a file");
    pattern::send(&mut bytes, 1, LENGTH).expect("bytes can be written");
    host.run(&format!("cat bytes | vmlan shell {name} cat | cmp - bytes"));
    host.run(&format!("vmlan shell {name} cat <bytes >back; cmp bytes back"));

    // Who writes without end is ended when nobody reads it any more.
    let mut endless = Command::new("timeout");
    let inner = host.command(&format!("vmlan shell {name} yes | head -n 1"));
    endless.arg(MOMENT.as_secs().to_string()).arg(inner.get_program()).args(inner.get_args());
    let said = vmlan_e2e::process::run(&mut endless, 2 * MOMENT);
    assert_eq!(said, "y\n");
    // Who writes nothing is not.
    let quiet = format!("(vmlan shell {name} sh -c 'sleep 1; exit 9' || echo $?) | cat");
    assert_eq!(host.run(&quiet), "9");
    let silent = "vmlan shell NAME sh -c 'sleep 1; echo end >&2' 2>said | true; cat said";
    assert_eq!(host.run(&silent.replace("NAME", name)), "end");
}
