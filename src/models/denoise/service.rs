//! The threads around a [`Desk`]: callers who wait, and one thread that carries out what they share.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ndarray::{Array4, ArrayView, Axis, Dimension, RemoveAxis, concatenate, s};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::desk::{Call, CallId, Desk, Joins, SeatId, Withdrawn};
use crate::sampling::{Cause, UnetInput};

/// A network that calls are carried out by, one run at a time.
pub(in crate::models) trait Backend: Send + Sync + 'static {
    /// What a run takes beside its rows. Calls of different settings never share a run.
    type Setting: Setting;
    /// A hold on one run, by which it is stopped.
    type Run: Send + Sync + 'static;

    /// A hold on a run that has not begun.
    fn prepare(&self) -> Self::Run;

    /// Carries out a run, `[rows, 4, h, w]`.
    ///
    /// # Errors
    /// When the network fails or the run was stopped.
    fn run(
        &self,
        input: &UnetInput,
        setting: &Self::Setting,
        run: &Self::Run,
    ) -> Result<Array4<f32>, Cause>;

    /// Ends a run at once, also one that has not begun.
    fn stop(run: &Self::Run);
}

/// See [`Backend::Setting`].
pub(in crate::models) trait Setting: Clone + Send + Sync + 'static {
    /// Whether calls with these settings may share a run.
    fn agrees(&self, other: &Self) -> bool;
    /// Equal for settings that are computed alike: the shapes of their values, not the values.
    fn shape(&self) -> u64;
}

/// When calls share a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Sharing {
    /// Never: the network takes one call's rows only.
    Never,
    /// Once it was seen, on this machine and for these shapes, that every row of the shared run has
    /// the bits that it has in a run of its own.
    OnceProven,
    /// Whenever there is room.
    Always,
}

/// What bounds shared runs.
#[derive(Debug, Clone, Copy)]
pub(in crate::models) struct SharingRule {
    pub(in crate::models) sharing: Sharing,
    /// Rows times height times width of the latent.
    pub(in crate::models) latent_pixels: usize,
}

/// The longest that a run waits for calls that are about to come.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

/// ... and the share of the last run's time that it waits at most.
const WAIT_SHARE: u32 = 4;

/// Verdicts that are kept.
const KEPT_VERDICTS: usize = 4096;

/// What calls have in common that may share a run.
#[derive(Debug, Clone)]
struct Form<S> {
    shape: Shape,
    setting: S,
}

impl<S: Setting> PartialEq for Form<S> {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.setting.agrees(&other.setting)
    }
}

/// The shapes of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    sample: [usize; 3],
    context: [usize; 2],
    vector: Option<usize>,
}

impl Shape {
    fn of(input: &UnetInput) -> Self {
        let (_, channels, height, width) = input.sample.dim();
        let (_, tokens, context_width) = input.context.dim();
        Self {
            sample: [channels, height, width],
            context: [tokens, context_width],
            vector: input.vector.as_ref().map(ndarray::Array2::ncols),
        }
    }

    fn latent_pixels(&self) -> usize {
        self.sample[1] * self.sample[2]
    }
}

/// A shared run as far as its arithmetic goes: shapes, and how many rows are whose.
type Composition = (Shape, u64, Vec<usize>);

type Answer = Result<Array4<f32>, Cause>;

/// A call that somebody waits for.
struct Pending {
    input: Arc<UnetInput>,
    answer: Sender<Answer>,
}

/// Calls of a shared run that are carried out again, each alone.
struct Retrial {
    /// What the shared run answered them, if it did.
    calls: HashMap<CallId, Option<Array4<f32>>>,
    composition: Composition,
    latent_pixels: usize,
    outcome: Outcome,
    /// One of the calls failed or was withdrawn: nothing is learnt.
    spoiled: bool,
}

/// What came of a shared run, as far as its calls were carried out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It failed.
    Failed,
    /// Every call had the same bits alone.
    Equal,
    /// Some call had other bits alone.
    Different,
}

struct State<B: Backend> {
    desk: Desk<Form<B::Setting>>,
    pending: HashMap<CallId, Pending>,
    /// The run in flight.
    run: Option<Arc<B::Run>>,
    rules: Rules,
    retrial: Option<Retrial>,
    /// The last run: when it ended and how long it took.
    last: (Instant, Duration),
    worker: Option<JoinHandle<()>>,
    closed: bool,
}

