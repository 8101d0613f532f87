//! Slows down whoever guesses passwords.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// So many wrong logins are answered within one window.
const FAILURES: u32 = 10;
const WINDOW: Duration = Duration::from_mins(1);
/// So many addresses are remembered; more forget the oldest.
const ADDRESSES: usize = 4096;

/// Counts wrong logins by address.
#[derive(Debug, Default)]
pub struct Throttle {
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl Throttle {
    /// Seconds until the address may try again; `None`: it may now.
    pub(super) fn wait_s(&self, address: IpAddr) -> Option<u64> {
        let failures = self.failures.lock();
        let (count, since) = failures.get(&address)?;
        let left = WINDOW.checked_sub(since.elapsed())?;
        (*count >= FAILURES).then(|| left.as_secs() + 1)
    }

    /// The address sent a wrong login.
    pub(super) fn failed(&self, address: IpAddr) {
        let mut failures = self.failures.lock();
        if failures.len() >= ADDRESSES && !failures.contains_key(&address) {
            failures.retain(|_, (_, since)| since.elapsed() < WINDOW);
            let oldest = failures.iter().min_by_key(|(_, (_, since))| *since);
            if let Some(oldest) = oldest.map(|(address, _)| *address)
                && failures.len() >= ADDRESSES
            {
                failures.remove(&oldest);
            }
        }
        let entry = failures.entry(address).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WINDOW {
            *entry = (0, Instant::now());
        }
        entry.0 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn ten_failures_close_the_door_for_one_address_only() {
        let throttle = Throttle::default();
        let (guesser, other) = (
            IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4)),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
        );
        for _ in 0..FAILURES {
            assert_eq!(throttle.wait_s(guesser), None);
            throttle.failed(guesser);
        }
        assert!(
            throttle
                .wait_s(guesser)
                .is_some_and(|seconds| (1..=61).contains(&seconds))
        );
        assert_eq!(throttle.wait_s(other), None);
    }

    #[test]
    fn memory_does_not_grow_with_the_number_of_guessers() {
        let throttle = Throttle::default();
        for number in 0..(ADDRESSES as u32 + 100) {
            throttle.failed(IpAddr::V4(Ipv4Addr::from(number)));
        }
        assert!(throttle.failures.lock().len() <= ADDRESSES);
    }
}
