//! `network choose`, asked by flags and by questions.

use crate::support::{Home, NETWORKS};

#[test]
fn by_flags() {
    let home = Home::new();
    let table: &[(&[&str], &str)] = &[
        (&["--from", "localhost"], "network: default\nflag:    none, it is always there\n"),
        (
            &["--from", "vms"],
            "network: user-v2\nflag:    --network=lima:user-v2\nyaml:\nnetworks:\n- lima: user-v2\n",
        ),
        (
            &["--from", "host", "--vm-type", "vz"],
            "network: vzNAT\nflag:    --network=vzNAT\nnote:    needs macOS 13 or later, and a VM of \
             type vz\nyaml:\nnetworks:\n- vzNAT: true\n",
        ),
        (
            &["--from", "host", "--vm-type", "qemu"],
            "network: shared\nflag:    --network=lima:shared\nnote:    needs root once, to let the \
             network be started\nyaml:\nnetworks:\n- lima: shared\n",
        ),
    ];
    for (args, want) in table {
        assert_eq!(home.network(&[&["choose"], *args].concat()).quiet(), *want);
    }
    let json = home.network(&["choose", "--from=vms", "--json"]).quiet();
    let want = r#"{"network":"user-v2","flag":"--network=lima:user-v2","yaml":"networks:\n- lima: user-v2\n","notes":[]}"#;
    assert_eq!(json, format!("{want}\n"));
    let error = home.network(&["choose", "--from", "mars"]).failed(2);
    assert!(error.contains("localhost, host, vms, hosts"), "{error}");
}

#[test]
fn by_questions() {
    let home = Home::with(NETWORKS);
    let said = home.vmlan(&["network", "choose"], "what?\n9\n2\nQEMU\n");
    assert_eq!(said.code, Some(0));
    assert!(said.out.starts_with("network: old\nflag:    --network=lima:old\n"), "{}", said.out);
    let from = "From where do you want to reach the VM?\n  \
                1. this host, through ports of localhost (localhost)\n  \
                2. this host, by the VM's IP address (host)\n  \
                3. other VMs (vms)\n  4. other hosts (hosts)\n> ";
    let which = "Which VM type?\n  1. QEMU (qemu)\n  2. Apple's Virtualization framework (vz)\n> ";
    assert_eq!(said.err, format!("{from}{from}{from}{which}"));
    // Where the type makes no difference, nobody is asked.
    let said = home.vmlan(&["network", "choose"], "4\n");
    assert!(said.out.starts_with("network: lan\n"), "{}", said.out);
    assert_eq!(said.err, from);
}

#[test]
fn without_an_answer() {
    let home = Home::new();
    let said = home.vmlan(&["network", "choose", "--from", "host"], "");
    assert_eq!(said.code, Some(2));
    assert!(said.err.ends_with("vmlan: there is no answer; give --vm-type\n"), "{}", said.err);
}
