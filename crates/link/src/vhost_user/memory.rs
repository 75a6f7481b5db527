//! The machine's memory as its monitor shares it. Only descriptors that are sealed against shrinking
//! are taken: to touch a page that its owner has cut off ends a process (SIGBUS).

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::SealFlags;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub(super) type Guest = GuestMemoryMmap<()>;

/// `HUGETLBFS_MAGIC`. A page that was given back may be missing when it is touched again.
const HUGE: u64 = 0x9584_58f6;

pub(super) const UNSEALED: &str = "its memory can be taken away while it is in use: for QEMU it has to \
     be a memory-backend-memfd with share=on, and without huge pages";
const WRONG: &str = "its monitor's table of memory is wrong";

/// The machine's memory, and where its monitor has it.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) guest: Guest,
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    /// The first address in the monitor's own space.
    user: u64,
    len: u64,
    guest: u64,
}

impl Memory {
    pub(super) fn map(
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<Self, &'static str> {
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for (entry, file) in table.iter().zip(files) {
            let (len, offset) = (entry.memory_size, entry.mmap_offset);
            let end = offset.checked_add(len).ok_or(WRONG)?;
            check(&file, end)?;
            let size = usize::try_from(len).map_err(|_| WRONG)?;
            let mapping = MmapRegionBuilder::new(size)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::new(file, offset))
                .build()
                .map_err(|_| "its memory cannot be mapped")?;
            let start = GuestAddress(entry.guest_phys_addr);
            mappings.push(GuestRegionMmap::new(mapping, start).ok_or(WRONG)?);
            regions.push(Region { user: entry.user_addr, len, guest: entry.guest_phys_addr });
        }
        mappings.sort_by_key(|mapping| vm_memory::GuestMemoryRegion::start_addr(mapping).0);
        let guest = Guest::from_regions(mappings).map_err(|_| WRONG)?;
        Ok(Self { guest, regions })
    }

    /// Where in the guest an address of the monitor's is.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user).filter(|offset| *offset < region.len)?;
            region.guest.checked_add(offset)
        })
    }
}

/// Refuses what may have no page at an address below `end`, now or later.
fn check(file: &File, end: u64) -> Result<(), &'static str> {
    let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| UNSEALED)?;
    let huge = rustix::fs::fstatfs(file.as_fd()).map_err(|_| UNSEALED)?;
    if !seals.contains(SealFlags::SHRINK) || u64::try_from(huge.f_type) == Ok(HUGE) {
        return Err(UNSEALED);
    }
    let stat = rustix::fs::fstat(file).map_err(|_| UNSEALED)?;
    if u64::try_from(stat.st_size).is_ok_and(|size| size >= end) { Ok(()) } else { Err(WRONG) }
}
