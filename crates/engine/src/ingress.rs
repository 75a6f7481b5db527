//! The way of a frame that a guest has sent: who may have sent it, to which port it goes, and what of
//! it is for the network itself.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol};
use vmlan_wire::{Frame, Mac, OutFrame};

use crate::Engine;
use crate::between::Way;
use crate::gateway;
use crate::gateway::guard::{self, Claims};
use crate::io::{Io, PortId};
use crate::packet::{Packet, Place};
use crate::stats::Drop;
use crate::switch::Learned;
use crate::time::Instant;

impl Engine {
    /// One frame: to another guest, which is left to the caller, to us, or to everybody.
    pub(crate) fn frame(
        &mut self,
        port: PortId,
        frame: &Frame<'_>,
        place: Place<'_>,
        io: &mut Io<'_>,
    ) -> Result<Option<Way>, Drop> {
        let eth = EthernetFrame::new_checked(frame.data).map_err(|_| Drop::Malformed)?;
        let (src, dst) = (eth.src_addr(), eth.dst_addr());
        if self.net.config.switch_only {
            return self.switch(port, (src, dst), frame, io);
        }
        if !src.is_unicast() || src == self.net.config.gateway_mac {
            return Err(Drop::Spoofed);
        }
        match self.net.switch.learn(src, port, io.now) {
            Learned::Ok => {}
            Learned::TooMany => return Err(Drop::MacLimit),
            Learned::Refused { ask } => {
                if ask {
                    gateway::ask_owner(&mut self.net, io, src);
                }
                return Err(Drop::Spoofed);
            }
        }
        if dst == self.net.config.gateway_mac {
            return self.local(port, &eth, frame, place, io).map(|()| None);
        }
        let claims = guard::check(&self.net.config, &eth)?;
        if !self.may_claim(claims, src, port, io.now) {
            // A DHCP client may still have an address from elsewhere, and `local` knows it.
            let for_us = !dst.is_unicast() && eth.ethertype() == EthernetProtocol::Ipv4;
            return if for_us {
                self.local(port, &eth, frame, place, io).map(|()| None)
            } else {
                Err(Drop::Source)
            };
        }
        if dst.is_unicast()
            && let Some(to) = self.net.switch.port_of(dst)
        {
            return Ok((to != port).then(|| Way::new(frame, claims, to)));
        }
        self.net.switch.flood(io.links, Some(port), OutFrame::from(*frame), &mut self.net.stats);
        if !dst.is_unicast() {
            self.local(port, &eth, frame, place, io)?;
        }
        Ok(None)
    }

    /// One frame where there is nothing but the switch.
    fn switch(
        &mut self,
        port: PortId,
        (src, dst): (Mac, Mac),
        frame: &Frame<'_>,
        io: &mut Io<'_>,
    ) -> Result<Option<Way>, Drop> {
        if !src.is_unicast() {
            return Err(Drop::Spoofed);
        }
        match self.net.switch.learn(src, port, io.now) {
            Learned::Ok => {}
            Learned::TooMany => return Err(Drop::MacLimit),
            Learned::Refused { .. } => return Err(Drop::Spoofed),
        }
        if dst.is_unicast()
            && let Some(to) = self.net.switch.port_of(dst)
        {
            return Ok((to != port).then(|| Way::new(frame, Claims::default(), to)));
        }
        self.net.switch.flood(io.links, Some(port), OutFrame::from(*frame), &mut self.net.stats);
        Ok(None)
    }

    /// Whether a guest may say to others that these addresses are its own.
    fn may_claim(&mut self, claims: Claims, mac: Mac, port: PortId, now: Instant) -> bool {
        let net = &mut self.net;
        if let Some(wish) = claims.wish
            && net.config.is_guests(wish)
        {
            // Whoever asks first has it: nobody can then say at every question that it is taken.
            net.claim(wish, mac, port, now);
        }
        let mut said = [claims.source, claims.target].into_iter().flatten();
        said.all(|ip| net.config.is_guests(ip) && net.claim(ip, mac, port, now))
    }

