//! What the process gives back while it runs, and how it ends at once.

/// Gives freed memory back to the system. glibc keeps it in the arenas of the threads that allocated it: loading
/// checkpoints in turn, what is resident grows by a quarter within two hundred loads, though all of it is free.
/// Elsewhere this does nothing.
pub fn give_back_free_memory() {
    matrix_unit::give_back_memory();
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

/// Memory that can be had without another process losing any: the smaller of what the machine has left
/// and what the control group of the process may still take. `None` where the system does not tell.
#[must_use]
pub fn available_memory_bytes() -> Option<u64> {
    let machine = machine_memory_bytes("MemAvailable:")?;
    let read = |name: &str| -> Option<u64> {
        let text = fs_err::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let group = read("memory.max")
        .zip(read("memory.current"))
        .map_or(u64::MAX, |(limit, used)| limit.saturating_sub(used));
    Some(machine.min(group))
}

/// All memory of the machine. `None` where the system does not tell.
#[must_use]
pub fn total_memory_bytes() -> Option<u64> {
    machine_memory_bytes("MemTotal:")
}

/// A line of Linux's table of the machine's memory.
fn machine_memory_bytes(key: &str) -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
