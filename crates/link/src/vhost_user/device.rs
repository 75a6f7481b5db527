//! The device that a monitor sets up: its features, its memory and its two rings, and frames from one
//! ring and to the other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vmlan_wire::{FrameBatch, OutFrame};

use super::KICK;
use super::frames::{Format, FromGuest, HEADER, Sent, Taken, ToGuest, is_able};
use super::memory::Memory;
use super::ring::{Broken, Piece, Ring};
use crate::{LinkCaps, vnet};

/// The ring of frames to the guest, and of those from it.
pub(super) const TO_GUEST: usize = 0;
pub(super) const FROM_GUEST: usize = 1;

pub(super) const fn bit(n: u32) -> u64 {
    1 << n
}

const OFFERED: u64 = bit(VIRTIO_F_VERSION_1)
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(VIRTIO_NET_F_MRG_RXBUF)
    | bit(VIRTIO_NET_F_MTU)
    | bit(VIRTIO_NET_F_CSUM)
    | bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_HOST_TSO4)
    | bit(VIRTIO_NET_F_HOST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

const NOT_OFFERED: Error = Error::InvalidOperation("not offered");
const OUTSIDE: &str = "its rings do not lie in its memory as they should";

/// Outcome of [`Device::flush`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flush {
    pub(super) blocked: bool,
    pub(super) look: bool,
}

#[derive(Debug)]
pub(super) struct Device {
    poll: Arc<OwnedFd>,
    features: u64,
    protocol: u64,
    memory: Option<Memory>,
    rings: [Ring; 2],
    /// There was no room for a frame when the guest had offered this many descriptors.
    blocked: Option<u16>,
    /// Why the monitor's last message was refused.
    refusal: Option<&'static str>,
    /// Storage for the pieces of a frame.
    pieces: Vec<Piece>,
    /// And for the chains that it takes, with their room.
    heads: Vec<(u16, usize)>,
}

impl Device {
    pub(super) fn new(poll: Arc<OwnedFd>) -> io::Result<Self> {
        let ring = || Ring::new().map_err(|Broken| io::Error::from(io::ErrorKind::InvalidInput));
        Ok(Self {
            poll,
            features: 0,
            protocol: 0,
            memory: None,
            rings: [ring()?, ring()?],
            blocked: None,
            refusal: None,
            pieces: Vec::new(),
            heads: Vec::new(),
        })
    }

