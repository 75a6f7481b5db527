//! Where every kind of rule leads, and that nothing leads elsewhere.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use vmlan_e2e::netns::SOON;
use vmlan_vm::ports::Local;

use crate::scene::{LOOPBACK, PROMPTLY, Scene, within};

/// Rules of every kind, for ports of their own.
const RULES: &str = "
- {guestIP: 127.0.0.2, guestPortRange: [3000, 3009], hostPortRange: [2000, 2009], ignore: true}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3010, 3019], ignore: true}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3000, 3029], hostPortRange: [2000, 2029]}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3020, 3029], ignore: true}
- {guestPortRange: [3030, 3039], hostPortRange: [2030, 2039], hostIP: 10.1.1.1}
- {guestPortRange: [300, 304]}
- {guestPortRange: [305, 309], guestIPMustBeZero: false}
- {guestPortRange: [310, 314], hostIP: 0.0.0.0}
- {guestPortRange: [315, 319], guestIPMustBeZero: false, hostIP: 0.0.0.0}
- {guestIP: 192.168.5.15, guestPortRange: [4000, 4009], hostIP: 10.1.1.1}
- {guestIP: '::1', guestPortRange: [4010, 4019], hostIP: '::'}
- {guestIP: '::', guestPortRange: [4020, 4029], hostIP: 10.1.1.1}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [4030, 4039], hostIP: 10.1.1.1}
- {guestIPMustBeZero: true, guestPortRange: [4040, 4049]}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [4040, 4049], ignore: true}
- {guestIPMustBeZero: true, guestPort: 8888, hostIP: 0.0.0.0}
- {guestIP: 0.0.0.0, guestPort: 8889, hostPort: 9}
";

/// A server in the guest, and where on the host it is to be reached, if at all.
const CASES: &str = "
    127.0.0.2:3000 ->
    127.0.0.3:3001 -> 127.0.0.1:2001
    0.0.0.0:3002 -> 127.0.0.1:2002
    0.0.0.0:3010 ->
    127.0.0.1:3011 ->
    127.0.0.2:3020 -> 127.0.0.1:2020
    127.0.0.1:3021 -> 127.0.0.1:2021
    0.0.0.0:3022 -> 127.0.0.1:2022
    [::]:3023 -> 127.0.0.1:2023
    [::1]:3024 -> 127.0.0.1:2024
    127.0.0.1:3030 -> 10.1.1.1:2030
    0.0.0.0:3031 -> 10.1.1.1:2031
    [::]:3032 -> 10.1.1.1:2032
    [::1]:3033 -> 10.1.1.1:2033
    127.0.0.1:300 -> 127.0.0.1:300
    0.0.0.0:301 -> 127.0.0.1:301
    [::]:302 -> 127.0.0.1:302
    [::1]:303 -> 127.0.0.1:303
    192.168.5.15:304 ->
    127.0.0.1:305 -> 127.0.0.1:305
    0.0.0.0:306 -> 127.0.0.1:306
    [::]:307 -> 127.0.0.1:307
    [::1]:308 -> 127.0.0.1:308
    192.168.5.15:309 ->
    127.0.0.1:310 -> 0.0.0.0:310
    0.0.0.0:311 -> 0.0.0.0:311
    [::]:312 -> 0.0.0.0:312
    [::1]:313 -> 0.0.0.0:313
    192.168.5.15:314 ->
    127.0.0.1:315 -> 0.0.0.0:315
    0.0.0.0:316 -> 0.0.0.0:316
    [::]:317 -> 0.0.0.0:317
    [::1]:318 -> 0.0.0.0:318
    192.168.5.15:319 ->
    192.168.5.15:4000 -> 10.1.1.1:4000
    [::1]:4010 -> [::]:4010
    127.0.0.1:4020 -> 10.1.1.1:4020
    127.0.0.2:4021 -> 10.1.1.1:4021
    192.168.5.15:4022 -> 10.1.1.1:4022
    0.0.0.0:4023 -> 10.1.1.1:4023
    [::]:4024 -> 10.1.1.1:4024
    [::1]:4025 -> 10.1.1.1:4025
    127.0.0.1:4030 -> 10.1.1.1:4030
    127.0.0.2:4031 -> 10.1.1.1:4031
    192.168.5.15:4032 -> 10.1.1.1:4032
    0.0.0.0:4033 -> 10.1.1.1:4033
    [::]:4034 -> 10.1.1.1:4034
    [::1]:4035 -> 10.1.1.1:4035
    0.0.0.0:4040 -> 127.0.0.1:4040
    [::]:4041 -> 127.0.0.1:4041
    127.0.0.1:4043 ->
    192.168.5.15:4044 ->
    0.0.0.0:8888 -> 0.0.0.0:8888
    0.0.0.0:8889 -> 127.0.0.1:9
    192.168.5.15:8890 ->
    127.0.0.2:8891 ->
    127.0.0.1:22 ->
    0.0.0.0:60022 ->
";

#[test]
fn every_rule_leads_where_it_says_and_nowhere_else() {
    let scene = Scene::new(RULES);
    scene.world.host.ip("address add 10.1.1.1/32 dev lo");
    let mut scene = scene;
    let mut expected = Vec::new();
    let cases: Vec<(&str, Option<SocketAddr>)> = CASES
        .lines()
        .filter_map(|line| line.split_once("->"))
        .map(|(guest, host)| {
            let host = host.trim();
            (guest.trim(), (!host.is_empty()).then(|| host.parse().expect("an address")))
        })
        .collect();
    for (guest, host) in &cases {
        let (tcp, udp) = (scene.tcp(guest), scene.udp(guest));
        say_who(tcp, udp, guest);
        if let Some(host) = host {
            expected.push(Local::Tcp(*host));
            expected.push(Local::Udp(*host));
            if host.ip() == LOOPBACK {
                let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, host.port()));
                expected.push(Local::Tcp(twin));
                expected.push(Local::Udp(twin));
            }
        }
    }
    expected.sort();
    scene.start_agent();
    within(PROMPTLY, "every forward", || (scene.list().len() >= expected.len()).then_some(()));
    // Whatever is one too many would be there after another look.
    let list = within(PROMPTLY, "every forward open", || {
        let list = scene.list();
        list.iter().all(|state| state.problem.is_none()).then_some(list)
    });
    let open: Vec<Local> = list.into_iter().map(|state| state.port.local).collect();
    assert_eq!(open, expected);
    for (guest, host) in &cases {
        let Some(host) = host else { continue };
        let to = match host.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => {
                SocketAddr::from(([198, 51, 100, 1], host.port()))
            }
            IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, host.port()).into(),
            _ => *host,
        };
        let mut who = String::new();
        let mut stream = scene.world.host.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.read_to_string(&mut who).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(who, *guest, "{to}");
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = scene.world.host.udp(any.parse::<SocketAddr>().expect("an address"));
        client.set_read_timeout(Some(SOON)).expect("a deadline");
        client.send_to(b"who?", to).expect("a datagram");
        let mut answer = [0; 64];
        let (n, from) = client.recv_from(&mut answer).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!((&answer[..n], from), (guest.as_bytes(), to));
    }
}

/// Tells every client who it has reached.
fn say_who(tcp: TcpListener, udp: UdpSocket, name: &'static str) {
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let _ = stream.write_all(name.as_bytes());
        }
    });
    thread::spawn(move || {
        while let Ok((_, from)) = udp.recv_from(&mut [0; 64]) {
            let _ = udp.send_to(name.as_bytes(), from);
        }
    });
}