/// What is known of shared runs.
struct Rules {
    rule: SharingRule,
    /// Whether shared runs of a composition have the bits of runs alone.
    verdicts: HashMap<Composition, bool>,
}

impl<S: Setting> Joins<Form<S>> for Rules {
    fn most_rows(&self, form: &Form<S>) -> usize {
        match self.rule.sharing {
            Sharing::Never => 0,
            Sharing::OnceProven | Sharing::Always => {
                self.rule.latent_pixels / form.shape.latent_pixels().max(1)
            }
        }
    }

    fn may_join(&self, form: &Form<S>, rows: &[usize]) -> bool {
        match self.rule.sharing {
            Sharing::Never => false,
            Sharing::Always => true,
            Sharing::OnceProven => {
                let composition = (form.shape, form.setting.shape(), rows.to_vec());
                self.verdicts.get(&composition).copied().unwrap_or(true)
            }
        }
    }
}

struct Shared<B: Backend> {
    backend: B,
    state: Mutex<State<B>>,
    changed: Condvar,
    next_id: AtomicU64,
}

/// One network, and everybody who calls it. Dropping it ends its thread.
pub(in crate::models) struct DenoiseService<B: Backend> {
    shared: Arc<Shared<B>>,
}

impl<B: Backend> DenoiseService<B> {
    pub(in crate::models) fn new(backend: B, rule: SharingRule) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                backend,
                state: Mutex::new(State {
                    desk: Desk::new(),
                    pending: HashMap::new(),
                    run: None,
                    rules: Rules {
                        rule,
                        verdicts: HashMap::new(),
                    },
                    retrial: None,
                    last: (Instant::now(), Duration::ZERO),
                    worker: None,
                    closed: false,
                }),
                changed: Condvar::new(),
                next_id: AtomicU64::new(0),
            }),
        })
    }

    pub(in crate::models) fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// Calls that wait or share the run in flight.
    #[cfg(test)]
    pub(super) fn shared_waiting(&self) -> usize {
        self.shared.state.lock().pending.len()
    }

    /// A place for one caller, who makes one call after the other.
    pub(in crate::models) fn seat(self: &Arc<Self>) -> Seat<B> {
        Seat {
            id: self.shared.next_id.fetch_add(1, Ordering::Relaxed),
            service: Arc::clone(self),
        }
    }
}

impl<B: Backend> Drop for DenoiseService<B> {
    fn drop(&mut self) {
        let worker = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.worker.take()
        };
        self.shared.changed.notify_all();
        // The network's memory is free when this returns.
        if let Some(worker) = worker {
            let _ = worker.join();
        }
    }
}

/// One caller's place at a service.
pub(in crate::models) struct Seat<B: Backend> {
    id: SeatId,
    service: Arc<DenoiseService<B>>,
}

impl<B: Backend> Drop for Seat<B> {
    fn drop(&mut self) {
        self.service.shared.state.lock().desk.leave(self.id);
        self.service.shared.changed.notify_all();
    }
}

impl<B: Backend> Seat<B> {
    pub(in crate::models) fn service(&self) -> &Arc<DenoiseService<B>> {
        &self.service
    }

    /// Waits for its turn and answers the network's output for these rows, `[rows, 4, h, w]`.
    ///
    /// # Errors
    /// When the network fails on these rows, or the call was withdrawn.
    pub(in crate::models) fn call(&self, input: &UnetInput, setting: &B::Setting) -> Answer {
        let shared = &self.service.shared;
        let run = Arc::new(shared.backend.prepare());
        let call = Call {
            id: shared.next_id.fetch_add(1, Ordering::Relaxed),
            seat: self.id,
            form: Form {
                shape: Shape::of(input),
                setting: setting.clone(),
            },
            rows: input.sample.dim().0,
            alone: false,
        };
        let mut state = shared.state.lock();
        let State { desk, rules, .. } = &mut *state;
        if desk.start_alone(&call, rules) {
            state.run = Some(Arc::clone(&run));
            drop(state);
            return shared.run_here(input, setting, &run);
        }
        let (answer, answered) = channel();
        state.pending.insert(
            call.id,
            Pending {
                input: Arc::new(input.clone()),
                answer,
            },
        );
        state.desk.submit(call);
        let started = shared.start_worker(&mut state);
        drop(state);
        if let Err(error) = started {
            self.withdraw();
            return Err(error.into());
        }
        shared.changed.notify_all();
        answered
            .recv()
            .unwrap_or_else(|_| Err("the call was lost".into()))
    }