    pub(super) fn refusal(&self) -> Option<&'static str> {
        self.refusal
    }

    pub(super) fn caps(&self) -> LinkCaps {
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        LinkCaps {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    /// Whether the monitor enables rings, and has said so.
    pub(super) fn has_protocol_features(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// Whether the monitor may ask for an answer to any message.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// A frame to the guest waits for room.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// The monitor is gone.
    pub(super) fn close(&mut self) {
        self.rings.iter_mut().for_each(Ring::stop);
        self.memory = None;
        self.blocked = None;
    }

    fn has(&self, feature: u32) -> bool {
        self.features & bit(feature) != 0
    }

    fn format(&self) -> Format {
        let merges = self.has(VIRTIO_NET_F_MRG_RXBUF);
        // Drivers of old have a shorter header.
        let header = if merges || self.has(VIRTIO_F_VERSION_1) { HEADER } else { vnet::HEADER };
        let checksum = self.has(VIRTIO_NET_F_CSUM);
        let from_guest = LinkCaps {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_HOST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_HOST_TSO6),
        };
        Format { header, merges, from_guest, to_guest: self.caps() }
    }

    /// Takes frames that the guest sends.
    pub(super) fn receive(&mut self, batch: &mut FrameBatch) -> Taken {
        let format = self.format();
        let Self { memory: Some(memory), rings: [_, ring], pieces, .. } = self else {
            return Taken::default();
        };
        if !ring.is_active() {
            return Taken::default();
        }
        let mut frames = FromGuest { guest: &memory.guest, ring, pieces, format };
        frames.receive(batch).unwrap_or_else(|Broken| {
            ring.stop();
            Taken::default()
        })
    }

    /// Gives the guest frames, and returns how many.
    pub(super) fn send(&mut self, frames: &[OutFrame<'_>]) -> usize {
        let format = self.format();
        let Self { memory: Some(memory), rings: [ring, _], pieces, heads, blocked, .. } = self
        else {
            return frames.len();
        };
        if blocked.is_some() {
            return 0;
        }
        for (taken, frame) in frames.iter().enumerate() {
            // What a card that is not in use gets is lost, and so is what it could not finish.
            if !ring.is_active() || !is_able(format.to_guest, frame.offload) {
                continue;
            }
            let mut to = ToGuest { guest: &memory.guest, ring, pieces, heads, format };
            match to.send(frame) {
                Ok(Sent::Yes) => {}
                Ok(Sent::NoRoom { offered }) => {
                    *blocked = Some(offered);
                    return taken;
                }
                Err(Broken) => ring.stop(),
            }
        }
        frames.len()
    }

    /// Shows the guest what it was given, and tells it.
    pub(super) fn flush(&mut self) -> Flush {
        let mut flush = Flush::default();
        let Some(memory) = &self.memory else { return flush };
        let guest = &memory.guest;
        for ring in self.rings.iter_mut().filter(|ring| ring.is_active()) {
            match ring.publish(guest).and_then(|()| ring.tell(guest)) {
                Ok(look) => flush.look |= look,
                Err(Broken) => ring.stop(),
            }
        }
        let [ring, _] = &mut self.rings;
        if let Some(offered) = self.blocked {
            let more = !ring.is_active() || ring.offered(guest).map_or(true, |now| now != offered);
            if more {
                self.blocked = None;
                if ring.is_active() && ring.ask_for_kicks(guest, false).is_err() {
                    ring.stop();
                }
            }
            flush.blocked = !more;
            flush.look |= !more;
        }
        flush
    }

    fn refuse<T>(&mut self, why: &'static str) -> Result<T> {
        self.refusal = Some(why);
        Err(Error::InvalidParam)
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn stop_ring(&mut self, index: usize) {
        let Some(ring) = self.rings.get_mut(index) else { return };
        if let Some(kick) = ring.kick.take() {
            // The monitor has the descriptor too, so that closing it is not enough.
            let _ = epoll::delete(&self.poll, &kick);
        }
        ring.stop();
        if index == TO_GUEST {
            self.blocked = None;
        }
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in [TO_GUEST, FROM_GUEST] {
            self.stop_ring(index);
        }
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(OFFERED)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !OFFERED != 0 {
            return self.refuse("its monitor wants features that were not offered");
        }
        self.features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let memory = match Memory::map(table, files) {
            Ok(memory) => memory,
            Err(why) => return self.refuse(why),
        };
        if !self.rings.iter().all(|ring| ring.is_in(&memory.guest)) {
            return self.refuse("its monitor takes the memory of a ring away that is in use");
        }
        self.memory = Some(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        match self.ring(index)?.set_size(num) {
            Ok(()) => Ok(()),
            Err(Broken) => self.refuse("its rings may have up to 1024 descriptors"),
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let place = |user| self.memory.as_ref().and_then(|memory| memory.guest_address(user));
        let places = [descriptor, available, used].map(place);
        let [Some(descriptor), Some(available), Some(used)] = places else {
            return self.refuse(OUTSIDE);
        };
        match self.ring(index)?.set_addresses(descriptor, available, used) {
            Ok(()) => Ok(()),
            Err(Broken) => self.refuse(OUTSIDE),
        }
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_next(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.ring(index)?.next();
        self.stop_ring(index as usize);
        Ok(VhostUserVringState::new(index, next.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let at = usize::from(index);
        self.ring(index.into())?;
        self.stop_ring(at);
        let Some(kick) = fd.map(OwnedFd::from).filter(|fd| is_eventfd(fd.as_fd())) else {
            return self.refuse("its monitor gives no eventfd to be kicked by");
        };
        let (data, flags) = (EventData::new_u64(KICK), EventFlags::IN | EventFlags::ET);
        if epoll::add(&self.poll, &kick, data, flags).is_err() {
            return self.refuse("its monitor gives one eventfd twice");
        }
        // Without the feature nobody says that a ring is to be used.
        let enable = !self.has_protocol_features();
        let (Some(memory), Some(ring)) = (&self.memory, self.rings.get_mut(at)) else {
            return self.refuse(OUTSIDE);
        };
        ring.kick = Some(kick);
        ring.enabled |= enable;
        match ring.start(&memory.guest, at == FROM_GUEST) {
            Ok(()) => Ok(()),
            Err(Broken) => self.refuse(OUTSIDE),
        }
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = fd.map(OwnedFd::from);
        if let Some(call) = &call
            && (!is_eventfd(call.as_fd()) || rustix::io::ioctl_fionbio(call, true).is_err())
        {
            return self.refuse("its monitor gives no eventfd to be called by");
        }
        self.ring(index.into())?.call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    // What follows is for features that are not offered.

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(NOT_OFFERED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(NOT_OFFERED)
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(NOT_OFFERED)
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}

/// Whether a descriptor is an eventfd. What else could be passed may block.
fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(path, Vec::new()).is_ok_and(|to| to.as_bytes() == b"anon_inode:[eventfd]")
}
