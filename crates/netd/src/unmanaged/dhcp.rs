//! DHCP for a guest that has no client of its own (RFC 2131): the messages, as frames.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use vmlan_wire::Mac;
use vmlan_wire::checksum::checksum;

/// What a guest has of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub mtu: Option<u16>,
    pub time: Duration,
    server: Ipv4Addr,
}

/// A guest that asks.
#[derive(Clone, Debug)]
pub struct Client {
    pub mac: Mac,
    /// What it is called.
    pub host_name: Option<String>,
    /// The transaction, by which answers are known.
    pub xid: u32,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Offer(Lease),
    Ack(Lease),
    Nak,
}

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const UDP: u8 = 17;
/// RFC 2132 section 5.1 allows less, IPv4 hosts hardly do.
const MIN_MTU: u16 = 576;
const IPV4: [u8; 2] = [0x08, 0x00];

/// Where in a frame its parts begin, and the least length of IPv4 and UDP headers.
const ETHERNET: usize = 14;
const IP: usize = 20;
const HEADER: usize = 8;

impl Client {
    /// Asks whether there is a server.
    pub fn discover(&self) -> Vec<u8> {
        self.frame(MessageType::Discover, Ipv4Addr::UNSPECIFIED, &[])
    }

    /// Takes an offer.
    pub fn request(&self, offer: &Lease) -> Vec<u8> {
        let options = [
            DhcpOption::RequestedIpAddress(offer.address),
            DhcpOption::ServerIdentifier(offer.server),
        ];
        self.frame(MessageType::Request, Ipv4Addr::UNSPECIFIED, &options)
    }

    /// Asks for more time.
    pub fn renew(&self, lease: &Lease) -> Vec<u8> {
        self.frame(MessageType::Request, lease.address, &[])
    }

    fn frame(&self, kind: MessageType, address: Ipv4Addr, options: &[DhcpOption]) -> Vec<u8> {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootRequest)
            .set_htype(HType::Eth)
            .set_xid(self.xid)
            .set_ciaddr(address)
            .set_flags(Flags::default().set_broadcast())
            .set_chaddr(&self.mac.0);
        let wanted = [OptionCode::SubnetMask, OptionCode::Router, OptionCode::InterfaceMtu];
        let all = message.opts_mut();
        all.insert(DhcpOption::MessageType(kind));
        all.insert(DhcpOption::ParameterRequestList(wanted.to_vec()));
        for option in options {
            all.insert(option.clone());
        }
        if let Some(name) = &self.host_name {
            all.insert(DhcpOption::Hostname(name.clone()));
        }
        // A message of a few options is always one.
        let message = message.to_vec().unwrap_or_default();
        self.packet(address, &message)
    }

    fn packet(&self, from: Ipv4Addr, data: &[u8]) -> Vec<u8> {
        let len = |more: usize| u16::try_from(data.len() + more).unwrap_or(u16::MAX).to_be_bytes();
        let mut ip = vec![0x45, 0];
        ip.extend(len(IP + HEADER));
        ip.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        ip.extend(from.octets());
        ip.extend(Ipv4Addr::BROADCAST.octets());
        let sum = checksum(&ip);
        if let Some(place) = ip.get_mut(10..12) {
            place.copy_from_slice(&sum);
        }
        let mut frame = vec![0xff; 6];
        frame.extend(self.mac.0);
        frame.extend(IPV4);
        frame.extend(ip);
        frame.extend(CLIENT_PORT.to_be_bytes());
        frame.extend(SERVER_PORT.to_be_bytes());
        frame.extend(len(HEADER));
        // Over IPv4, UDP may go without a checksum.
        frame.extend([0, 0]);
        frame.extend(data);
        frame
    }

    /// What a frame says if it is an answer to this client.
    pub fn answer(&self, frame: &[u8]) -> Option<Answer> {
        let ip = frame.get(ETHERNET..).filter(|_| frame.get(12..14) == Some(&IPV4))?;
        let udp =
            ip.get(usize::from(ip.first()? & 0xf) * 4..).filter(|_| ip.get(9) == Some(&UDP))?;
        if udp.get(2..4)? != CLIENT_PORT.to_be_bytes() {
            return None;
        }
        let message = Message::decode(&mut Decoder::new(udp.get(HEADER..)?)).ok()?;
        if message.xid() != self.xid || message.chaddr() != self.mac.0 {
            return None;
        }
        match message.opts().msg_type()? {
            MessageType::Offer => lease(&message).map(Answer::Offer),
            MessageType::Ack => lease(&message).map(Answer::Ack),
            MessageType::Nak => Some(Answer::Nak),
            _ => None,
        }
    }
}

