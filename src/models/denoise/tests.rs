//! Every order of events of a small desk, and many threads at a service over a network of no arithmetic.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use ndarray::{Array2, Array3, Array4, s};
use parking_lot::{Condvar, Mutex};

use super::desk::{Call, Desk, Joins};
use super::{Backend, DenoiseService, Seat, Setting, Sharing, SharingRule};
use crate::sampling::{Cause, UnetInput};

// ---- The desk ----

struct UpTo(usize);

impl Joins<u8> for UpTo {
    fn most_rows(&self, _form: &u8) -> usize {
        self.0
    }

    fn may_join(&self, _form: &u8, _rows: &[usize]) -> bool {
        true
    }
}

fn call(id: u64, seat: u64, form: u8) -> Call<u8> {
    Call {
        id,
        seat,
        form,
        rows: 2,
        alone: false,
    }
}

fn ids(calls: &[Call<u8>]) -> Vec<u64> {
    calls.iter().map(|call| call.id).collect()
}

#[test]
fn calls_of_one_form_share_a_run_in_the_order_of_their_coming() {
    let mut desk = Desk::new();
    for (id, form) in [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1), (5, 1)] {
        desk.submit(call(id, id, form));
    }
    let rules = UpTo(6);
    assert_eq!(
        ids(&desk.start(&rules)),
        [0, 2, 4],
        "three fit into six rows"
    );
    desk.finish();
    assert_eq!(
        ids(&desk.start(&rules)),
        [1, 3],
        "then the oldest of the others"
    );
    desk.finish();
    assert_eq!(ids(&desk.start(&rules)), [5]);
}

#[test]
fn a_call_that_is_too_large_to_share_runs_alone() {
    let mut desk = Desk::new();
    desk.submit(call(0, 0, 1));
    desk.submit(call(1, 1, 1));
    assert_eq!(ids(&desk.start(&UpTo(1))), [0]);
}

#[test]
fn only_the_last_withdrawal_stops_a_shared_run() {
    let mut desk = Desk::new();
    for id in 0..3 {
        desk.submit(call(id, id, 1));
    }
    desk.start(&UpTo(4));
    let first = desk.withdraw(0);
    assert_eq!((first.calls, first.stops_run), (vec![0], false));
    let waiting = desk.withdraw(2);
    assert_eq!((waiting.calls, waiting.stops_run), (vec![2], false));
    let last = desk.withdraw(1);
    assert_eq!((last.calls, last.stops_run), (vec![1], true));
    assert!(desk.finish().is_empty());
    assert_eq!(desk.withdraw(1), super::desk::Withdrawn::default());
}

#[test]
fn a_run_is_held_back_only_for_somebody_who_would_share_it() {
    let rules = UpTo(4);
    let mut desk = Desk::new();
    assert!(desk.start_alone(&call(0, 0, 1), &rules));
    desk.submit(call(1, 1, 1));
    for done in desk.finish() {
        desk.answered(done);
    }
    assert!(desk.may_grow(&rules), "seat 0 is likely to call again");
    assert!(!desk.may_grow(&UpTo(2)), "there would be no room for it");
    desk.leave(0);
    assert!(!desk.may_grow(&rules));
    desk.start(&rules);
    for done in desk.finish() {
        desk.answered(done);
    }
    assert!(desk.start_alone(&call(2, 2, 9), &rules), "of another form");
    desk.finish();
    assert!(!desk.start_alone(&call(3, 3, 1), &rules), "seat 1 may join");
}