    /// Withdraws the calls of this seat, and no others. A run that others share goes on for them.
    pub(in crate::models) fn withdraw(&self) {
        let shared = &self.service.shared;
        let mut state = shared.state.lock();
        let Withdrawn { calls, stops_run } = state.desk.withdraw(self.id);
        let told: Vec<Pending> = calls
            .iter()
            .filter_map(|id| state.pending.remove(id))
            .collect();
        for id in &calls {
            state.retrial_lost(*id);
        }
        let run = state.run.clone().filter(|_| stops_run);
        drop(state);
        if let Some(run) = run {
            B::stop(&run);
        }
        for pending in told {
            let _ = pending.answer.send(Err("the call was stopped".into()));
        }
        shared.changed.notify_all();
    }
}

impl<B: Backend> State<B> {
    /// A call of the retrial will not be answered.
    fn retrial_lost(&mut self, id: CallId) {
        if let Some(retrial) = &mut self.retrial
            && retrial.calls.remove(&id).is_some()
        {
            retrial.spoiled = true;
            self.end_retrial();
        }
    }

    /// A call of the retrial was answered alone.
    fn retried(&mut self, id: CallId, answer: &Answer) {
        let Some(retrial) = &mut self.retrial else {
            return;
        };
        let Some(shared) = retrial.calls.remove(&id) else {
            return;
        };
        match (answer, shared) {
            (Ok(alone), Some(shared)) if !same_bits(alone, &shared) => {
                retrial.outcome = Outcome::Different;
            }
            (Ok(_), _) => {}
            (Err(_), _) => retrial.spoiled = true,
        }
        self.end_retrial();
    }

    fn end_retrial(&mut self) {
        let over = |retrial: &mut Retrial| retrial.calls.is_empty();
        let Some(retrial) = self.retrial.take_if(over).filter(|it| !it.spoiled) else {
            return;
        };
        let (shape, rows) = (retrial.composition.0, &retrial.composition.2);
        if retrial.outcome == Outcome::Failed {
            // Every call succeeds alone, so that it was too much together: most likely for the memory.
            let most = &mut self.rules.rule.latent_pixels;
            *most = (*most).min(retrial.latent_pixels / 2);
            tracing::warn!(?shape, ?rows, "runs are shared by fewer calls from now on");
            return;
        }
        let equal = retrial.outcome == Outcome::Equal;
        tracing::debug!(
            ?shape,
            ?rows,
            equal,
            "a shared run was compared with runs alone"
        );
        let verdicts = &mut self.rules.verdicts;
        if verdicts.len() >= KEPT_VERDICTS {
            verdicts.clear();
        }
        verdicts.insert(retrial.composition, equal);
    }

    /// How long the next run may still wait for calls that are about to come.
    fn patience(&self) -> Duration {
        let (ended, took) = self.last;
        let longest = LONGEST_WAIT.min(took / WAIT_SHARE);
        longest.saturating_sub(ended.elapsed())
    }
}

impl<B: Backend> Shared<B> {
    /// A run of one call on the caller's own thread.
    fn run_here(&self, input: &UnetInput, setting: &B::Setting, run: &B::Run) -> Answer {
        let begun = Instant::now();
        let answer = self.guarded(input, setting, run);
        let mut state = self.state.lock();
        for call in state.end_run(begun) {
            state.desk.answered(call);
        }
        drop(state);
        self.changed.notify_all();
        answer
    }

    fn guarded(&self, input: &UnetInput, setting: &B::Setting, run: &B::Run) -> Answer {
        let run = AssertUnwindSafe(|| self.backend.run(input, setting, run));
        catch_unwind(run).unwrap_or_else(|_| Err("the network panicked".into()))
    }

