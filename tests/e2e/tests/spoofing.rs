//! A hostile guest among others, with a packet socket: nothing it says makes another guest, or the
//! gateway, lose an address, a name or a datagram, and what it tries is counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use vmlan_e2e::frames::{self, ALL_NODES, ALL_NODES_MAC, BROADCAST, Mac, Sender, framed};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::server::{echo_udp, exchange, serve_one};
use vmlan_e2e::{Netns, World};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 3);
const VICTIM: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 15);
const THIEF: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 16);
const WATCHER: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 17);

/// Free for whoever configures it.
const STATIC: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 99);

/// Three guests of one network that know each other.
struct Scene {
    world: World,
    thief: Netns,
    watcher: Netns,
    sender: Sender,
    cards: Cards,
}

#[derive(Clone, Copy)]
struct Cards {
    victim: Mac,
    thief: Mac,
    watcher: Mac,
    gateway: Mac,
}

impl Scene {
    #[track_caller]
    fn new() -> Self {
        let (thief, watcher) = (Netns::new(), Netns::new());
        let option = |guest: &Netns| format!("{},ifname=tap0", guest.path().display());
        let (second, third) = (option(&thief), option(&watcher));
        let world = World::with(&["--netns", &second, "--netns", &third]);
        echo_udp(world.guest.udp((VICTIM, 7)));
        for guest in [&world.guest, &thief, &watcher] {
            guest.run("ping -n -c 1 -W 5 192.168.5.2");
        }
        for (from, to) in [(&world.guest, WATCHER), (&watcher, VICTIM), (&watcher, THIEF)] {
            from.run(&format!("ping -n -c 1 -W 5 {to}"));
        }
        // An address is taken once somebody has used it.
        watcher.run(&format!("ping -n -c 1 -W 5 {}", ipv6_of(&world.guest)));
        world.guest.run(&format!("ping -n -c 1 -W 5 {}", ipv6_of(&watcher)));
        let cards = Cards {
            victim: card(&world.guest),
            thief: card(&thief),
            watcher: card(&watcher),
            gateway: neighbor(&watcher, GATEWAY.into()).expect("the gateway was asked for"),
        };
        let sender = Sender::new(&thief);
        Self { world, thief, watcher, sender, cards }
    }

    /// Sends frames, several times each, and looks that every one was counted for this reason.
    #[track_caller]
    fn attack(&mut self, reason: &str, frames: &[Vec<u8>]) {
        const TIMES: u64 = 3;
        let expected = self.world.netd.dropped(reason) + TIMES * frames.len() as u64;
        for frame in frames {
            for _ in 0..TIMES {
                self.sender.send(frame);
            }
        }
        eventually(format!("{reason} of all frames"), SOON, || {
            (self.world.netd.dropped(reason) >= expected).then_some(())
        });
    }

    /// The watcher reaches the victim and the gateway where they are, and a name resolves.
    #[track_caller]
    fn all_is_well(&self) {
        let victim = eventually("the victim's echo", SOON, || self.echo(VICTIM.into()));
        assert_eq!(victim, (VICTIM, 7).into());
        let victim6 = ipv6_of(&self.world.guest);
        self.watcher.run(&format!("ping -n -c 1 -W 5 {victim6}"));
        for (address, card) in [
            (IpAddr::V4(VICTIM), self.cards.victim),
            (victim6.into(), self.cards.victim),
            (GATEWAY.into(), self.cards.gateway),
        ] {
            assert_eq!(neighbor(&self.watcher, address), Some(card), "{address}");
        }
        let answer = self.watcher.run("dig +short +time=2 @192.168.5.3 host.lima.internal");
        assert_eq!(answer.trim(), "192.168.5.2");
    }

    /// Whether the echo server answers the watcher, and from where.
    fn echo(&self, at: IpAddr) -> Option<std::net::SocketAddr> {
        let socket = self.watcher.udp(("0.0.0.0".parse::<IpAddr>().expect("an address"), 0));
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a deadline");
        socket.send_to(b"there?", (at, 7)).ok()?;
        socket.recv_from(&mut [0; 16]).ok().map(|(_, from)| from)
    }

    fn everybody(&self) -> [Mac; 2] {
        [BROADCAST, self.cards.watcher]
    }
}

fn card(guest: &Netns) -> Mac {
    let text = guest.ip("-o link show dev tap0");
    let word = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    parse_mac(word.expect("a MAC address"))
}

fn parse_mac(text: &str) -> Mac {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address")).collect();
    bytes.try_into().expect("six bytes")
}

/// Where a guest's kernel believes an address to be.
fn neighbor(guest: &Netns, address: IpAddr) -> Option<Mac> {
    let text = guest.ip(&format!("neighbour show to {address} dev tap0"));
    text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).map(parse_mac)
}

fn ipv6_of(guest: &Netns) -> Ipv6Addr {
    address6(&guest.ip("-6 -o address show dev tap0 scope global"), "fd")
}