/// Jobs with a number of steps and a form each: every order in which their calls can come, runs can begin
/// and end, and one job can be withdrawn.
#[test]
fn in_every_order_of_events_calls_are_answered_once_and_in_turn() {
    const FORMS: [u8; 3] = [1, 1, 2];
    #[derive(Clone, Debug)]
    struct World {
        desk: Desk<u8>,
        left: [usize; 3],
        /// A job's call that waits or runs, and how many runs began since it came.
        open: [Option<(u64, usize)>; 3],
        withdrawn: Option<usize>,
        calls: u64,
    }
    let mut seen = HashSet::new();
    let mut worlds = vec![World {
        desk: Desk::new(),
        left: [3, 1, 3],
        open: [None; 3],
        withdrawn: None,
        calls: 0,
    }];
    while let Some(world) = worlds.pop() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
        for job in 0..3 {
            if world.left[job] > 0 && world.open[job].is_none() && world.withdrawn != Some(job) {
                let mut next = world.clone();
                next.left[job] -= 1;
                next.open[job] = Some((world.calls, 0));
                next.desk.submit(call(world.calls, job as u64, FORMS[job]));
                next.calls += 1;
                worlds.push(next);
            }
            if let Some((id, _)) = world.open[job].filter(|_| world.withdrawn.is_none()) {
                let mut next = world.clone();
                next.open[job] = None;
                next.withdrawn = Some(job);
                assert_eq!(next.desk.withdraw(job as u64).calls, [id], "{world:?}");
                worlds.push(next);
            }
        }
        if world.desk.is_running() {
            let mut next = world.clone();
            for done in next.desk.finish() {
                let (id, runs) = next.open[done.seat as usize].take().expect("answered once");
                assert_eq!(id, done.id);
                // Its own run and at most one for each other job, which makes one call at a time.
                assert!(runs <= 3, "{world:?}");
                next.desk.answered(done);
            }
            worlds.push(next);
        } else if world.desk.has_waiting() {
            let mut next = world.clone();
            for open in next.open.iter_mut().flatten() {
                open.1 += 1;
            }
            let started = next.desk.start(&UpTo(4));
            let oldest = world.open.iter().flatten().map(|(id, _)| *id).min();
            assert!(
                oldest.is_some_and(|oldest| ids(&started).contains(&oldest)),
                "{world:?}"
            );
            worlds.push(next);
        } else {
            // Nothing runs and nothing waits: nobody is left without an answer.
            assert!(world.open.iter().all(Option::is_none), "{world:?}");
        }
    }
    assert!(seen.len() > 500, "{}", seen.len());
}

// ---- The service ----

/// What the fake network adds, and whether it does as it should.
#[derive(Clone)]
struct Plus(f32);

impl Setting for Plus {
    fn agrees(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    fn shape(&self) -> u64 {
        0
    }
}

#[derive(Default)]
struct Fake {
    /// Rows of the runs that were carried out.
    runs: Mutex<Vec<usize>>,
    in_flight: AtomicUsize,
    /// Runs of more rows fail, as where memory ends.
    most_rows: Option<usize>,
    /// Shared runs have other bits.
    blurs: bool,
    /// Runs wait until they are let go or stopped.
    gate: Option<Gate>,
    seen_stopped: AtomicUsize,
}

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    /// Tells that a run waits.
    waits: Mutex<Option<mpsc::Sender<usize>>>,
}

#[derive(Default)]
struct FakeRun {
    stopped: AtomicBool,
    gate: Mutex<Option<Arc<Fake>>>,
}

/// A handle, so that a run's stop can wake the gate.
struct FakeBackend(Arc<Fake>);

/// A row with this timestep makes the run fail.
const FAULTY: f32 = -1.0;
/// A row with this timestep has no numbers.
const NAN: f32 = -2.0;

impl Backend for FakeBackend {
    type Setting = Plus;
    type Run = FakeRun;

    fn prepare(&self) -> FakeRun {
        let run = FakeRun::default();
        *run.gate.lock() = Some(Arc::clone(&self.0));
        run
    }

    fn run(&self, input: &UnetInput, setting: &Plus, run: &FakeRun) -> Result<Array4<f32>, Cause> {
        let fake = &self.0;
        assert_eq!(
            fake.in_flight.fetch_add(1, Ordering::SeqCst),
            0,
            "one at a time"
        );
        let rows = input.sample.dim().0;
        fake.runs.lock().push(rows);
        if let Some(gate) = &fake.gate {
            if let Some(waits) = &*gate.waits.lock() {
                let _ = waits.send(rows);
            }
            let mut open = gate.open.lock();
            while !*open && !run.stopped.load(Ordering::SeqCst) {
                gate.changed.wait(&mut open);
            }
        }
        fake.in_flight.fetch_sub(1, Ordering::SeqCst);
        if run.stopped.load(Ordering::SeqCst) {
            fake.seen_stopped.fetch_add(1, Ordering::SeqCst);
            return Err("stopped".into());
        }
        if fake.most_rows.is_some_and(|most| rows > most) {
            return Err("out of memory".into());
        }
        if input.timestep.contains(&FAULTY) {
            return Err("a fault".into());
        }
        let spoils_all = rows > 2 && input.timestep.contains(&NAN);
        let mut output = input.sample.clone();
        for (row, mut values) in output.outer_iter_mut().enumerate() {
            let text = input.context[[row, 0, 0]];
            let blur = if fake.blurs && rows > 2 { 1e-3 } else { 0.0 };
            let is_nan = spoils_all || input.timestep[row] == NAN;
            values.mapv_inplace(|value| {
                if is_nan {
                    f32::NAN
                } else {
                    value * 2.0 + input.timestep[row] + text + setting.0 + blur
                }
            });
        }
        Ok(output)
    }

