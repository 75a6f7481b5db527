//! Code that only the start has run: it need not stay in memory while the network is idle.

#[cfg(target_os = "linux")]
mod imp {
    use std::ffi::{c_int, c_void};
    use std::ptr;

    use rustix::param::page_size;

    /// Lets go of the pages of this program and its libraries that nobody writes. Whatever is run
    /// again comes back from the page cache, 64 KiB at a time.
    pub(crate) fn let_code_go() {
        // SAFETY: `let_object_go` takes what this function hands to it.
        unsafe { libc::dl_iterate_phdr(Some(let_object_go), ptr::null_mut()) };
    }

    unsafe extern "C" fn let_object_go(
        object: *mut libc::dl_phdr_info,
        _: usize,
        _: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader hands over an object that is loaded, and keeps it so during the call.
        let (base, headers) = unsafe {
            let object = &*object;
            let count = usize::from(object.dlpi_phnum);
            (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, count))
        };
        for header in headers {
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
                let start = address(base + header.p_vaddr) & !(page_size() - 1);
                let end = address(base + header.p_vaddr + header.p_memsz);
                // SAFETY: a private mapping of a file that nobody may write, so that every page of
                // it reads as before when it is used again.
                unsafe {
                    libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED);
                }
            }
        }
        0
    }

    #[allow(clippy::cast_possible_truncation, reason = "it is one of this process")]
    fn address(of: impl Into<u64>) -> usize {
        of.into() as usize
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    /// Which pages stay is left to the system.
    pub(crate) fn let_code_go() {}
}

pub(crate) use imp::let_code_go;