fn link_local_of(guest: &Netns) -> Ipv6Addr {
    address6(&guest.ip("-6 -o address show dev tap0 scope link"), "fe80")
}

fn link_local_of_gateway(guest: &Netns) -> Ipv6Addr {
    address6(&guest.ip("-6 route show default"), "fe80")
}

fn address6(text: &str, start: &str) -> Ipv6Addr {
    let word = text.split_whitespace().find(|word| word.starts_with(start));
    let word = word.unwrap_or_else(|| panic!("no address in {text}"));
    word.split('/').next().expect("an address").parse().expect("an address")
}

#[test]
fn the_sender_itself_can_be_heard() {
    let mut scene = Scene::new();
    let socket = scene.watcher.udp((WATCHER, 4000));
    let datagram = frames::udp((1, 4000), THIEF.into(), WATCHER.into(), b"in its own name");
    let frame = framed(scene.cards.watcher, scene.cards.thief, &datagram);
    scene.sender.send(&frame);
    let mut data = [0; 64];
    let (n, from) = socket.recv_from(&mut data).expect("the datagram");
    assert_eq!((&data[..n], from), (&b"in its own name"[..], (THIEF, 1).into()));
    scene.all_is_well();
}

#[test]
fn arp_cannot_take_an_address() {
    let mut scene = Scene::new();
    let Cards { victim, thief, .. } = scene.cards;
    for to in scene.everybody() {
        // Answers that nobody asked for, questions, gratuitous ones.
        let lies = |whose| {
            [
                frames::arp(2, to, thief, whose, WATCHER),
                frames::arp(1, to, thief, whose, WATCHER),
                frames::arp(1, to, thief, whose, whose),
                frames::arp(2, to, thief, whose, whose),
            ]
        };
        scene.attack("source", &lies(VICTIM));
        scene.attack("spoofed", &lies(GATEWAY));
        scene.attack("spoofed", &lies(DNS));
        // From the thief's card about the victim's.
        let mut other = frames::arp(2, to, victim, VICTIM, WATCHER);
        other[6..12].copy_from_slice(&thief);
        scene.attack("spoofed", &[other]);
        scene.all_is_well();
    }
    // To the gateway itself.
    let gateway = scene.cards.gateway;
    scene.attack("source", &[frames::arp(2, gateway, thief, VICTIM, GATEWAY)]);
    scene.all_is_well();
}

#[test]
fn neighbour_discovery_cannot_take_an_address() {
    let mut scene = Scene::new();
    let Cards { victim, thief, watcher, .. } = scene.cards;
    let (own, theirs) = (link_local_of(&scene.thief), ipv6_of(&scene.world.guest));
    let (watchers, gateway) = (ipv6_of(&scene.watcher), link_local_of_gateway(&scene.watcher));
    for (mac, to) in [(ALL_NODES_MAC, ALL_NODES), (watcher, watchers)] {
        let frame = |from, message: &[u8]| framed(mac, thief, &frames::icmpv6(from, to, message));
        let advertise = |target, card| frames::neighbor_advertisement(target, card);
        let ask = |card| frames::neighbor_solicitation(watchers, card);
        scene.attack(
            "source",
            &[
                frame(own, &advertise(theirs, thief)),
                frame(theirs, &advertise(theirs, thief)),
                frame(theirs, &ask(thief)),
            ],
        );
        scene.attack(
            "spoofed",
            &[
                frame(own, &advertise(own, victim)),
                frame(own, &ask(victim)),
                frame(own, &advertise(gateway, thief)),
                frame(gateway, &advertise(gateway, thief)),
                frame(gateway, &ask(thief)),
            ],
        );
        scene.all_is_well();
        let heard = neighbor(&scene.watcher, gateway.into());
        assert!(heard.is_none_or(|card| card == scene.cards.gateway), "{heard:?}");
    }
}

