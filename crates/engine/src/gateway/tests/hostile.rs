//! Every service, and damage to what it is sent: nothing panics, nothing grows past its bounds,
//! and whoever asks properly afterwards is served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vmlan_wire::Mac;

use crate::testing::*;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }
}

/// Frames that are right, one of each kind at least.
fn good() -> Vec<Vec<u8>> {
    let v6 = config().ipv6;
    let (g4, g6): (IpAddr, IpAddr) = (guest(15).into(), v6.nth(15).into());
    let link_local: Ipv6Addr = "fe80::15".parse().unwrap();
    let all: Ipv6Addr = "ff02::1:2".parse().unwrap();
    let mut dhcp = [&[1, 1, 6, 0, 1, 2, 3, 4][..], &[0; 20], &mac(1).0].concat();
    dhcp.resize(236, 0);
    dhcp.extend([99, 130, 83, 99, 53, 1, 1, 61, 4, 9, 9, 9, 9, 55, 4, 1, 3, 6, 26]);
    dhcp.extend([50, 4, 192, 168, 5, 20, 57, 2, 5, 0, 82, 3, 1, 1, 7, 255]);
    let dhcp = udp(68, 67, &dhcp);
    let mut dhcp6 = vec![1, 1, 2, 3, 0, 1, 0, 5, 0, 4, 1, 1, 1, 0, 14, 0, 0, 0, 3, 0, 40];
    dhcp6.extend([0; 12]);
    dhcp6.extend([0, 5, 0, 24]);
    dhcp6.extend(v6.nth(30).octets());
    dhcp6.extend([0; 8]);
    let ns = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &v6.gateway().octets(), &[1, 1], &mac(1).0].concat();
    let na = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &v6.nth(9).octets(), &[2, 1], &mac(1).0].concat();
    let rs = [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &mac(1).0].concat();
    let nobody = Ipv4Addr::UNSPECIFIED.into();
    let local = |dst: Ipv6Addr, hops, protocol, data: &[u8]| {
        from_guest(1, &ip(link_local.into(), dst.into(), protocol, hops, data))
    };
    vec![
        arp(1, BROADCAST, (mac(1), guest(15)), (Mac([0; 6]), GATEWAY)),
        arp(2, GATEWAY_MAC, (mac(1), guest(15)), (GATEWAY_MAC, GATEWAY)),
        from_guest(1, &ip(g4, GATEWAY.into(), 1, 64, &[8, 0, 0, 0, 0, 1, 0, 1, 5, 5, 5, 5])),
        from_guest(1, &ip(g6, v6.host().into(), 58, 64, &[128, 0, 0, 0, 0, 1, 0, 1, 5, 5])),
        local(v6.gateway(), 255, 58, &ns),
        local(v6.gateway(), 255, 58, &na),
        local("ff02::2".parse().unwrap(), 255, 58, &rs),
        to_mac(BROADCAST, 1, &ip(nobody, Ipv4Addr::BROADCAST.into(), 17, 64, &dhcp)),
        local(all, 1, 17, &udp(546, 547, &dhcp6)),
        from_guest(1, &ip(g4, DNS.into(), 17, 64, &udp(999, 53, &[7; 40]))),
        from_guest(1, &ip(g6, v6.dns().into(), 17, 64, &udp(999, 53, &[7; 40]))),
        from_guest(1, &ip(g4, Ipv4Addr::new(203, 0, 113, 1).into(), 132, 1, &[1; 20])),
        from_guest(
            1,
            &ip_raw(
                g6,
                v6.host().into(),
                44,
                64,
                &[58, 0, 0, 1, 0, 0, 0, 1, 128, 0, 0, 0, 0, 0, 0, 0],
            ),
        ),
    ]
}

/// Damages a frame, and mostly makes its checksums right again, so that the damage gets through.
fn damage(rng: &mut Rng, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(frame.len());
        match rng.below(6) {
            0 => frame.truncate(at.max(15)),
            1 => frame.extend(std::iter::repeat_n(rng.below(256) as u8, at)),
            2 => frame[at] ^= 1 << rng.below(8),
            3 => frame[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
            4 => {
                let piece = frame[at..].to_vec();
                frame.splice(at..at, piece);
            }
            _ => frame[at] = rng.below(256) as u8,
        }
    }
    if rng.below(4) > 0 {
        mend(&mut frame);
    }
    frame
}

/// Makes lengths and checksums fit the bytes.
fn mend(frame: &mut [u8]) {
    match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.len() > 34 => {
            let len = (frame.len() - 14) as u16;
            frame[14] = 0x45;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            fix_ipv4(&mut frame[14..]);
            let (head, payload) = frame.split_at_mut(34);
            let four = |at: usize| -> [u8; 4] { head[at..at + 4].try_into().unwrap() };
            let (src, dst) = (Ipv4Addr::from(four(26)).into(), Ipv4Addr::from(four(30)).into());
            mend_transport(src, dst, head[23], payload);
        }
        Some([0x86, 0xdd]) if frame.len() > 54 => {
            let len = (frame.len() - 54) as u16;
            frame[14] = 0x60;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
            let (head, payload) = frame.split_at_mut(54);
            let all = |at: usize| -> [u8; 16] { head[at..at + 16].try_into().unwrap() };
            let (src, dst) = (Ipv6Addr::from(all(22)).into(), Ipv6Addr::from(all(38)).into());
            mend_transport(src, dst, head[20], payload);
        }
        _ => {}
    }
}

fn mend_transport(src: IpAddr, dst: IpAddr, protocol: u8, payload: &mut [u8]) {
    if protocol == 17 && payload.len() >= 8 {
        let len = payload.len() as u16;
        payload[4..6].copy_from_slice(&len.to_be_bytes());
    }
    fill_checksum(src, dst, protocol, payload);
}

#[test]
fn damaged_frames_do_no_harm() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    let good = good();
    let mut rng = Rng(0x5eed);
    for round in 0..60_000 {
        let kind = rng.below(good.len());
        let frame = damage(&mut rng, &good[kind]);
        world.send(port, &frame);
        if round % 64 == 0 {
            world.pass(Duration::from_millis(rng.below(500) as u64));
            let queries = std::mem::take(&mut world.host.queries);
            for (token, message) in queries {
                world.io(|engine, io| engine.handle_dns_answers([(token, &message[..])], io));
            }
            world.sent(port);
            world.sent(other);
        }
    }
    let leased = world.engine.leases().iter().filter(|l| l.leased).count();
    assert!(leased <= 240, "{leased} leases");
    world.pass(Duration::from_secs(600));
    world.sent(other);
    let asked = arp(1, BROADCAST, (mac(9), guest(99)), (Mac([0; 6]), GATEWAY));
    assert_eq!(world.ask(other, &asked).len(), 1);
    let echo =
        from_guest(9, &ip(guest(99).into(), GATEWAY.into(), 1, 64, &[8, 0, 0, 0, 0, 1, 0, 1]));
    assert_eq!(world.ask(other, &echo).len(), 1);
}

#[test]
fn every_good_frame_is_answered() {
    let mut world = World::new();
    let port = world.attach();
    let answers: Vec<usize> = good().iter().map(|frame| world.ask(port, frame).len()).collect();
    // ARP reply, announcement, DNS and fragment get none.
    assert_eq!(answers, [1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0]);
    assert_eq!(world.host.queries.len(), 2);
}