    fn stop(run: &FakeRun) {
        run.stopped.store(true, Ordering::SeqCst);
        if let Some(gate) = run.gate.lock().as_ref().and_then(|fake| fake.gate.as_ref()) {
            let _open = gate.open.lock();
            gate.changed.notify_all();
        }
    }
}

fn service(fake: Fake, sharing: Sharing) -> (Arc<Fake>, Arc<DenoiseService<FakeBackend>>) {
    let fake = Arc::new(fake);
    let rule = SharingRule {
        sharing,
        latent_pixels: 16 * 4,
    };
    let service = DenoiseService::new(FakeBackend(Arc::clone(&fake)), rule);
    (fake, service)
}

/// Two rows of 2x2 latents that no other `mark` has.
fn input(mark: f32, timestep: f32, tokens: usize) -> UnetInput {
    let mut sample = Array4::from_elem((2, 4, 2, 2), mark);
    sample
        .slice_mut(s![1, .., .., ..])
        .mapv_inplace(|value| -value);
    UnetInput {
        sample,
        timestep: vec![timestep; 2],
        context: Array3::from_elem((2, tokens, 3), mark * 3.0),
        vector: Some(Array2::from_elem((2, 5), mark)),
    }
}

fn expected(input: &UnetInput, plus: f32) -> Array4<f32> {
    let mut output = input.sample.clone();
    for (row, mut values) in output.outer_iter_mut().enumerate() {
        let (time, text) = (input.timestep[row], input.context[[row, 0, 0]]);
        values.mapv_inplace(|value| value * 2.0 + time + text + plus);
    }
    output
}

/// Calls of `count` seats that wait while the first run, of another form, is held; then they are let go.
fn gathered(
    fake: Fake,
    sharing: Sharing,
    inputs: &[UnetInput],
    meanwhile: impl FnOnce(&[Arc<Seat<FakeBackend>>]),
) -> (Vec<Result<Array4<f32>, Cause>>, Vec<usize>) {
    let (waits, waiting) = mpsc::channel();
    let gate = Gate {
        waits: Mutex::new(Some(waits)),
        ..Gate::default()
    };
    let gated = Fake {
        gate: Some(gate),
        ..fake
    };
    let (fake, service) = service(gated, sharing);
    let seats: Vec<_> = inputs.iter().map(|_| Arc::new(service.seat())).collect();
    let answers = std::thread::scope(|scope| {
        let first = service.seat();
        let holding = scope.spawn(move || first.call(&input(0.5, 1.0, 9), &Plus(0.0)).is_ok());
        waiting.recv().expect("the first run has begun");
        let mut callers = Vec::new();
        for (seat, input) in seats.iter().zip(inputs) {
            let before = service.shared_waiting();
            callers.push(scope.spawn(move || seat.call(input, &Plus(0.0))));
            while service.shared_waiting() == before {
                std::thread::yield_now();
            }
        }
        meanwhile(&seats);
        let gate = fake.gate.as_ref().expect("gated");
        *gate.open.lock() = true;
        gate.changed.notify_all();
        assert!(holding.join().expect("no panic"));
        callers
            .into_iter()
            .map(|caller| caller.join().expect("no panic"))
            .collect()
    });
    let runs = fake.runs.lock().clone();
    (answers, runs)
}

#[test]
fn calls_that_wait_together_run_together_and_get_their_own_rows() {
    let inputs: Vec<_> = (1..=5)
        .map(|mark| input(mark as f32, mark as f32 * 10.0, 77))
        .collect();
    let (answers, runs) = gathered(Fake::default(), Sharing::Always, &inputs, |_| {});
    assert_eq!(runs, [2, 10]);
    for (input, answer) in inputs.iter().zip(answers) {
        assert_eq!(answer.expect("answered"), expected(input, 0.0));
    }
}

