//! What root has and this does not need, and what a caller may have set up for it: capabilities,
//! signals, limits, the working directory.

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::doing;

/// To make interfaces and rules. `iptables` of the old kind reads its rules from a raw socket.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Limits by which a caller could stop root half way, and the least that is needed of each; none
/// where only no limit is safe.
const LIMITS: [(Resource, Option<u64>); 4] = [
    (Resource::Cpu, None),
    (Resource::Fsize, None),
    (Resource::As, None),
    (Resource::Nofile, Some(64)),
];

/// What would end a program at a terminal.
const SIGNALS: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTSTP,
];

/// Makes everything that a caller could have prepared as it should be. What has been begun is
/// finished: nothing here takes longer than a moment.
pub(super) fn settle() -> Result<(), String> {
    for signal in SIGNALS {
        // SAFETY: no handler is installed, and the signals are ones that can be ignored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for (resource, least) in LIMITS {
        let now = rustix::process::getrlimit(resource);
        if now.current.is_some_and(|now| least.is_none_or(|least| now < least)) {
            let maximum = least.and_then(|least| Some(least.max(now.maximum?)));
            let limit = Rlimit { current: least, maximum };
            rustix::process::setrlimit(resource, limit)
                .map_err(doing("lift the limits of the calling process"))?;
        }
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(doing("forbid core dumps"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::chdir("/").map_err(doing("go to /"))
}

/// Gives up for good, for this process and for those it starts, everything but [`KEPT`].
pub(super) fn drop_all_else() -> Result<(), String> {
    let failed = || doing("give up capabilities");
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        // Kernels know fewer than there are names for.
        if rustix::thread::capability_is_in_bounding_set(capability) == Ok(true) {
            rustix::thread::remove_capability_from_bounding_set(capability).map_err(failed())?;
        }
    }
    let sets =
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed())?;
    rustix::thread::set_no_new_privs(true).map_err(failed())
}
