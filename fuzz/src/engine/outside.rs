//! What is out there: far ends of every temper, and clients of forwards.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vmlan_engine::Forward;
use vmlan_engine::io::{Failure, ListenAddr};
use vmlan_testkit::{Ending, Pattern, Remote, Responder, World, addr};

pub(super) const UDP_FORWARD: &str = "127.0.0.1:5353";

pub(super) fn listen() -> ListenAddr {
    ListenAddr::Tcp(addr("127.0.0.1:8080"))
}

pub(super) fn kept() -> ListenAddr {
    ListenAddr::Tcp(addr("127.0.0.1:8081"))
}

/// What is out there: at 10.0.0.N and 2001:db8::1, by port.
pub(super) fn furnish(world: &mut World) {
    let scripts = [
        Remote::accept(),
        Remote::echo(),
        Remote::refuse(),
        Remote::black_hole(),
        Remote::accept().sends(Pattern(1), 200_000),
        Remote::accept().reads(100, Duration::from_millis(10)).send_buffer(500),
        Remote::accept().reads(0, Duration::ZERO).send_buffer(1000).sends(Pattern(2), 1 << 30),
        Remote::accept().then(Ending::Fin),
        Remote::accept().then(Ending::Close).sends(Pattern(3), 3000),
        Remote::accept().then(Ending::Reset).sends(Pattern(3), 3000),
        Remote::accept().reset_after(1000),
        Remote::accept().after(Duration::from_secs(1)),
        Remote::fail(Failure::HostUnreachable).after(Duration::from_millis(1)),
        Remote::fail(Failure::NetUnreachable),
        Remote::fail(Failure::Prohibited),
        Remote::fail(Failure::TimedOut).after(Duration::from_secs(3)),
    ];
    for (port, script) in (0u16..).zip(scripts) {
        for ip in ["10.0.0.1", "2001:db8::1", "127.0.0.1", "::1"] {
            let at = SocketAddr::new(ip.parse().expect("an address"), port);
            world.host.put(at, script.clone());
        }
    }
    world.host.elsewhere = Remote::echo();
    world.host.dns_stream = Remote::echo();
    world.host.set_dns(|query| {
        let mut answer = query.to_vec();
        if let Some(flags) = answer.get_mut(2) {
            *flags |= 0x80;
        }
        Some(answer)
    });
    let responders = [
        Responder::Echo { after: Duration::ZERO },
        Responder::Sink,
        Responder::Burst { count: 40, size: 100 },
        Responder::Burst { count: 3, size: 65_000 },
        Responder::Icmp { kind: 3, code: 3, mtu: 0, offender: Some(addr("10.0.0.9:0").ip()) },
        Responder::Icmp { kind: 3, code: 4, mtu: 600, offender: None },
        Responder::Icmp { kind: 11, code: 0, mtu: 0, offender: Some(addr("10.0.0.8:0").ip()) },
        Responder::Icmp { kind: 255, code: 255, mtu: u32::MAX, offender: None },
    ];
    for (port, responder) in (0u16..).zip(responders) {
        for ip in ["10.0.0.1", "2001:db8::1"] {
            let ip: IpAddr = ip.parse().expect("an address");
            world.host.put_udp(SocketAddr::new(ip, port), responder.clone());
        }
        world.host.put_ping([10, 0, 0, port as u8].into(), responder);
    }
    world.host.respond_elsewhere = Responder::Echo { after: Duration::from_millis(1) };
    let guest = addr("192.168.5.15:4000");
    for (listen, keep_source) in [(listen(), false), (kept(), true)] {
        world.add_forward(Forward { listen, guest, keep_source }).expect("nothing is taken");
    }
    let listen = ListenAddr::Udp(addr(UDP_FORWARD));
    let forward = Forward { listen, guest, keep_source: false };
    world.add_forward(forward).expect("nothing is taken");
}

pub(super) fn remote(choice: u8, port: u16) -> SocketAddr {
    SocketAddr::new([10, 0, 0, choice & 7].into(), port)
}
