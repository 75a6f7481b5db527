//! The process's own limits.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the number of files this process may open as far as it may itself, and returns the limit
/// that then holds (`None` for none).
pub fn raise_fd_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let before = limit.current;
        limit.current = limit.maximum;
        if setrlimit(Resource::Nofile, limit).is_err() {
            return before;
        }
    }
    limit.current
}
