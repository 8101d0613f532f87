//! Task ids: which are waiting, which one runs, which are done.
//!
//! Follows A1111 v1.10.1's `progress` module. Left out on purpose: ids that stay pending or active
//! forever after a failure.

use std::collections::VecDeque;

/// A1111 remembers this many finished tasks.
const FINISHED_LIMIT: usize = 16;

/// The ids by state.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    pending: Vec<String>,
    current: Option<String>,
    finished: VecDeque<String>,
}

impl Tasks {
    pub(super) fn add(&mut self, id: &str) {
        self.pending.push(id.to_owned());
    }

    pub(super) fn remove(&mut self, id: &str) {
        if let Some(index) = self.pending.iter().position(|pending| pending == id) {
            self.pending.remove(index);
        }
    }

    pub(super) fn start(&mut self, id: Option<&str>) {
        if let Some(id) = id {
            self.remove(id);
        }
        self.current = id.map(str::to_owned);
    }

    /// A failed task is not remembered as finished.
    pub(super) fn finish(&mut self, succeeded: bool) {
        let Some(id) = self.current.take() else {
            return;
        };
        if succeeded {
            self.finished.push_back(id);
            if self.finished.len() > FINISHED_LIMIT {
                self.finished.pop_front();
            }
        }
    }

    pub(super) fn pending(&self) -> &[String] {
        &self.pending
    }

    /// Idle, the missing id is the active one, as in A1111 (`None == None`).
    pub(super) fn is_active(&self, id: Option<&str>) -> bool {
        self.current.as_deref() == id
    }

    /// Place in the queue, from 0.
    pub(super) fn place(&self, id: Option<&str>) -> Option<usize> {
        self.pending
            .iter()
            .position(|pending| Some(pending.as_str()) == id)
    }

    pub(super) fn is_finished(&self, id: Option<&str>) -> bool {
        self.finished
            .iter()
            .any(|finished| Some(finished.as_str()) == id)
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
    fn an_id_goes_from_pending_over_active_to_finished() {
        let mut tasks = Tasks::default();
        tasks.add("a");
        tasks.add("b");
        assert_eq!(tasks.place(Some("b")), Some(1));
        tasks.start(Some("a"));
        assert!(tasks.is_active(Some("a")));
        assert_eq!(tasks.pending(), ["b"]);
        tasks.finish(true);
        assert!(tasks.is_finished(Some("a")));
        assert!(tasks.is_active(None));
    }

    #[test]
    fn only_sixteen_finished_ids_are_remembered() {
        let mut tasks = Tasks::default();
        for index in 0..17 {
            tasks.start(Some(&index.to_string()));
            tasks.finish(true);
        }
        assert!(!tasks.is_finished(Some("0")));
        assert!(tasks.is_finished(Some("16")));
    }

    #[test]
    fn ids_look_like_a1111s() {
        let id = new_task_id("txt2img", u64::MAX);
        assert_eq!(id.len(), "task(txt2img-XXXXXXX)".len());
        assert!(id.starts_with("task(txt2img-") && id.ends_with(')'));
    }
}
