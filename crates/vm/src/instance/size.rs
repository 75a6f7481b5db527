//! How large a machine is whose `lima.yaml` does not say.

use std::thread;

use vmlan_config::instance::{Arch, InstanceConfig};

use crate::qemu::accel::Accel;

/// Memory of a machine that does not say.
const MEMORY: u64 = 4 << 30;

/// The number of the machine's processors. As many as are useful: emulated ones wait for each other.
pub fn cpus(config: &InstanceConfig, accel: Accel) -> u32 {
    let all = thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    config.cpus.unwrap_or_else(|| match accel {
        Accel::Tcg if config.arch == Arch::host() => (all / 2).clamp(1, 4),
        Accel::Tcg => all.clamp(1, 4),
        Accel::Kvm | Accel::Hvf => all.min(4),
    })
}

/// The machine's memory, in bytes: half of the host's, if that is less than usual.
pub fn memory(config: &InstanceConfig) -> u64 {
    let usual = || imp::memory().map_or(MEMORY, |all| MEMORY.min(all / 2));
    config.memory.unwrap_or_else(usual)
}

#[cfg(target_os = "linux")]
mod imp {
    pub(super) fn memory() -> Option<u64> {
        let info = rustix::system::sysinfo();
        info.totalram.checked_mul(info.mem_unit.into())
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    pub(super) fn memory() -> Option<u64> {
        let (mut bytes, mut len) = (0_u64, size_of::<u64>());
        // SAFETY: the name is a string of C's, and the value eight bytes, as the length says.
        let done = unsafe {
            libc::sysctlbyname(
                c"hw.memsize".as_ptr(),
                (&raw mut bytes).cast(),
                &raw mut len,
                std::ptr::null_mut(),
                0,
            )
        };
        (done == 0).then_some(bytes)
    }
}