    /// A frame for the gateway, or for everybody.
    fn local(
        &mut self,
        port: PortId,
        eth: &EthernetFrame<&[u8]>,
        frame: &Frame<'_>,
        place: Place<'_>,
        io: &mut Io<'_>,
    ) -> Result<(), Drop> {
        match eth.ethertype() {
            EthernetProtocol::Arp => {
                self.gateway_asked = true;
                self.gateway.arp(&mut self.net, io, port, eth)
            }
            EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => {
                let packet = Packet::parse(port, eth, frame)?;
                match self.check_source(&packet, io) {
                    // Whoever comes from another network asks for its old address from there.
                    Err(Drop::Source) if gateway::is_for_dhcp(&self.net, &packet) => {}
                    checked => checked?,
                }
                self.ip(&packet, place, io)
            }
            _ => Err(Drop::UnknownProtocol),
        }
    }

    /// Guests speak for themselves only.
    fn check_source(&mut self, packet: &Packet<'_>, io: &Io<'_>) -> Result<(), Drop> {
        let src = packet.src;
        if src.is_unspecified() {
            return Ok(());
        }
        if !self.net.config.is_guests(src) {
            return Err(Drop::Source);
        }
        let claimed = self.net.claim(src, packet.src_mac, packet.port, io.now);
        if claimed { Ok(()) } else { Err(Drop::Source) }
    }

    fn ip(&mut self, packet: &Packet<'_>, place: Place<'_>, io: &mut Io<'_>) -> Result<(), Drop> {
        if packet.fragment.is_some() {
            let Some(whole) = self.fragments.add(packet, io.now, &mut self.net.stats) else {
                return Ok(());
            };
            return match whole.packet(packet) {
                Some(packet) => {
                    // What was cut may be cut again.
                    let packet = Packet { dont_fragment: false, ..packet };
                    self.transport(&packet, Place { index: None, ..place }, io)
                }
                None => Err(Drop::Malformed),
            };
        }
        self.transport(packet, place, io)
    }

    fn transport(
        &mut self,
        packet: &Packet<'_>,
        place: Place<'_>,
        io: &mut Io<'_>,
    ) -> Result<(), Drop> {
        if self.gateway.wants(&self.net, packet) {
            self.gateway_asked = true;
            return self.gateway.handle(&mut self.net, io, packet);
        }
        if packet.src.is_unspecified() || !packet.dst_is_unicast() {
            // Broadcast and multicast are between guests; the switch has done its part.
            return Ok(());
        }
        if packet.dst_mac != self.net.config.gateway_mac {
            return Ok(());
        }
        // As a router: the host alias and the services are ours, everything else is a hop away.
        if packet.ttl <= 1 && !self.net.config.is_own(packet.dst) {
            gateway::icmp::time_exceeded(&mut self.net, io, packet);
            return Err(Drop::Expired);
        }
        match packet.protocol {
            IpProtocol::Tcp => self.flows.tcp.segment(&mut self.net, io, packet),
            IpProtocol::Udp => self.flows.udp.datagram(&mut self.net, io, packet, place),
            IpProtocol::Icmp | IpProtocol::Icmpv6
                if self.flows.tcp.unreachable(&mut self.net, io, packet) =>
            {
                Ok(())
            }
            IpProtocol::Icmp | IpProtocol::Icmpv6 => {
                self.flows.ping.message(&mut self.net, io, packet)
            }
            _ => {
                gateway::icmp::protocol_unreachable(&mut self.net, io, packet);
                Err(Drop::UnknownProtocol)
            }
        }
    }
}

impl Packet<'_> {
    fn dst_is_unicast(&self) -> bool {
        match self.dst {
            IpAddr::V4(a) => !(a.is_multicast() || a.is_broadcast() || a.is_unspecified()),
            IpAddr::V6(a) => !(a.is_multicast() || a == Ipv6Addr::UNSPECIFIED),
        }
    }
}
