//! Endings, streams, identity and surroundings of a command without a terminal.

use std::fs;
use std::io::Write;

use crate::caller::{
    Told, UID, caller_where, ending, feed, is_root, outer_sh, run, run_sh, user, vmlan_path,
};

#[test]
fn the_exit_code_is_the_commands() {
    for code in [0, 1, 42, 255] {
        let output = run_sh(&format!("exit {code}"));
        assert_eq!(output.status.code(), Some(code), "{}", output.error());
        assert_eq!(output.error(), "");
    }
    assert!(run(["--", "true"]).status().unwrap().success());
    assert_eq!(run(["false"]).status().unwrap().code(), Some(1));
}

#[test]
fn death_by_signal_is_the_commands() {
    for signal in [1, 2, 9, 15, 34] {
        let output = run_sh(&format!("kill -{signal} $$"));
        assert_eq!(ending(output.status), format!("signal {signal}"), "{}", output.error());
    }
}

#[test]
fn what_cannot_be_executed_is_told_as_shells_do() {
    let absent = run(["--", "/nonexistent/command"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(127));
    assert_eq!(absent.error(), "vmlan: /nonexistent/command: command not found\n");
    let wrong = run(["--", "/etc/passwd"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(126));
    assert_eq!(wrong.error(), "vmlan: /etc/passwd: Permission denied\n");
}

#[test]
fn standard_streams_are_the_commands() {
    let input: Vec<u8> =
        (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = feed(run(["--", "cat"]), &input);
    assert!(output.stdout == input, "{} bytes of {}", output.stdout.len(), input.len());

    let output = run_sh("echo out; echo err >&2");
    assert_eq!((output.text(), output.error()), ("out\n".into(), "err\n".into()));
}

#[test]
fn input_that_the_command_leaves_is_the_callers() {
    let script = "\"$VMLAN\" run -- dd bs=3 count=1 status=none of=/dev/null; cat";
    assert_eq!(feed(outer_sh(script), b"abcdef").text(), "def");
}

#[test]
fn pipelines_end_as_they_should() {
    let output =
        outer_sh("\"$VMLAN\" run -- yes | head -1; echo ${PIPESTATUS[*]}").output().unwrap();
    assert_eq!(output.text(), "y\n141 0\n");
    assert_eq!(feed(outer_sh("\"$VMLAN\" run -- cat | wc -c"), b"hi\n").text().trim(), "3");
}

/// The reader of a pipe sees its end when the command closes it, though the command goes on.
#[test]
fn nobody_else_holds_the_commands_streams() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let script = format!(
        "mkfifo {0}/closed; \"$VMLAN\" run -- sh -c \
         'exec >&- 7>&-; read line <{0}/closed; exit $line' 7>&1 | (cat; echo 5 >{0}/closed); \
         echo ${{PIPESTATUS[0]}}",
        dir.path().display()
    );
    assert_eq!(outer_sh(&script).output().unwrap().text(), "5\n");
}

#[test]
fn other_descriptors_are_inherited() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"five").unwrap();
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let script = format!("\"$VMLAN\" run -- sh -c 'cat <&5' 5<{}", file.path().display());
    assert_eq!(outer_sh(&script).output().unwrap().text(), "five");
    let listing = "ls -l /proc/self/fd | grep -c -e tun -e socket -e signalfd; true";
    assert_eq!(run_sh(listing).text(), "0\n");
}

#[test]
fn the_command_is_the_caller() {
    for question in [&["id"][..], &["sh", "-c", "umask; pwd; ulimit -a; nice"]] {
        let outside = user(question[0]).args(&question[1..]).output().unwrap().text();
        assert_eq!(run([&["--"], question].concat()).output().unwrap().text(), outside);
    }
    if is_root() {
        assert_eq!(run_sh("id -u; id -g").text(), format!("{UID}\n{UID}\n"));
    }
}

#[test]
fn the_environment_is_the_callers() {
    let set = |command: &mut std::process::Command| {
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("A", "b c")
            .env("LC_ALL", "C");
        command.output().unwrap().text()
    };
    // Only what the shell that sets the stage puts there comes besides.
    assert_eq!(set(&mut run(["env"])), set(&mut user("env")));
}

#[test]
fn signal_dispositions_and_mask_are_the_callers() {
    let question = "grep -e ^SigIgn -e ^SigBlk /proc/self/status";
    let ask = |vmlan: &str| {
        let script = format!("trap '' INT USR1 CHLD; {vmlan} {question}");
        outer_sh(&script).output().unwrap().text()
    };
    assert_eq!(ask("\"$VMLAN\" run --"), ask(""));
}

#[test]
fn the_command_has_no_capabilities() {
    let caps = |args: &[&str]| run(args).output().unwrap().text();
    let status = ["grep", "-e", "CapPrm", "-e", "CapEff", "-e", "CapAmb", "/proc/self/status"];
    for line in caps(&[&["--"][..], &status].concat()).lines() {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    let refused = run_sh("ip link set eth0 down");
    assert!(!refused.status.success() && refused.error().contains("not permitted"));
    assert_eq!(run(["--root", "id", "-u"]).output().unwrap().text(), "0\n");
    assert_eq!(
        run(["--root", "sh", "-c", "ip addr add 192.168.5.77/24 dev eth0"])
            .output()
            .unwrap()
            .text(),
        ""
    );
    assert_eq!(run_sh("grep NoNewPrivs /proc/self/status").text(), "NoNewPrivs:\t0\n");
}

/// Root, who runs a command: nothing but the user id is left to it, and as root of the guest it has
/// capabilities that reach no other user's files.
#[test]
fn roots_command_has_no_capabilities_over_the_host() {
    let setup = format!(
        "mount -t tmpfs tmpfs /mnt; touch /mnt/file; chown {UID}:{UID} /mnt/file; chmod 600 /mnt/file"
    );
    let run = |args: &[&str]| {
        let mut command = caller_where(&setup, "--reuid 0", vmlan_path());
        command.arg("run").args(args).output().unwrap()
    };
    let question = "id -u; grep CapEff /proc/self/status; stat -c %u /mnt/file";
    let text = run(&["--", "sh", "-c", question]).text();
    assert_eq!(text, format!("0\nCapEff:\t0000000000000000\n{UID}\n"));
    let mut answers = Vec::new();
    for args in [&["--"][..], &["--root", "--"]] {
        for attempt in ["cat /mnt/file", "chown 0 /mnt/file", "setpriv --reuid 54321 true"] {
            let output = run(&[args, &["sh", "-c", attempt]].concat());
            answers.push((attempt, output.status.success()));
        }
    }
    assert!(answers.iter().all(|(_, done)| !done), "{answers:?}");
    assert!(!run(&["--", "ip", "link", "set", "eth0", "down"]).status.success());
    run(&["--root", "--", "ip", "link", "set", "eth0", "down"]).text();
    run(&["--", "ping", "-c1", "-W5", "192.168.5.2"]).text();
}

#[test]
fn the_command_sees_only_its_own_processes() {
    let text =
        run_sh("ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; test $PPID = 1 && echo init").text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() < 8, "{text}");
    assert_eq!(lines[1..], ["netns-init", "init"]);
}

#[test]
fn two_guests_at_once_do_not_meet() {
    let script = "ip -o addr show eth0; ping -c1 -W2 192.168.5.2 >/dev/null && echo pong";
    let start =
        || run(["--", "sh", "-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    for guest in [start(), start()] {
        let text = guest.wait_with_output().unwrap().text();
        assert!(text.contains("192.168.5.15/24") && text.ends_with("pong\n"), "{text}");
    }
}
