//! A monitor and its guest's driver, by hand: the other half of the protocol, real memory and real
//! eventfds.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, SealFlags};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmlan_wire::FrameBatch;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::device::{FROM_GUEST, TO_GUEST, bit};
use super::super::*;

pub(super) const SIZE: u16 = 16;
pub(super) const MEMORY: u64 = 1 << 20;
/// Where the monitor has the guest's memory.
const USER: u64 = 0x7f00_0000_0000;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) struct Machine {
    pub(super) link: VhostUserLink,
    pub(super) frontend: Frontend,
    pub(super) memory: GuestMemoryMmap<()>,
    pub(super) rings: [Driver; 2],
    pub(super) batch: FrameBatch,
}

/// A driver's side of a ring.
pub(super) struct Driver {
    pub(super) table: u64,
    pub(super) offered: u16,
    seen: u16,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
}

impl Driver {
    fn new(table: u64) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self { table, offered: 0, seen: 0, kick: event(), call: event() }
    }

    pub(super) fn avail(&self) -> u64 {
        self.table + 0x1000
    }

    pub(super) fn used(&self) -> u64 {
        self.table + 0x2000
    }
}

pub(super) fn memfd(seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, MEMORY).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

impl Machine {
    /// A machine that has connected, and no more.
    pub(super) fn new() -> Self {
        let (monitor, connection) = UnixStream::pair().unwrap();
        let memory = memfd(SealFlags::SHRINK);
        let region = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(memory.into(), 0)));
        Self {
            link: VhostUserLink::new(connection).unwrap(),
            frontend: Frontend::from_stream(monitor, 2),
            memory: GuestMemoryMmap::from_ranges_with_files([region]).unwrap(),
            rings: [Driver::new(0x1000), Driver::new(0x4000)],
            batch: FrameBatch::default(),
        }
    }

    /// A machine whose driver has taken these features, and started both rings.
    pub(super) fn with(features: &[u32]) -> Self {
        let mut machine = Self::new();
        machine.negotiate(features);
        machine.give_memory().unwrap();
        machine.start(TO_GUEST).unwrap();
        machine.start(FROM_GUEST).unwrap();
        machine
    }

    /// Has the monitor do something while the link is served.
    pub(super) fn ask<T: Send>(&mut self, what: impl FnOnce(&mut Frontend) -> T + Send) -> T {
        let Self { frontend, link, batch, .. } = self;
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| what(frontend));
            while !asked.is_finished() {
                let _ = link.recv(batch);
                std::thread::yield_now();
            }
            // What needs no answer may still be there.
            let _ = link.recv(batch);
            asked.join().unwrap()
        })
    }

    pub(super) fn negotiate(&mut self, features: &[u32]) {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = features.iter().fold(bit(VIRTIO_F_VERSION_1) | protocol, |f, n| f | bit(*n));
        self.ask(|frontend| {
            frontend.set_owner().unwrap();
            assert_eq!(frontend.get_features().unwrap() & features, features);
            let offered = frontend.get_protocol_features().unwrap();
            assert_eq!(offered, VhostUserProtocolFeatures::REPLY_ACK);
            frontend.set_protocol_features(offered).unwrap();
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            frontend.set_features(features).unwrap();
        });
    }

    pub(super) fn give_memory(&mut self) -> vhost::Result<()> {
        let region = vm_memory::GuestMemoryBackend::iter(&self.memory).next().unwrap();
        let fd = region.file_offset().unwrap().file().as_raw_fd();
        self.give(fd, MEMORY)
    }

    pub(super) fn give(&mut self, fd: i32, memory_size: u64) -> vhost::Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: fd,
        };
        self.ask(move |frontend| frontend.set_mem_table(&[region]).map(drop))
    }

    pub(super) fn start(&mut self, ring: usize) -> vhost::Result<()> {
        let driver = &self.rings[ring];
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER + driver.table,
            used_ring_addr: USER + driver.used(),
            avail_ring_addr: USER + driver.avail(),
            log_addr: None,
        };
        let next = self.memory.read_obj(GuestAddress(driver.used() + 2)).unwrap();
        let (kick, call) = (driver.kick.try_clone().unwrap(), driver.call.try_clone().unwrap());
        self.ask(move |frontend| {
            frontend.set_vring_num(ring, SIZE)?;
            frontend.set_vring_base(ring, next)?;
            frontend.set_vring_addr(ring, &config)?;
            frontend.set_vring_call(ring, &call)?;
            frontend.set_vring_kick(ring, &kick)?;
            frontend.set_vring_enable(ring, true)
        })
    }

    pub(super) fn describe(
        &self,
        ring: usize,
        index: u16,
        at: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let table = self.rings[ring].table;
        self.describe_at(table + 16 * u64::from(index), (at, len, flags, next));
    }

    pub(super) fn describe_at(&self, place: u64, what: (u64, u32, u16, u16)) {
        let (at, len, flags, next) = what;
        self.memory.write_obj(at, GuestAddress(place)).unwrap();
        self.memory.write_obj(len, GuestAddress(place + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(place + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(place + 14)).unwrap();
    }

    /// Offers a chain, and kicks if that is wanted.
    pub(super) fn offer(&mut self, ring: usize, head: u16) {
        let driver = &mut self.rings[ring];
        let place = driver.avail() + 4 + 2 * u64::from(driver.offered % SIZE);
        driver.offered += 1;
        let (avail, used, offered) = (driver.avail(), driver.used(), driver.offered);
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.memory.write_obj(offered, GuestAddress(avail + 2)).unwrap();
        let quiet: u16 = self.memory.read_obj(GuestAddress(used)).unwrap();
        if quiet & 1 == 0 {
            self.rings[ring].kick.write(1).unwrap();
        }
    }

    /// Chains that have come back, with what was written to them.
    pub(super) fn used(&mut self, ring: usize) -> Vec<(u32, u32)> {
        let driver = &mut self.rings[ring];
        let now: u16 = self.memory.read_obj(GuestAddress(driver.used() + 2)).unwrap();
        let mut all = Vec::new();
        while driver.seen != now {
            let place = driver.used() + 4 + 8 * u64::from(driver.seen % SIZE);
            let [id, len]: [u32; 2] = self.memory.read_obj(GuestAddress(place)).unwrap();
            all.push((id, len));
            driver.seen += 1;
        }
        all
    }

    pub(super) fn was_called(&self, ring: usize) -> bool {
        self.rings[ring].call.read().is_ok()
    }

    pub(super) fn set_interrupts(&self, ring: usize, on: bool) {
        let flags = u16::from(!on);
        self.memory.write_obj(flags, GuestAddress(self.rings[ring].avail())).unwrap();
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Has the guest send what lies at a place, in one piece.
    pub(super) fn send(&mut self, at: u64, message: &[u8]) {
        self.write(at, message);
        let index = self.rings[FROM_GUEST].offered % SIZE;
        self.describe(FROM_GUEST, index, at, message.len() as u32, 0, 0);
        self.offer(FROM_GUEST, index);
    }

    /// The frames that the link has by now. A frame that is none is empty.
    pub(super) fn frames(&mut self) -> Vec<(Vec<u8>, vmlan_wire::Offload)> {
        let mut frames = Vec::new();
        while let Recv::Frames { more, .. } = self.link.recv(&mut self.batch) {
            frames.extend(self.batch.iter().map(|f| (f.data.to_vec(), f.offload)));
            if !more {
                break;
            }
        }
        frames
    }
}
