//! The last step before a link: what the link cannot do is done here.

use vmlan_wire::OutFrame;

use super::PortCaps;
use crate::io::{Links, PortId};
use crate::stats::Stats;

/// Buffers for frames that have to be rewritten, used again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {}

/// Sends `frames` to `port` and returns how many it took.
pub(super) fn send(
    links: &mut dyn Links,
    port: PortId,
    _caps: PortCaps,
    frames: &[OutFrame<'_>],
    _scratch: &mut Scratch,
    _stats: &mut Stats,
) -> usize {
    links.send(port, frames)
}
