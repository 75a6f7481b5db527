//! Ports of a machine on the host: there when something listens, gone when it does not any more.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vmlan_e2e::MachineHost;
use vmlan_e2e::process::eventually;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// What the host has promised, and a little for the commands that look.
const PROMISED: Duration = Duration::from_secs(4);

/// Long enough to be wrong: what should not be reached would be by now.
const MOMENT: Duration = Duration::from_millis(2500);

/// Starts a server in the machine; its number.
#[track_caller]
fn serve(host: &MachineHost, listen: &str, what: &str) -> String {
    host.guest("one", &format!("socat {listen} {what} >/dev/null 2>&1 </dev/null & echo $!"))
}

/// A server for streams that sends a word.
#[track_caller]
fn stream(host: &MachineHost, listen: &str, word: &str) -> String {
    serve(host, &format!("{listen},fork,reuseaddr"), &format!("SYSTEM:\"echo {word}\""))
}

/// One that sends datagrams back.
#[track_caller]
fn datagrams(host: &MachineHost, listen: &str) -> String {
    serve(host, &format!("{listen},fork"), "EXEC:cat")
}

/// The word of a server at a port of the host, if there is one.
fn word(host: &MachineHost, at: (IpAddr, u16)) -> Option<String> {
    let mut text = String::new();
    let mut stream = host.net.connect(at).ok()?;
    stream.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then(|| text.trim().to_owned())
}

/// Whether a datagram comes back from a port of the host.
fn returns(host: &MachineHost, at: (IpAddr, u16)) -> Option<()> {
    let any = if at.0.is_ipv4() { V4 } else { V6 };
    let socket = host.net.udp((any, 0));
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a deadline");
    socket.connect(at).ok()?;
    socket.send(b"hello").ok()?;
    let mut data = [0; 16];
    let n = socket.recv(&mut data).ok()?;
    (&data[..n] == b"hello").then_some(())
}

#[track_caller]
fn comes(host: &MachineHost, at: (IpAddr, u16), what: &str) {
    let got = eventually(at, PROMISED, || word(host, at));
    assert_eq!(got, what, "{at:?}");
}

#[track_caller]
fn goes(host: &MachineHost, at: (IpAddr, u16)) {
    let gone = || host.net.connect(at).is_err().then_some(());
    eventually(format!("the end of {at:?}"), PROMISED, gone);
}

#[test]
fn ports_come_and_go_with_what_listens() {
    let host = MachineHost::new();
    let taken = host.net.listen((V4, 8090));
    let rules = "portForwards:
- {guestPort: 8010, hostPort: 9010}
- {guestPortRange: [8020, 8029], hostPortRange: [9020, 9029], hostIP: 0.0.0.0}
- {guestPort: 8030, ignore: true}
- {guestPort: 8031, proto: tcp, hostPort: 9031}
- {guestSocket: /run/in.sock, hostSocket: out.sock}
- {guestPort: 8050, hostPort: 9050, static: true}";
    host.start("one", rules);

    // On the guest's loopback and everywhere, by both versions of IP.
    let listeners = [
        ("TCP4-LISTEN:8001,bind=127.0.0.1", 8001),
        ("TCP4-LISTEN:8002", 8002),
        ("TCP6-LISTEN:8003,bind=[::1]", 8003),
        ("TCP6-LISTEN:8004", 8004),
    ];
    let servers = listeners.map(|(listen, port)| stream(&host, listen, &format!("port{port}")));
    for (_, port) in listeners {
        comes(&host, (V4, port), &format!("port{port}"));
        comes(&host, (V6, port), &format!("port{port}"));
    }
    let ports = [
        ("UDP4-RECVFROM:8001,bind=127.0.0.1", 8001),
        ("UDP4-RECVFROM:8002", 8002),
        ("UDP6-RECVFROM:8003,bind=[::1]", 8003),
        ("UDP6-RECVFROM:8004", 8004),
    ];
    let others = ports.map(|(listen, _)| datagrams(&host, listen));
    for (_, port) in ports {
        for ip in [V4, V6] {
            eventually((ip, port, "datagrams"), PROMISED, || returns(&host, (ip, port)));
        }
    }
    // An ordinary listing shows them.
    let listed = host.listed("one").expect("a machine");
    let shown = listed["ports"].to_string();
    assert!(shown.contains("8001") && shown.contains("8004"), "{shown}");

    host.guest("one", &format!("kill {} {}", servers.join(" "), others.join(" ")));
    for (_, port) in listeners {
        goes(&host, (V4, port));
        goes(&host, (V6, port));
    }
    for (_, port) in ports {
        let gone = || returns(&host, (V4, port)).is_none().then_some(());
        eventually((port, "no datagrams"), PROMISED, gone);
    }

    rules_decide(&host);
    sockets(&host);

    // A port that somebody else has is said, and taken when it is free.
    stream(&host, "TCP4-LISTEN:8090", "mine");
    let listed = || host.listed("one").expect("a machine")["ports"].to_string();
    eventually("a conflict in the listing", PROMISED, || {
        listed().contains("8090").then(|| listed().contains("problem")).filter(|is| *is)
    });
    let table = host.run("vmlan list");
    assert!(table.contains("8090"), "{table}");
    drop(taken);
    eventually("the port that was freed", Duration::from_secs(15), || word(&host, (V4, 8090)));
}

fn rules_decide(host: &MachineHost) {
    // One that is ignored first: by the time the others are there it would be as well.
    stream(host, "TCP4-LISTEN:8030,bind=127.0.0.1", "port8030");
    for port in [8010, 8031] {
        stream(host, &format!("TCP4-LISTEN:{port}"), &format!("port{port}"));
    }
    stream(host, "TCP4-LISTEN:8025,bind=127.0.0.1", "port8025");
    datagrams(host, "UDP4-RECVFROM:8031");
    comes(host, (V4, 9010), "port8010");
    comes(host, (V4, 9031), "port8031");
    let outer = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    comes(host, (outer, 9025), "port8025");
    assert!(host.net.connect((outer, 9010)).is_err());
    // A rule for streams says nothing about datagrams.
    eventually("datagrams", PROMISED, || returns(host, (V4, 8031)));
    std::thread::sleep(MOMENT);
    assert!(host.net.connect((V4, 8030)).is_err());
    assert!(host.net.connect((V4, 8010)).is_err());
    // A static one is there before anybody listens; the guest's refusal comes behind it.
    let there = host.net.connect((V4, 9050)).map_err(|e| e.kind());
    assert!(matches!(there, Ok(_) | Err(ErrorKind::ConnectionReset)), "{there:?}");
    stream(host, "TCP4-LISTEN:8050", "port8050");
    comes(host, (V4, 9050), "port8050");
}

fn sockets(host: &MachineHost) {
    serve(host, "UNIX-LISTEN:/run/in.sock,fork", "SYSTEM:\"echo socket\"");
    let ask = "socat -t 5 - UNIX-CONNECT:.lima/one/sock/out.sock </dev/null | grep socket";
    host.until(ask, PROMISED);
}