fn lease(message: &Message) -> Option<Lease> {
    let option = |code| message.opts().get(code);
    let prefix = match option(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => u8::try_from(mask.to_bits().leading_ones()).ok()?,
        _ => 24,
    };
    let address = message.yiaddr();
    Some(Lease {
        address,
        prefix,
        gateway: match option(OptionCode::Router) {
            Some(DhcpOption::Router(list)) => list.first().copied(),
            _ => None,
        },
        mtu: match option(OptionCode::InterfaceMtu) {
            Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= MIN_MTU => Some(*mtu),
            _ => None,
        },
        time: match option(OptionCode::AddressLeaseTime) {
            Some(DhcpOption::AddressLeaseTime(seconds)) => Duration::from_secs((*seconds).into()),
            _ => Duration::from_secs(3600),
        },
        server: match option(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => *server,
            _ => message.siaddr(),
        },
    })
    .filter(|lease| !lease.address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client { mac: Mac([2, 0, 0, 0, 0, 1]), host_name: Some("lima-a".into()), xid: 7 }
    }

    /// A server's answer: the client's own words with a direction and a few options changed.
    fn reply(kind: MessageType, mtu: u16) -> Vec<u8> {
        let frame = client().discover();
        let mut decoder = Decoder::new(frame.get(ETHERNET + IP + HEADER..).unwrap());
        let mut message = Message::decode(&mut decoder).unwrap();
        message.set_opcode(Opcode::BootReply).set_yiaddr([10, 0, 0, 9]);
        for option in [
            DhcpOption::MessageType(kind),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)),
            DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 0, 1)]),
            DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 1)),
            DhcpOption::AddressLeaseTime(60),
            DhcpOption::InterfaceMtu(mtu),
        ] {
            message.opts_mut().insert(option);
        }
        let mut frame = client().packet(Ipv4Addr::new(10, 0, 0, 1), &message.to_vec().unwrap());
        let ports = ETHERNET + IP;
        frame[ports..ports + 4].copy_from_slice(&[0, 67, 0, 68]);
        frame
    }

    #[test]
    fn answers_are_understood() {
        let lease = Lease {
            address: Ipv4Addr::new(10, 0, 0, 9),
            prefix: 16,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            mtu: Some(9000),
            time: Duration::from_secs(60),
            server: Ipv4Addr::new(10, 0, 0, 1),
        };
        let answer = |kind, mtu| client().answer(&reply(kind, mtu));
        assert_eq!(answer(MessageType::Offer, 9000), Some(Answer::Offer(lease.clone())));
        let small = Lease { mtu: None, ..lease };
        assert_eq!(answer(MessageType::Ack, 60), Some(Answer::Ack(small)));
        assert_eq!(answer(MessageType::Nak, 60), Some(Answer::Nak));
    }

    #[test]
    fn what_is_no_answer_to_the_client_is_left_alone() {
        let good = reply(MessageType::Ack, 1500);
        let other = Client { xid: 8, ..client() };
        assert_eq!(other.answer(&good), None);
        assert_eq!(client().answer(&client().discover()), None);
        for len in 0..good.len() {
            // Cut anywhere, it must not be more than nothing.
            let _ = client().answer(&good[..len]);
        }
        assert_eq!(client().answer(&good[..ETHERNET + IP + HEADER + 20]), None);
    }
}
