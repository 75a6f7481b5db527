//! Whose readiness an event is: the numbers under which descriptors are registered with the poll.
//!
//! Values below 2^62 are the engine's [`Token`]s, bit 62 marks what the host crate registered for
//! itself, and bit 63 what the daemon owns.

use vmlan_engine::Token;

const HOST: usize = 1 << 62;
const DAEMON: usize = 1 << 63;
const KIND_SHIFT: u32 = 32;

/// The owner of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A flow or a listener of the engine.
    Engine(Token),
    /// The host crate's own business.
    Host,
    /// A guest's link.
    Link(u32),
    /// A socket where guests connect.
    Listener(u32),
    /// A descriptor that somebody asked to have watched.
    Watch(u32),
    ControlListener,
    /// A client of the control API.
    Control(u32),
    JoinListener,
    /// A guest that has joined with its descriptor, or is about to.
    Join(u32),
    /// A tunnel's port, by its number and family.
    TunnelListener(u32),
    /// A client of a tunnel.
    Tunnel(u32),
    /// The datagrams of a client of a tunnel.
    TunnelRelay(u32),
    /// A client of the control API that reads frames along.
    Capture(u32),
    /// The loop's own timer.
    Alarm,
}

impl Owner {
    pub(crate) fn of(token: mio::Token) -> Option<Self> {
        let value = token.0;
        if value & DAEMON == 0 {
            let internal = value & HOST != 0;
            return Some(if internal { Self::Host } else { Self::Engine(Token(value as u64)) });
        }
        #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are meant")]
        let index = value as u32;
        match (value & !DAEMON) >> KIND_SHIFT {
            0 => Some(Self::Link(index)),
            1 => Some(Self::Listener(index)),
            2 => Some(Self::Watch(index)),
            3 => Some(Self::ControlListener),
            4 => Some(Self::Control(index)),
            5 => Some(Self::JoinListener),
            6 => Some(Self::Join(index)),
            7 => Some(Self::TunnelListener(index)),
            8 => Some(Self::Tunnel(index)),
            9 => Some(Self::TunnelRelay(index)),
            10 => Some(Self::Capture(index)),
            11 => Some(Self::Alarm),
            _ => None,
        }
    }

    /// The number of one of the daemon's own descriptors.
    pub(crate) fn token(self) -> mio::Token {
        let (kind, index) = match self {
            Self::Engine(token) => return mio::Token(usize::try_from(token.0).unwrap_or(0)),
            Self::Host => return mio::Token(HOST),
            Self::Link(index) => (0, index),
            Self::Listener(index) => (1, index),
            Self::Watch(index) => (2, index),
            Self::ControlListener => (3, 0),
            Self::Control(index) => (4, index),
            Self::JoinListener => (5, 0),
            Self::Join(index) => (6, index),
            Self::TunnelListener(index) => (7, index),
            Self::Tunnel(index) => (8, index),
            Self::TunnelRelay(index) => (9, index),
            Self::Capture(index) => (10, index),
            Self::Alarm => (11, 0),
        };
        mio::Token(DAEMON | kind << KIND_SHIFT | index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_is_found_by_its_token() {
        for owner in [
            Owner::Engine(Token(0)),
            Owner::Engine(Token((1 << 61) | 5)),
            Owner::Host,
            Owner::Link(0),
            Owner::Link(u32::MAX),
            Owner::Listener(3),
            Owner::Watch(9),
            Owner::ControlListener,
            Owner::Control(15),
            Owner::JoinListener,
            Owner::Join(7),
            Owner::TunnelListener(1),
            Owner::Tunnel(3),
            Owner::TunnelRelay(3),
            Owner::Capture(8),
            Owner::Alarm,
        ] {
            assert_eq!(Owner::of(owner.token()), Some(owner));
        }
    }
}
