//! Guests that come from processes nobody vouches for: how many there may be, and who has to make
//! room. Whoever opens connections without end fills its own share only, and those who never say
//! anything make room first.

use crate::ports::{LinkId, Ports};

/// Guests of all processes together: as many as a /24 has addresses.
const MAX: usize = 256;

/// Guests of one process. A machine has a process, and hardly more than a few cards.
const MAX_OF_PROCESS: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// The oldest first.
    members: Vec<(LinkId, Option<i32>)>,
}

/// Whether another guest may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Free,
    /// If this one goes.
    InPlaceOf(LinkId),
    Refused,
}

impl Crowd {
    /// Whether a guest of this process may come.
    pub(crate) fn admit(&mut self, process: Option<i32>, ports: &Ports) -> Admission {
        self.members.retain(|(link, _)| ports.id(link.index) == Some(*link));
        self.decide(process, |link| ports.is_silent(link))
    }

    fn decide(&self, process: Option<i32>, silent: impl Fn(LinkId) -> bool) -> Admission {
        let known = process.is_some();
        let own = self.members.iter().filter(|(_, other)| known && *other == process).count();
        if own >= MAX_OF_PROCESS {
            return Admission::Refused;
        }
        if self.members.len() < MAX {
            return Admission::Free;
        }
        let silent = self.members.iter().find(|(link, _)| silent(*link));
        silent.map_or(Admission::Refused, |(link, _)| Admission::InPlaceOf(*link))
    }

    pub(crate) fn add(&mut self, link: LinkId, process: Option<i32>) {
        self.members.push((link, process));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_its_share_and_the_silent_make_room() {
        let mut crowd = Crowd::default();
        for index in 0..16 {
            assert_eq!(crowd.decide(Some(1), |_| true), Admission::Free);
            crowd.add(LinkId::of(index), Some(1));
        }
        assert_eq!(crowd.decide(Some(1), |_| true), Admission::Refused);
        for index in 16..256 {
            assert_eq!(crowd.decide(None, |_| true), Admission::Free);
            crowd.add(LinkId::of(index), None);
        }
        let third = |link: LinkId| link == LinkId::of(2);
        assert_eq!(crowd.decide(Some(2), third), Admission::InPlaceOf(LinkId::of(2)));
        assert_eq!(crowd.decide(Some(2), |_| false), Admission::Refused);
    }
}