    /// # Errors
    /// When the operating system refuses the thread and nobody else has started it.
    fn start_worker(self: &Arc<Self>, state: &mut State<B>) -> Result<(), std::io::Error> {
        if state.worker.is_some() {
            return Ok(());
        }
        let shared = Arc::clone(self);
        let worker = std::thread::Builder::new()
            .name("denoise".to_owned())
            .spawn(move || while shared.carry_out_next() {})?;
        state.worker = Some(worker);
        Ok(())
    }

    /// Waits for calls and carries out one run; false when nobody will call any more.
    fn carry_out_next(&self) -> bool {
        let Some((calls, inputs, run)) = self.next_run() else {
            return false;
        };
        let begun = Instant::now();
        let setting = &calls[0].form.setting;
        let computed_by = setting.shape();
        let answer = match inputs.as_slice() {
            [input] => self.guarded(input, setting, &run),
            inputs => joined(inputs)
                .map_err(Cause::from)
                .and_then(|input| self.guarded(&input, setting, &run)),
        };
        let mut state = self.state.lock();
        let wanted = state.end_run(begun);
        let told = if calls.len() == 1 {
            state.answer_alone(wanted, answer)
        } else {
            state.answer_shared(&calls, wanted, answer, computed_by)
        };
        drop(state);
        for (answer, value) in told {
            // A caller who left does not want it.
            let _ = answer.send(value);
        }
        true
    }

    #[expect(clippy::type_complexity, reason = "the three parts of one run")]
    fn next_run(
        &self,
    ) -> Option<(
        Vec<Call<Form<B::Setting>>>,
        Vec<Arc<UnetInput>>,
        Arc<B::Run>,
    )> {
        let mut state = self.state.lock();
        loop {
            if state.desk.is_running() || !state.desk.has_waiting() {
                if state.closed {
                    return None;
                }
                self.changed.wait(&mut state);
                continue;
            }
            if state.desk.may_grow(&state.rules) {
                let patience = state.patience();
                if !patience.is_zero() {
                    self.changed.wait_for(&mut state, patience);
                    continue;
                }
                state.desk.stop_awaiting();
            }
            let run = Arc::new(self.backend.prepare());
            return Some(Self::start(&mut state, run));
        }
    }

    #[expect(clippy::type_complexity, reason = "the three parts of one run")]
    fn start(
        state: &mut MutexGuard<'_, State<B>>,
        run: Arc<B::Run>,
    ) -> (
        Vec<Call<Form<B::Setting>>>,
        Vec<Arc<UnetInput>>,
        Arc<B::Run>,
    ) {
        let State {
            desk,
            rules,
            pending,
            ..
        } = &mut **state;
        let calls = desk.start(rules);
        let inputs = calls
            .iter()
            .filter_map(|call| pending.get(&call.id))
            .map(|pending| Arc::clone(&pending.input))
            .collect();
        state.run = Some(Arc::clone(&run));
        (calls, inputs, run)
    }
}

impl<B: Backend> State<B> {
    /// The run in flight is over. Answers its calls that are still wanted.
    fn end_run(&mut self, begun: Instant) -> Vec<Call<Form<B::Setting>>> {
        self.run = None;
        self.last = (Instant::now(), begun.elapsed());
        self.desk.finish()
    }

    fn answer_alone(
        &mut self,
        wanted: Vec<Call<Form<B::Setting>>>,
        answer: Answer,
    ) -> Vec<(Sender<Answer>, Answer)> {
        let Some(call) = wanted.into_iter().next() else {
            return Vec::new();
        };
        self.retried(call.id, &answer);
        let pending = self.pending.remove(&call.id);
        self.desk.answered(call);
        pending
            .map(|pending| (pending.answer, answer))
            .into_iter()
            .collect()
    }

