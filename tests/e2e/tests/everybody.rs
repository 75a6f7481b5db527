//! What a guest says to everybody, or to a group, is heard by all the others once, and not by itself
//! again.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use vmlan_e2e::world::GUEST;
use vmlan_e2e::{Netns, World};

const MDNS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const PORT: u16 = 5353;

/// For a datagram that should not come. One that should has had as long before.
const MOMENT: Duration = Duration::from_millis(300);

/// Three guests of one network.
struct Scene {
    world: World,
    others: [Netns; 2],
}

impl Scene {
    #[track_caller]
    fn new() -> Self {
        let others = [Netns::new(), Netns::new()];
        let specs = others.each_ref().map(|g| format!("{},ifname=tap0", g.path().display()));
        let scene =
            Self { world: World::with(&["--netns", &specs[0], "--netns", &specs[1]]), others };
        for guest in scene.guests() {
            guest.run("ping -n -c 1 -W 5 192.168.5.2");
        }
        scene
    }

    fn guests(&self) -> [&Netns; 3] {
        [&self.world.guest, &self.others[0], &self.others[1]]
    }
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 5, 15 + u8::try_from(number).expect("a small number"))
}

/// The link-local address of a guest, once it may be used.
fn link_local(guest: &Netns) -> SocketAddrV6 {
    let text =
        vmlan_e2e::process::eventually("a link-local address", Duration::from_secs(10), || {
            let text = guest.ip("-6 -o address show dev tap0 scope link -tentative");
            (!text.is_empty()).then_some(text)
        });
    let index = text.split(':').next().expect("an index").trim().parse().expect("an index");
    let word = text.split_whitespace().find(|word| word.starts_with("fe80")).expect("an address");
    let ip = word.split('/').next().expect("an address").parse().expect("an address");
    SocketAddrV6::new(ip, 0, 0, index)
}

/// The first of the sockets sends; the others get it, once each, and the first not at all but for
/// what its own kernel hands it.
#[track_caller]
fn heard_by_all_others(sockets: &[UdpSocket], to: SocketAddr, from: IpAddr, own_copies: usize) {
    for said in ["one", "two", "three"] {
        sockets[0].send_to(said.as_bytes(), to).unwrap_or_else(|e| panic!("{to}: {e}"));
        for (listener, heard) in sockets.iter().enumerate() {
            let copies = if listener == 0 { own_copies } else { 1 };
            let mut data = [0; 64];
            for _ in 0..copies {
                let (n, sender) = heard.recv_from(&mut data).expect("a datagram");
                assert_eq!((&data[..n], sender.ip()), (said.as_bytes(), from), "{listener}");
            }
        }
    }
    for (listener, heard) in sockets.iter().enumerate() {
        heard.set_read_timeout(Some(MOMENT)).expect("a deadline");
        let again = heard.recv_from(&mut [0; 64]).map_err(|e| e.kind());
        assert_eq!(again, Err(ErrorKind::WouldBlock), "guest {listener} heard it twice");
    }
}

#[test]
fn a_group_is_reached() {
    let scene = Scene::new();
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let sockets: Vec<_> = scene.guests().iter().map(|guest| guest.udp((any, PORT))).collect();
    for (number, socket) in sockets.iter().enumerate() {
        socket.join_multicast_v4(&MDNS, &address(number)).expect("a group can be joined");
    }
    sockets[0].set_multicast_loop_v4(false).expect("an option");
    heard_by_all_others(&sockets, (MDNS, PORT).into(), GUEST, 0);
}

#[test]
fn a_group_is_reached_over_ipv6() {
    let scene = Scene::new();
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let locals = scene.guests().map(link_local);
    let sockets: Vec<_> = scene.guests().iter().map(|guest| guest.udp((any, PORT))).collect();
    for (local, socket) in locals.iter().zip(&sockets) {
        socket.join_multicast_v6(&MDNS6, local.scope_id()).expect("a group can be joined");
    }
    sockets[0].set_multicast_loop_v6(false).expect("an option");
    let to = SocketAddrV6::new(MDNS6, PORT, 0, locals[0].scope_id());
    heard_by_all_others(&sockets, to.into(), (*locals[0].ip()).into(), 0);
}

#[test]
fn everybody_is_reached() {
    let scene = Scene::new();
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    for to in [Ipv4Addr::BROADCAST, Ipv4Addr::new(192, 168, 5, 255)] {
        let sockets: Vec<_> = scene.guests().iter().map(|guest| guest.udp((any, PORT))).collect();
        sockets[0].set_broadcast(true).expect("an option");
        // Linux hands a sender its own broadcasts.
        heard_by_all_others(&sockets, (to, PORT).into(), GUEST, 1);
    }
}
