//! The frames of a hostile guest: well-formed ones of every kind, with whatever the script says in
//! them, and damaged ones.

use std::net::{IpAddr, SocketAddr};

use vmlan_testkit::addr;
use vmlan_testkit::packet::{self, ACK, FIN, RST, SYN, Tcp, TcpOption};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Mac, Offload};

use super::Run;
use super::outside::remote;
use crate::script::Script;

impl Run {
    pub(super) fn gateway(&self) -> Mac {
        self.world.engine.config().gateway_mac
    }

    /// A guest's address, of four that it may use.
    pub(super) fn source(&self, choice: u8, side: usize) -> IpAddr {
        let number = 15 + side as u32 * 4 + u32::from(choice & 1);
        let config = self.world.engine.config();
        if choice & 2 == 0 {
            config.ipv4.nth(number).into()
        } else {
            config.ipv6.nth(u64::from(number)).into()
        }
    }

    /// Source and destination of one family.
    pub(super) fn ends(&self, script: &mut Script<'_>, side: usize) -> (SocketAddr, SocketAddr) {
        let (from, to) = (script.u8(), script.u8());
        let src = self.source(from, side);
        let port = 4000 + u16::from(from >> 2);
        let config = self.world.engine.config();
        let v6 = src.is_ipv6();
        let at = match (to >> 5, v6) {
            (0, false) => config.gateway.into(),
            (0, true) => config.ipv6.gateway().into(),
            (1, false) => config.dns.into(),
            (1, true) => config.ipv6.dns().into(),
            (2, _) => self.source(from ^ 1, side ^ 1),
            _ => remote(to, 0).ip(),
        };
        let at = match at {
            IpAddr::V4(a) if v6 => IpAddr::V6(a.to_ipv6_compatible()),
            IpAddr::V4(_) | IpAddr::V6(_) if at.is_ipv6() == v6 => at,
            _ => remote(to, 0).ip(),
        };
        let at = if v6 && at.is_ipv4() { addr("[2001:db8::1]:1").ip() } else { at };
        let to_port = match to & 0x1f {
            31 => 53,
            30 => 67,
            29 => 547,
            // Where the gateway called from last, and whence its relays' datagrams come.
            28 => self.caller,
            27 => 4000,
            n => u16::from(n),
        };
        (SocketAddr::new(src, port), SocketAddr::new(at, to_port))
    }

    pub(super) fn segment(&mut self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (src, dst) = self.ends(script, side);
        let how = script.u8();
        let flags = match how & 7 {
            0 => SYN,
            1..=3 => ACK,
            4 => ACK | FIN,
            5 => RST,
            6 => SYN | ACK,
            _ => script.u8(),
        };
        let (seq, ack) = self.conns.get(&(src, dst)).copied().unwrap_or((1000, 0));
        let (mut seq, mut ack) = (seq, ack);
        if how & 8 != 0 {
            seq = seq.wrapping_add_signed(i32::from(script.u16().cast_signed()));
        }
        if how & 16 != 0 {
            ack = ack.wrapping_add_signed(i32::from(script.u16().cast_signed()));
        }
        let window = if how & 32 != 0 { script.u16() } else { 65_535 };
        let len = if how & 64 != 0 { usize::from(script.u16()) % 2000 } else { 0 };
        let mut tcp = Tcp::new(src, dst, flags).seq(seq).window(window);
        tcp.ack = ack;
        tcp.payload = vec![script.u8(); len];
        if how & 128 != 0 {
            for _ in 0..=script.u8() & 3 {
                tcp.options.push(option(script, ack));
            }
        } else if flags == SYN {
            tcp.options.push(TcpOption::Mss(1460));
            tcp.options.push(TcpOption::WindowScale(7));
            tcp.options.push(TcpOption::SackPermitted);
        }
        if flags & SYN != 0 || how & 8 == 0 {
            self.conns.insert((src, dst), (tcp.next_seq(), tcp.ack));
        }
        tcp.frame(mac(side), self.gateway())
    }

    pub(super) fn datagram(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (src, dst) = self.ends(script, side);
        packet::udp(mac(side), self.gateway(), src, dst, script.sized())
    }

    pub(super) fn echo(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (src, dst) = self.ends(script, side);
        let id = (u16::from(script.u8()), u16::from(script.u8()));
        packet::echo_request(mac(side), self.gateway(), src.ip(), dst.ip(), id, script.sized())
    }

