//! Whether this program is signed as one that may run machines. Who is not would hear of it only when
//! everything else has been prepared.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use objc2::rc::Retained;
use objc2_foundation::NSString;

const ENTITLEMENT: &str = "com.apple.security.virtualization";

// `Security/SecTask.h`
#[link(name = "Security", kind = "framework")]
unsafe extern "C" {
    fn SecTaskCreateFromSelf(allocator: *const c_void) -> *mut c_void;
    fn SecTaskCopyValueForEntitlement(
        task: *mut c_void,
        entitlement: *const c_void,
        error: *mut *mut c_void,
    ) -> *mut c_void;
}

#[link(name = "CoreFoundation", kind = "framework")]
unsafe extern "C" {
    fn CFRelease(object: *mut c_void);
}

pub(super) fn check() -> Result<(), String> {
    if is_there() {
        return Ok(());
    }
    Err(format!(
        "for vmType vz this program has to be signed with the entitlement {ENTITLEMENT}; the README \
         has the command, under Machines on macOS; or use vmType: qemu"
    ))
}

fn is_there() -> bool {
    let name = NSString::from_str(ENTITLEMENT);
    // SAFETY: a string of Foundation's is one of Core Foundation's, and it outlives the calls; what
    // they return is released once.
    unsafe {
        let task = SecTaskCreateFromSelf(null());
        if task.is_null() {
            return false;
        }
        let name = Retained::as_ptr(&name).cast();
        let value = SecTaskCopyValueForEntitlement(task, name, null_mut());
        CFRelease(task);
        if !value.is_null() {
            CFRelease(value);
        }
        !value.is_null()
    }
}
