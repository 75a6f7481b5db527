//! Several guests: probes, floods, a pool that is empty.

use super::*;

#[test]
fn with_others_present_an_address_is_asked_for_before_it_is_offered() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    world.send(port, &message(1, DISCOVER).frame());
    let probe = arp(1, BROADCAST, (GATEWAY_MAC, NONE), (Mac([0; 6]), guest(15)));
    assert_eq!(world.one(port), probe);
    assert_eq!(world.sent(other)[1], probe);
    // A repetition while it waits changes nothing but the transaction.
    silent(&mut world, port, &message(1, DISCOVER));
    // Somebody has .15, and .16 is known to be in use.
    world.send(other, &arp(2, GATEWAY_MAC, (mac(9), guest(15)), (GATEWAY_MAC, NONE)));
    announce(&mut world, other, 10, guest(16));
    world.sent(port);
    world.pass(Duration::from_millis(150));
    let next = arp(1, BROADCAST, (GATEWAY_MAC, NONE), (Mac([0; 6]), guest(17)));
    assert_eq!(world.one(port), next);
    world.pass(Duration::from_millis(151));
    let offer = Reply::new(&world.one(port));
    assert_eq!((offer.kind(), offer.yiaddr()), (OFFER, guest(17)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(9), false)));
    // What a guest had before is offered without asking.
    join(&mut world, port, 1);
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).yiaddr(), guest(17));
}

#[test]
fn a_guest_that_goes_while_its_address_is_asked_for_is_forgotten() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    world.send(port, &message(1, DISCOVER).frame());
    world.io(|engine, io| engine.remove_port(port, io));
    world.sent(other);
    world.pass(Duration::from_secs(1));
    assert!(world.sent(other).is_empty());
}

#[test]
fn a_flood_takes_half_the_pool_and_leaves_others_the_rest() {
    let mut world = World::new();
    let (bad, good) = (world.attach(), world.attach());
    for n in 0..=255u8 {
        for offset in 0..2u8 {
            let mut flood = message(n, DISCOVER);
            flood.mac.0[4] = 1 + offset;
            world.send(bad, &flood.frame());
            let mut take = message(n, REQUEST).wants(guest(n));
            take.mac.0[4] = 1 + offset;
            world.send(bad, &take.frame());
        }
        world.pass(Duration::from_millis(200));
    }
    let taken = world.engine.leases().iter().filter(|l| l.leased).count();
    assert!(taken <= 120, "{taken}");
    assert!(guest(15) < join(&mut world, good, 200));
}

#[test]
fn an_exhausted_pool_is_silence_and_a_departure_ends_it() {
    let mut config = config();
    config.first_guest = guest(251);
    let mut world = World::with(config);
    let ports: Vec<PortId> = (0..5).map(|_| world.attach()).collect();
    for (n, port) in ports.iter().enumerate().take(4) {
        assert_eq!(join(&mut world, *port, n as u8), guest(251 + n as u8));
    }
    silent(&mut world, ports[4], &message(9, DISCOVER));
    world.pass(Duration::from_secs(1));
    assert!(world.sent(ports[4]).is_empty());
    assert_eq!(world.dropped(Drop::Limit), 1);
    world.io(|engine, io| engine.remove_port(ports[2], io));
    assert_eq!(join(&mut world, ports[4], 9), guest(253));
    assert_eq!(neighbor(&world, guest(253)), Some((mac(9), true)));
}