#[test]
fn what_is_not_proven_runs_alone_and_is_never_shared_where_bits_differ() {
    let inputs: Vec<_> = (1..=2).map(|mark| input(mark as f32, 3.0, 77)).collect();
    for (blurs, later) in [(false, vec![4]), (true, vec![2, 2])] {
        let fake = Fake {
            blurs,
            ..Fake::default()
        };
        let (waits, waiting) = mpsc::channel();
        let gate = Gate {
            waits: Mutex::new(Some(waits)),
            ..Gate::default()
        };
        let (fake, service) = service(
            Fake {
                gate: Some(gate),
                ..fake
            },
            Sharing::OnceProven,
        );
        let gate = fake.gate.as_ref().expect("gated");
        for round in 0..2 {
            *gate.open.lock() = false;
            std::thread::scope(|scope| {
                let first = service.seat();
                scope.spawn(move || first.call(&input(0.5, 1.0, 9), &Plus(0.0)).is_ok());
                assert_eq!(waiting.recv(), Ok(2));
                for wanted in &inputs {
                    let (seat, before) = (service.seat(), service.shared_waiting());
                    scope.spawn(move || {
                        let answer = seat.call(wanted, &Plus(0.0)).expect("answered");
                        assert_eq!(
                            answer,
                            expected(wanted, 0.0),
                            "exact, whatever shared runs do"
                        );
                    });
                    while service.shared_waiting() == before {
                        std::thread::yield_now();
                    }
                }
                *gate.open.lock() = true;
                gate.changed.notify_all();
            });
            while waiting.try_recv().is_ok() {}
            let runs = std::mem::take(&mut *fake.runs.lock());
            if round == 0 {
                assert_eq!(runs, [2, 4, 2, 2], "shared once, then alone to compare");
            } else {
                assert_eq!(runs[1..], later);
            }
        }
    }
}

#[test]
fn one_calls_fault_reaches_no_other() {
    let inputs = [
        input(1.0, 5.0, 77),
        input(2.0, FAULTY, 77),
        input(3.0, 5.0, 77),
    ];
    let (answers, _) = gathered(Fake::default(), Sharing::Always, &inputs, |_| {});
    assert!(
        answers[1]
            .as_ref()
            .is_err_and(|error| error.to_string() == "a fault")
    );
    for at in [0, 2] {
        assert_eq!(
            *answers[at].as_ref().expect("answered"),
            expected(&inputs[at], 0.0)
        );
    }
}

#[test]
fn rows_without_numbers_are_computed_alone_before_anybody_gets_them() {
    let inputs = [
        input(1.0, 5.0, 77),
        input(2.0, NAN, 77),
        input(3.0, 5.0, 77),
    ];
    let (answers, _) = gathered(Fake::default(), Sharing::Always, &inputs, |_| {});
    assert!(
        answers[1]
            .as_ref()
            .expect("answered")
            .iter()
            .all(|value| value.is_nan())
    );
    for at in [0, 2] {
        assert_eq!(
            *answers[at].as_ref().expect("answered"),
            expected(&inputs[at], 0.0)
        );
    }
}

#[test]
fn what_is_too_large_together_is_carried_out_alone_and_smaller_from_then_on() {
    let inputs: Vec<_> = (1..=4).map(|mark| input(mark as f32, 5.0, 77)).collect();
    let fake = Fake {
        most_rows: Some(4),
        ..Fake::default()
    };
    let (answers, runs) = gathered(fake, Sharing::Always, &inputs, |_| {});
    assert_eq!(runs, [2, 8, 2, 2, 2, 2]);
    assert!(answers.iter().all(Result::is_ok));
}

#[test]
fn a_withdrawn_call_ends_at_once_and_takes_nothing_from_the_others() {
    let inputs: Vec<_> = (1..=3).map(|mark| input(mark as f32, 5.0, 77)).collect();
    let (answers, runs) = gathered(Fake::default(), Sharing::Always, &inputs, |seats| {
        seats[1].withdraw();
    });
    assert_eq!(runs, [2, 4]);
    assert!(answers[1].is_err());
    for at in [0, 2] {
        assert_eq!(
            *answers[at].as_ref().expect("answered"),
            expected(&inputs[at], 0.0)
        );
    }
}

