//! Which jobs ended lately, and ids for new ones.
//!
//! Follows A1111 v1.10.1's `progress` module. Left out on purpose: ids that stay pending or active
//! forever after a failure.

use std::collections::VecDeque;

/// A1111 remembers this many finished tasks.
const FINISHED_LIMIT: usize = 16;

/// What the queue remembers of jobs that ended.
#[derive(Debug, Default)]
pub(super) struct Finished {
    ids: VecDeque<String>,
    cancelled: VecDeque<u64>,
}

impl Finished {
    /// A job succeeded. A failed one is not remembered as finished.
    pub(super) fn add(&mut self, id: String) {
        self.ids.push_back(id);
        if self.ids.len() > FINISHED_LIMIT {
            self.ids.pop_front();
        }
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.ids.iter().any(|finished| finished == id)
    }

    pub(super) fn note_cancelled(&mut self, number: u64) {
        self.cancelled.push_back(number);
        if self.cancelled.len() > FINISHED_LIMIT {
            self.cancelled.pop_front();
        }
    }

    pub(super) fn cancelled(&self, number: u64) -> bool {
        self.cancelled.contains(&number)
    }
}

/// An id such as `task(txt2img-A1B2C3D)`. `entropy` are any bits that differ from call to call.
#[must_use]
pub fn new_task_id(kind: &str, entropy: u64) -> String {
    const ALPHABET: &[u8; 36] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut rest = entropy;
    let code: String = (0..7)
        .map(|_| {
            let character = char::from(ALPHABET[(rest % 36) as usize]);
            rest /= 36;
            character
        })
        .collect();
    format!("task({kind}-{code})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sixteen_finished_ids_are_remembered() {
        let mut finished = Finished::default();
        for index in 0..17 {
            finished.add(index.to_string());
        }
        assert!(!finished.contains("0"));
        assert!(finished.contains("16"));
    }

    #[test]
    fn ids_look_like_a1111s() {
        let id = new_task_id("txt2img", u64::MAX);
        assert_eq!(id.len(), "task(txt2img-XXXXXXX)".len());
        assert!(id.starts_with("task(txt2img-") && id.ends_with(')'));
    }
}