    pub(super) fn fragment(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let (IpAddr::V4(src), place) = (self.source(0, side), script.u16()) else {
            return Vec::new();
        };
        let (id, protocol) = (u16::from(script.u8() & 3), script.u8());
        let protocol = [17, 17, 6, 1, protocol][usize::from(protocol) % 5];
        let packet =
            packet::ipv4(src, [10, 0, 0, 1].into(), protocol, place & 0x3fff, id, script.sized());
        packet::ethernet(mac(side), self.gateway(), 0x0800, &packet)
    }

    pub(super) fn arp(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let net = self.world.engine.config().ipv4;
        let (from, wanted) = (script.u8(), script.u8());
        packet::arp_request(mac(side), net.nth(from.into()), net.nth(wanted.into()))
    }

    /// Router and neighbour solicitations and what else begins like them.
    pub(super) fn icmp_v6(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let mut body = vec![133 + (script.u8() & 7), script.u8() & 1, 0, 0];
        body.extend_from_slice(script.sized());
        let link_local = addr("[fe80::1:2]:0").ip();
        let all = addr("[ff02::1]:0").ip();
        let mut frame = packet::ip_frame(mac(side), self.gateway(), link_local, all, 58, &body);
        if let Some(hops) = frame.get_mut(21) {
            *hops = 255;
        }
        frame
    }

    /// DHCP and DHCPv6.
    pub(super) fn boot(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let payload = script.sized();
        if script.u8() & 1 == 0 {
            let (from, to) = (addr("0.0.0.0:68"), addr("255.255.255.255:67"));
            return packet::udp(mac(side), Mac::BROADCAST, from, to, payload);
        }
        let (from, to) = (addr("[fe80::1:2]:546"), addr("[ff02::1:2]:547"));
        packet::udp(mac(side), Mac([0x33, 0x33, 0, 1, 0, 2]), from, to, payload)
    }

    /// A frame for the other guest, or for nobody.
    pub(super) fn neighbour(&self, script: &mut Script<'_>, side: usize) -> Vec<u8> {
        let to = match script.u8() & 3 {
            0 => Mac::BROADCAST,
            1 => Mac([0x33, 0x33, 0, 0, 0, 1]),
            2 => mac(side ^ 1),
            _ => Mac([2, 9, 9, 9, 9, script.u8()]),
        };
        let from = if script.u8() & 7 == 0 { mac(side ^ 1) } else { mac(side) };
        packet::ethernet(from, to, script.u16(), script.sized())
    }

    /// The frame before, with some bytes changed.
    pub(super) fn damaged(&self, script: &mut Script<'_>) -> Vec<u8> {
        let mut frame = self.last.clone();
        for _ in 0..=script.u8() & 3 {
            let (at, value) = (usize::from(script.u16()), script.u8());
            let len = frame.len().max(1);
            if let Some(byte) = frame.get_mut(at % len) {
                *byte ^= value;
            }
        }
        if script.u8() & 7 == 0 {
            frame.truncate(usize::from(script.u16()) % (frame.len() + 1));
        }
        frame
    }
}

pub(super) fn mac(side: usize) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, 15 + side as u8])
}

pub(super) fn option(script: &mut Script<'_>, ack: u32) -> TcpOption {
    match script.u8() & 7 {
        0 => TcpOption::Mss(script.u16()),
        1 => TcpOption::WindowScale(script.u8()),
        2 => TcpOption::SackPermitted,
        3..=5 => {
            let mut edge = || ack.wrapping_add(u32::from(script.u16()));
            TcpOption::Sack((0..2).map(|_| (edge(), edge())).collect())
        }
        _ => {
            let len = usize::from(script.u8()) % 12;
            TcpOption::Raw(script.bytes(len).to_vec())
        }
    }
}

pub(super) fn offload(script: &mut Script<'_>) -> Offload {
    let how = script.u8();
    let checksum = match how & 3 {
        0 => Checksum::Complete,
        1 => Checksum::Verified,
        2 => Checksum::Partial { start: 34, offset: 16 },
        _ => Checksum::Partial { start: script.u16(), offset: script.u16() },
    };
    let kind = if how & 4 == 0 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let gso = (how & 8 != 0).then(|| Gso { kind, size: script.u16(), header_len: script.u16() });
    Offload { checksum, gso }
}