#[test]
fn nobody_else_is_router_or_dhcp_server() {
    let mut scene = Scene::new();
    let thief = scene.cards.thief;
    let own = link_local_of(&scene.thief);
    let ra = frames::icmpv6(own, ALL_NODES, &frames::router_advertisement(thief));
    let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0; 32]].concat();
    let redirect = frames::icmpv6(own, ALL_NODES, &redirect);
    scene.attack(
        "rogue",
        &[framed(ALL_NODES_MAC, thief, &ra), framed(ALL_NODES_MAC, thief, &redirect)],
    );
    let before = scene.watcher.ip("-6 route show");
    assert!(!before.contains("2001:db8:bad"), "{before}");

    // Answers of a DHCP server, to a client that waits for one.
    let any: IpAddr = "0.0.0.0".parse().expect("an address");
    let client: UdpSocket = scene.watcher.udp((any, 68));
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("a deadline");
    let broadcast: IpAddr = Ipv4Addr::BROADCAST.into();
    let offers = [
        frames::udp((67, 68), THIEF.into(), broadcast, &[2; 300]),
        frames::udp((67, 68), THIEF.into(), WATCHER.into(), &[2; 300]),
        frames::udp((547, 546), own.into(), ALL_NODES.into(), &[2; 60]),
    ];
    let offers: Vec<_> = offers
        .iter()
        .flat_map(|offer| {
            let to = if offer[0] >> 4 == 4 { BROADCAST } else { ALL_NODES_MAC };
            [framed(to, thief, offer), framed(scene.cards.watcher, thief, offer)]
        })
        .collect();
    scene.attack("rogue", &offers);
    assert!(client.recv_from(&mut [0; 400]).is_err(), "an offer came");

    // Nor does anybody give back another's lease.
    let mut release = vec![1, 1, 6, 0, 9, 9, 9, 9, 0, 0, 0, 0];
    release.extend(VICTIM.octets());
    release.extend([0; 12]);
    release.extend(scene.cards.victim);
    release.resize(236, 0);
    release.extend([99, 130, 83, 99, 53, 1, 7, 54, 4, 192, 168, 5, 2, 255]);
    let release = frames::udp((68, 67), THIEF.into(), GATEWAY.into(), &release);
    scene.attack("spoofed", &[framed(scene.cards.gateway, thief, &release)]);
    scene.all_is_well();
}

#[test]
fn forged_sources_reach_nobody() {
    let mut scene = Scene::new();
    let Cards { thief, victim, gateway, watcher } = scene.cards;
    let socket = scene.watcher.udp((WATCHER, 4000));
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a deadline");
    let (theirs6, own6) = (ipv6_of(&scene.world.guest), ipv6_of(&scene.watcher));
    let say = |from: IpAddr, to: IpAddr| frames::udp((53, 4000), from, to, b"forged");
    let outside: IpAddr = "8.8.8.8".parse().expect("an address");
    for to in scene.everybody() {
        scene.attack(
            "source",
            &[
                framed(to, thief, &say(VICTIM.into(), WATCHER.into())),
                framed(to, thief, &say(outside, WATCHER.into())),
                framed(to, thief, &say(theirs6.into(), own6.into())),
            ],
        );
        // An answer of the nameserver's.
        scene.attack("spoofed", &[framed(to, thief, &say(DNS.into(), WATCHER.into()))]);
    }
    // To the outside in the victim's name.
    scene.attack("source", &[framed(gateway, thief, &say(VICTIM.into(), outside))]);
    assert!(socket.recv_from(&mut [0; 16]).is_err(), "something came");
    scene.all_is_well();

    // The victim's card as source, after it has been silent for a while, and the gateway's.
    thread::sleep(Duration::from_millis(2500));
    for card in [victim, gateway] {
        let own = say(THIEF.into(), WATCHER.into());
        let lies =
            [BROADCAST, watcher, gateway, [2, 9, 9, 9, 9, 9]].map(|to| framed(to, card, &own));
        scene.attack("spoofed", &lies);
    }
    scene.all_is_well();
}

#[test]
fn what_a_guest_configures_itself_is_its_own() {
    let mut scene = Scene::new();
    scene.world.guest.ip(&format!("address add {STATIC}/24 dev tap0"));
    scene.watcher.run(&format!("ping -n -c 1 -W 5 {STATIC}"));
    let thief = scene.cards.thief;
    for to in scene.everybody() {
        scene.attack("source", &[frames::arp(2, to, thief, STATIC, WATCHER)]);
    }
    assert_eq!(neighbor(&scene.watcher, STATIC.into()), Some(scene.cards.victim));
    let server = serve_one(scene.world.guest.listen((STATIC, 80)), |stream| stream);
    let client = scene.watcher.connect((STATIC, 80)).expect("a server listens there");
    exchange(client, server.join().expect("a connection"), 1 << 20);
    let server = serve_one(scene.watcher.listen((WATCHER, 80)), |stream| stream);
    let client = scene.world.guest.connect((WATCHER, 80)).expect("a server listens there");
    exchange(client, server.join().expect("a connection"), 1 << 20);
}

#[test]
fn a_stream_goes_on_through_a_storm_of_lies() {
    let mut scene = Scene::new();
    let Cards { thief, victim, .. } = scene.cards;
    let server = serve_one(scene.world.guest.listen((VICTIM, 80)), |stream| stream);
    let client = scene.watcher.connect((VICTIM, 80)).expect("a server listens there");
    let server = server.join().expect("a connection");
    let own = frames::udp((1, 2), THIEF.into(), WATCHER.into(), b"x");
    let lies = [
        frames::arp(2, BROADCAST, thief, VICTIM, WATCHER),
        frames::arp(2, BROADCAST, thief, GATEWAY, WATCHER),
        framed(BROADCAST, victim, &own),
    ];
    let streaming = thread::spawn(move || exchange(client, server, 64 << 20));
    while !streaming.is_finished() {
        lies.iter().for_each(|lie| scene.sender.send(lie));
    }
    streaming.join().expect("every byte arrived");
    scene.all_is_well();
}
