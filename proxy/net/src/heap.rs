//! What the allocator keeps of memory that was freed.

/// Gives memory that was freed, and that the allocator keeps for later (glibc does), back to the system.
///
/// Holds the allocator's locks for milliseconds when there is much of it: to be called seldom, and not on a worker.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "glibc has no other way, and no crate in the tree wraps this one")
)]
pub fn give_back_freed_memory() {
    // SAFETY: takes a number, and touches nothing but the allocator's own state, under its own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
