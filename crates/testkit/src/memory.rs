//! Counts the heap, so that a test can say that something does not grow.
//!
//! ```ignore
//! #[global_allocator]
//! static HEAP: vmlan_testkit::memory::Counting = vmlan_testkit::memory::Counting;
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Each test has its own thread, and the simulated world does not leave it.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// An allocator that knows how much each thread holds.
#[derive(Debug)]
pub struct Counting;

/// Bytes that this thread has allocated and not freed.
pub fn held() -> isize {
    HELD.with(Cell::get)
}

fn count(bytes: isize) {
    HELD.with(|held| held.set(held.get() + bytes));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}