#[test]
fn a_run_that_nobody_wants_any_more_is_stopped() {
    let (waits, waiting) = mpsc::channel();
    let gate = Gate {
        waits: Mutex::new(Some(waits)),
        ..Gate::default()
    };
    let (fake, service) = service(
        Fake {
            gate: Some(gate),
            ..Fake::default()
        },
        Sharing::Always,
    );
    let seat = service.seat();
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| seat.call(&input(1.0, 5.0, 77), &Plus(0.0)).is_err());
        waiting.recv().expect("it has begun");
        service.seat().withdraw();
        assert_eq!(
            fake.seen_stopped.load(Ordering::SeqCst),
            0,
            "another seat's"
        );
        seat.withdraw();
        assert!(calling.join().expect("no panic"));
    });
    assert_eq!(fake.seen_stopped.load(Ordering::SeqCst), 1);
    // A withdrawal between calls ends nothing.
    seat.withdraw();
    *fake.gate.as_ref().expect("gated").open.lock() = true;
    assert!(seat.call(&input(1.0, 5.0, 77), &Plus(0.0)).is_ok());
}

/// Many jobs of random lengths and forms come and go, some withdraw their calls from a second thread:
/// every answer is the asker's own, and everybody gets one.
#[test]
fn many_jobs_that_come_and_go_get_their_own_answers() {
    for (sharing, most_rows) in [
        (Sharing::Always, None),
        (Sharing::OnceProven, None),
        (Sharing::Never, None),
        (Sharing::Always, Some(5)),
    ] {
        let fake = Fake {
            most_rows,
            ..Fake::default()
        };
        let (fake, service) = service(fake, sharing);
        let (answered, stopped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..24_u32 {
                let (service, answered, stopped) = (&service, &answered, &stopped);
                scope.spawn(move || {
                    let mut state = thread.wrapping_mul(2_654_435_761) | 1;
                    let mut random = move |below: u32| {
                        state ^= state << 13;
                        state ^= state >> 17;
                        state ^= state << 5;
                        state % below
                    };
                    for job in 0..6 {
                        let seat = Arc::new(service.seat());
                        let (tokens, plus) = (1 + random(3) as usize, random(2) as f32);
                        let is_withdrawn = random(4) == 0;
                        let steps = 1 + random(20);
                        for step in 0..steps {
                            let mark = (thread * 1000 + job * 100 + step) as f32 + 1.0;
                            let time = match random(40) {
                                0 => FAULTY,
                                1 => NAN,
                                time => time as f32,
                            };
                            let wanted = input(mark, time, tokens);
                            let withdrawing = is_withdrawn.then(|| {
                                let seat = Arc::clone(&seat);
                                std::thread::spawn(move || seat.withdraw())
                            });
                            match seat.call(&wanted, &Plus(plus)) {
                                Ok(rows) if time == NAN => {
                                    assert!(rows.iter().all(|value| value.is_nan()));
                                }
                                Ok(rows) => {
                                    assert_eq!(rows, expected(&wanted, plus));
                                    answered.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(_) => {
                                    assert!(time == FAULTY || is_withdrawn, "an innocent call");
                                    stopped.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                            if let Some(withdrawing) = withdrawing {
                                withdrawing.join().expect("no panic");
                            }
                        }
                    }
                });
            }
        });
        assert!(answered.into_inner() > 500);
        assert!(stopped.into_inner() > 0);
        let runs = fake.runs.lock();
        let sizes: HashSet<usize> = runs.iter().copied().collect();
        assert_eq!(sizes.len() > 1, sharing != Sharing::Never, "{sizes:?}");
        drop(service);
    }
}

/// Jobs without an end do not keep a short one from its answers, shared or in turns.
#[test]
fn a_short_job_is_not_starved_by_long_ones() {
    for sharing in [Sharing::Never, Sharing::Always] {
        let (_, service) = service(Fake::default(), sharing);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for job in 0..4_u32 {
                let (service, is_done) = (&service, &is_done);
                scope.spawn(move || {
                    let seat = service.seat();
                    for step in 0..1_000_000 {
                        let wanted = input(job as f32, (step % 997) as f32, 77);
                        let rows = seat.call(&wanted, &Plus(0.0)).expect("answered");
                        assert_eq!(rows, expected(&wanted, 0.0));
                        if is_done.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                    panic!("the short job has not ended");
                });
            }
            let seat = service.seat();
            for _ in 0..2 {
                let wanted = input(9.0, 1.0, 12);
                assert_eq!(
                    seat.call(&wanted, &Plus(0.0)).expect("answered"),
                    expected(&wanted, 0.0)
                );
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }
}
