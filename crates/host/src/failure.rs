//! What an errno means to a guest.

use rustix::io::Errno;
use vmlan_engine::io::Failure;

/// The failure of a call on a socket, or the one that `SO_ERROR` held.
pub(crate) fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::CONNREFUSED => Failure::Refused,
        Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED => Failure::Reset,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL => Failure::NetUnreachable,
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Failure::HostUnreachable,
        Errno::TIMEDOUT => Failure::TimedOut,
        Errno::ACCESS | Errno::PERM => Failure::Prohibited,
        Errno::MSGSIZE => Failure::TooBig,
        Errno::MFILE
        | Errno::NFILE
        | Errno::NOBUFS
        | Errno::NOMEM
        | Errno::NOSPC
        | Errno::ADDRINUSE
        | Errno::AGAIN => Failure::Exhausted,
        Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => Failure::Unsupported,
        _ => Failure::Other,
    }
}
