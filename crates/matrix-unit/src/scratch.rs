//! Working memory that layers use one after the other.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use parking_lot::Mutex;

/// Of a page: tiles and lines of the cache are aligned too.
const ALIGNMENT: usize = 4096;

/// Memory without values, until it is dropped.
pub(super) struct Scratch {
    begin: *mut u8,
    layout: Layout,
}

// SAFETY: it is memory of the allocator, which belongs to whoever has the value.
unsafe impl Send for Scratch {}

/// What was used and is free. At most as many as were in use at once.
static FREE: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

impl Scratch {
    /// At least so many bytes; zero is one page.
    pub(super) fn take(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        let mut free = FREE.lock();
        let fitting = free.iter().enumerate();
        let fitting = fitting.filter(|(_, one)| one.layout.size() >= bytes);
        if let Some((at, _)) = fitting.min_by_key(|(_, one)| one.layout.size()) {
            return free.swap_remove(at);
        }
        // One that is too small makes room for one that is not.
        let small = free.iter().enumerate();
        if let Some((at, _)) = small.max_by_key(|(_, one)| one.layout.size()) {
            free.swap_remove(at).free();
        }
        drop(free);
        let layout = Layout::from_size_align(bytes, ALIGNMENT);
        let layout = layout.unwrap_or_else(|_| handle_alloc_error(Layout::new::<u8>()));
        // SAFETY: the size is not zero.
        let begin = unsafe { alloc(layout) };
        if begin.is_null() {
            handle_alloc_error(layout);
        }
        Self { begin, layout }
    }

    pub(super) fn begin(&self) -> *mut u8 {
        self.begin
    }

    /// [`Self::begin`] of float32 values; a page is aligned to them.
    pub(super) fn floats(&self) -> *mut f32 {
        self.begin.cast()
    }

    /// To the allocator instead of to the free ones.
    fn free(self) {
        // SAFETY: it was allocated with this layout, and nobody else has it.
        unsafe { dealloc(self.begin, self.layout) };
        std::mem::forget(self);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let (begin, layout) = (self.begin, self.layout);
        FREE.lock().push(Self { begin, layout });
    }
}

/// Frees the working memory that layers have used and none uses now.
pub fn give_back_memory() {
    for scratch in std::mem::take(&mut *FREE.lock()) {
        scratch.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_by_whoever_needs_no_more() {
        let first = Scratch::take(100_000_000);
        let (begin, size) = (first.begin(), first.layout.size());
        assert!(size >= 100_000_000 && begin.align_offset(64) == 0);
        drop(first);
        // Other tests may have taken it meanwhile, but no smaller one is handed out.
        assert!(Scratch::take(99_999_999).layout.size() >= 99_999_999);
        give_back_memory();
    }
}
