//! What the allocator keeps of memory that was freed.

/// Gives freed memory back to the system. glibc keeps it in the arenas of the threads that allocated it: loading
/// checkpoints in turn, what is resident grows by a quarter within two hundred loads, though all of it is free.
/// Elsewhere this does nothing.
pub fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(
        unsafe_code,
        reason = "the C library has no other way in; the call takes no pointer and touches free memory alone"
    )]
    // SAFETY: `malloc_trim` may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
