//! What the process gives back while it runs, and how it ends at once.

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

/// Ends the process without running what libraries registered for its end: graphs that run in other threads
/// would meet their own library torn down.
#[cfg(unix)]
pub fn exit_at_once(status: i32) -> ! {
    #[expect(
        unsafe_code,
        reason = "the standard library has no exit that skips the handlers"
    )]
    // SAFETY: `_exit` may be called at any time and does not return.
    unsafe {
        libc::_exit(status)
    }
}

/// Ends the process.
#[cfg(not(unix))]
pub fn exit_at_once(status: i32) -> ! {
    std::process::exit(status)
}
