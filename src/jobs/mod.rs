//! The queue, permits, progress, interrupt and skip. May use pipeline.
