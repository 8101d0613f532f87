//! Whose turn it is: which waiting calls become the next run, and what a call that is withdrawn ends.
//!
//! No threads, no clock, no network: every order of events can be tried in tests. The oldest waiting
//! call is always in the next run, so a call waits for at most one run of every other form of call,
//! however many steps the others have before them.

use std::collections::VecDeque;

/// One call of the network.
pub(super) type CallId = u64;

/// Whoever makes calls, one after the other: the UNet of one job.
pub(super) type SeatId = u64;

/// A call that waits for its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call<F> {
    pub(super) id: CallId,
    pub(super) seat: SeatId,
    /// Calls of the same form may share a run.
    pub(super) form: F,
    pub(super) rows: usize,
    /// It shares its run with nobody.
    pub(super) alone: bool,
}

/// A call of the run in flight.
#[derive(Debug, Clone)]
struct Member<F> {
    call: Call<F>,
    withdrawn: bool,
}

/// What a withdrawal ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Withdrawn {
    /// Calls that are to be told that they were stopped.
    pub(super) calls: Vec<CallId>,
    /// Nobody waits for the run in flight any more.
    pub(super) stops_run: bool,
}

/// Which calls may share a run.
pub(super) trait Joins<F> {
    /// The most rows of a run that more than one call shares.
    fn most_rows(&self, form: &F) -> usize;
    /// Whether calls of these numbers of rows, in this order, may be one run.
    fn may_join(&self, form: &F, rows: &[usize]) -> bool;
}

/// The waiting calls of one network and the run in flight.
#[derive(Debug, Clone)]
pub(super) struct Desk<F> {
    /// In the order of arrival.
    waiting: VecDeque<Call<F>>,
    /// The run in flight; empty: none.
    running: Vec<Member<F>>,
    /// Seats that were answered by the last runs and have not called again.
    between_calls: Vec<Call<F>>,
}

impl<F: PartialEq + Clone> Desk<F> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            between_calls: Vec::new(),
        }
    }

    /// A call takes its place behind the others.
    pub(super) fn submit(&mut self, call: Call<F>) {
        self.leave(call.seat);
        self.waiting.push_back(call);
    }

    /// Starts a run of this call alone if it need not wait: nothing runs, nobody waits, and nobody is
    /// about to make a call that would join it.
    pub(super) fn start_alone(&mut self, call: &Call<F>, joins: &impl Joins<F>) -> bool {
        self.leave(call.seat);
        let free = self.running.is_empty() && self.waiting.is_empty();
        if free && !self.is_awaited(call, &[call.rows], joins) {
            self.running = vec![Member {
                call: call.clone(),
                withdrawn: false,
            }];
            return true;
        }
        false
    }

    /// Whether a run is in flight.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether calls wait.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the next run would have one more call if it waited for one that is about to come.
    pub(super) fn may_grow(&self, joins: &impl Joins<F>) -> bool {
        let places = self.next_run(joins);
        let Some(&first) = places.first() else {
            return false;
        };
        let rows: Vec<usize> = places.iter().map(|&at| self.waiting[at].rows).collect();
        self.is_awaited(&self.waiting[first], &rows, joins)
    }

    /// Nobody is awaited any more.
    pub(super) fn stop_awaiting(&mut self) {
        self.between_calls.clear();
    }

    /// Starts the next run: the oldest call, and those behind it that may join.
    pub(super) fn start(&mut self, joins: &impl Joins<F>) -> Vec<Call<F>> {
        debug_assert!(self.running.is_empty());
        let places = self.next_run(joins);
        let mut calls: Vec<Call<F>> = places
            .iter()
            .rev()
            .filter_map(|&at| self.waiting.remove(at))
            .collect();
        calls.reverse();
        self.running = calls
            .iter()
            .map(|call| Member {
                call: call.clone(),
                withdrawn: false,
            })
            .collect();
        calls
    }

    /// Calls whose run is over have the next turns, each alone.
    pub(super) fn return_for_runs_alone(&mut self, calls: Vec<Call<F>>) {
        for call in calls.into_iter().rev() {
            self.waiting.push_front(Call {
                alone: true,
                ..call
            });
        }
    }

    /// The run in flight is over. Answers which of its calls are still wanted.
    pub(super) fn finish(&mut self) -> Vec<Call<F>> {
        let members = std::mem::take(&mut self.running);
        members
            .into_iter()
            .filter(|member| !member.withdrawn)
            .map(|member| member.call)
            .collect()
    }

    /// A call was answered; its seat is likely to call again soon.
    pub(super) fn answered(&mut self, call: Call<F>) {
        self.leave(call.seat);
        self.between_calls.push(Call {
            alone: false,
            ..call
        });
    }

    /// Takes back the calls of a seat, whether they wait or run, and no others.
    pub(super) fn withdraw(&mut self, seat: SeatId) -> Withdrawn {
        let mut ended = Withdrawn::default();
        self.waiting.retain(|call| {
            if call.seat == seat {
                ended.calls.push(call.id);
            }
            call.seat != seat
        });
        let mut touched = false;
        for member in &mut self.running {
            if member.call.seat == seat && !member.withdrawn {
                member.withdrawn = true;
                touched = true;
                ended.calls.push(member.call.id);
            }
        }
        ended.stops_run = touched && self.running.iter().all(|member| member.withdrawn);
        ended
    }

    /// The seat will not call again soon.
    pub(super) fn leave(&mut self, seat: SeatId) {
        self.between_calls.retain(|call| call.seat != seat);
    }

    /// Places in `waiting` of the next run's calls.
    fn next_run(&self, joins: &impl Joins<F>) -> Vec<usize> {
        let Some(first) = self.waiting.front() else {
            return Vec::new();
        };
        let (mut places, mut rows) = (vec![0], vec![first.rows]);
        let most = joins.most_rows(&first.form);
        for (at, call) in self.waiting.iter().enumerate().skip(1) {
            if first.alone || call.alone || call.form != first.form {
                continue;
            }
            if rows.iter().sum::<usize>() + call.rows > most {
                continue;
            }
            rows.push(call.rows);
            if joins.may_join(&first.form, &rows) {
                places.push(at);
            } else {
                rows.pop();
            }
        }
        places
    }

    fn is_awaited(&self, call: &Call<F>, rows: &[usize], joins: &impl Joins<F>) -> bool {
        !call.alone
            && self.between_calls.iter().any(|other| {
                let mut all = rows.to_vec();
                all.push(other.rows);
                other.form == call.form
                    && other.seat != call.seat
                    && all.iter().sum::<usize>() <= joins.most_rows(&call.form)
                    && joins.may_join(&call.form, &all)
            })
    }
}