    fn answer_shared(
        &mut self,
        calls: &[Call<Form<B::Setting>>],
        wanted: Vec<Call<Form<B::Setting>>>,
        answer: Answer,
        computed_by: u64,
    ) -> Vec<(Sender<Answer>, Answer)> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let form = &calls[0].form;
        if form.setting.shape() != computed_by {
            // Another session took over meanwhile: what is known of this one does not hold for the run.
            self.desk.return_for_runs_alone(wanted);
            return Vec::new();
        }
        let rows: Vec<usize> = calls.iter().map(|call| call.rows).collect();
        let row_count: usize = rows.iter().sum();
        let composition = (form.shape, computed_by, rows);
        let latent_pixels = row_count * form.shape.latent_pixels();
        let parts = answer
            .and_then(|rows| split(&rows, calls).ok_or_else(|| "rows are missing".into()))
            .inspect_err(|error| {
                tracing::warn!(%error, calls = calls.len(), "a shared run failed; its calls run alone");
            });
        let unproven = self.rules.rule.sharing == Sharing::OnceProven
            && !self.rules.verdicts.contains_key(&composition);
        let mut parts = match parts {
            Ok(parts) if !unproven => parts,
            parts => {
                self.retry_alone(wanted, parts.ok(), composition, latent_pixels);
                return Vec::new();
            }
        };
        // Nothing should go from one call's rows to another's; where there is no number, make sure.
        let is_sound = |call: &Call<_>| {
            let rows = parts.get(&call.id);
            rows.is_some_and(|rows| rows.iter().all(|value| value.is_finite()))
        };
        let (sound, doubtful): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_sound);
        self.desk.return_for_runs_alone(doubtful);
        sound
            .into_iter()
            .filter_map(|call| {
                let rows = parts.remove(&call.id)?;
                let pending = self.pending.remove(&call.id)?;
                self.desk.answered(call);
                Some((pending.answer, Ok(rows)))
            })
            .collect()
    }

    /// The calls of a shared run that failed, or that nothing is known of, are carried out alone.
    fn retry_alone(
        &mut self,
        wanted: Vec<Call<Form<B::Setting>>>,
        mut parts: Option<HashMap<CallId, Array4<f32>>>,
        composition: Composition,
        latent_pixels: usize,
    ) {
        let outcome = match &parts {
            Some(_) => Outcome::Equal,
            None => Outcome::Failed,
        };
        self.retrial = Some(Retrial {
            spoiled: wanted.len() < composition.2.len(),
            calls: wanted
                .iter()
                .map(|call| {
                    let shared = parts.as_mut().and_then(|parts| parts.remove(&call.id));
                    (call.id, shared)
                })
                .collect(),
            composition,
            latent_pixels,
            outcome,
        });
        self.desk.return_for_runs_alone(wanted);
    }
}

/// Several calls as one.
fn joined(inputs: &[Arc<UnetInput>]) -> Result<UnetInput, ndarray::ShapeError> {
    Ok(UnetInput {
        sample: stacked(inputs.iter().map(|input| input.sample.view()))?,
        timestep: inputs
            .iter()
            .flat_map(|input| input.timestep.iter().copied())
            .collect(),
        context: stacked(inputs.iter().map(|input| input.context.view()))?,
        vector: if inputs.iter().all(|input| input.vector.is_some()) {
            let vectors = inputs.iter().filter_map(|input| input.vector.as_ref());
            Some(stacked(vectors.map(|vector| vector.view()))?)
        } else {
            None
        },
    })
}

fn stacked<'a, D: Dimension + RemoveAxis>(
    parts: impl Iterator<Item = ArrayView<'a, f32, D>>,
) -> Result<ndarray::Array<f32, D>, ndarray::ShapeError> {
    concatenate(Axis(0), &parts.collect::<Vec<_>>())
}

/// Every call's rows of a shared answer; `None` where there are not as many as there should be.
fn split<F>(rows: &Array4<f32>, calls: &[Call<F>]) -> Option<HashMap<CallId, Array4<f32>>> {
    let all: usize = calls.iter().map(|call| call.rows).sum();
    if rows.dim().0 != all {
        return None;
    }
    let mut first = 0;
    let mut parts = HashMap::new();
    for call in calls {
        let last = first + call.rows;
        parts.insert(call.id, rows.slice(s![first..last, .., .., ..]).to_owned());
        first = last;
    }
    Some(parts)
}

fn same_bits(one: &Array4<f32>, other: &Array4<f32>) -> bool {
    one.dim() == other.dim()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| one.to_bits() == other.to_bits())
}
