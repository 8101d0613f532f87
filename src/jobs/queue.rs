//! A bounded queue, fair between clients, and the threads that carry jobs out.
//!
//! One client's jobs run in the order of their arrival, as in A1111. Where several clients wait, the one
//! that was served longest ago has the next turn, so a client that sends a hundred requests delays another
//! by one job and not by a hundred.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::board::{Board, PreviewOptions, TaskProgress};
use super::meter::Meter;
use super::tasks::Finished;

/// How much the newest job counts in the mean of durations.
const NEWEST_SHARE: f64 = 0.3;

/// Why a job was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("{waiting} requests are already waiting")]
    QueueFull { waiting: usize },
    #[error("{waiting} requests of this client are already waiting")]
    ClientFull { waiting: usize },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the job was cancelled")]
    Cancelled,
    #[error("the job stopped unexpectedly; the log says why")]
    Panicked,
}

/// How a job shows while it waits and runs.
#[derive(Debug, Clone, Default)]
pub struct Ticket {
    /// A1111's first text for the job; `None`: the job takes the queue's turn without showing.
    pub job: Option<&'static str>,
    /// The id that `/internal/progress` and `/v1/jobs` find it by.
    pub task: Option<String>,
    /// Who asks: jobs are shared out between these names.
    pub client: String,
    /// How many jobs of this client may wait, if fewer than of any client.
    pub waiting_limit: Option<usize>,
}

/// What bounds the queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// How many jobs may wait.
    pub waiting: usize,
    /// How many of them may belong to one client.
    pub waiting_per_client: usize,
    /// How many jobs run at once; at least 1.
    pub concurrent: usize,
    /// A caller who leaves while the job runs interrupts it. A1111 finishes such jobs.
    pub cancel_on_disconnect: bool,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            waiting: 256,
            waiting_per_client: usize::MAX,
            concurrent: 1,
            cancel_on_disconnect: false,
        }
    }
}

/// Where a job of the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// So many jobs run before it.
    Waiting {
        ahead: usize,
    },
    Running,
}

/// A job that waits or runs.
#[derive(Debug, Clone)]
pub struct JobView {
    pub task: String,
    pub job: &'static str,
    pub client: String,
    pub whereabouts: Whereabouts,
}

/// What [`Jobs::cancel`] met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It will never run.
    Waiting,
    /// It ends with what it has.
    Running,
    /// The queue does not know the id.
    Unknown,
}

/// The queue. Dropping it, or [`Jobs::shut_down`], ends its threads after the running jobs.
pub struct Jobs {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    limits: QueueLimits,
    meter: Meter,
}

struct Queue {
    waiting: VecDeque<Entry>,
    running: Vec<Running>,
    /// The state that A1111's global routes show while nothing runs: that of the last job.
    idle: Arc<Board>,
    finished: Finished,
    /// The turn in which a client that waits or runs was served last.
    served: HashMap<String, u64>,
    turn: u64,
    next_number: u64,
    closed: bool,
    /// How long jobs took, the latest counting most.
    mean_duration_s: Option<f64>,
}

struct Entry {
    number: u64,
    ticket: Ticket,
    submitted: Instant,
    work: Work,
}

struct Running {
    number: u64,
    ticket: Ticket,
    begun: Instant,
    board: Arc<Board>,
}

impl Jobs {
    /// A queue with its threads. `terminal_bars` draws progress bars where standard error is a terminal
    /// and one job runs at a time.
    ///
    /// # Panics
    /// When the operating system refuses the threads.
    #[must_use]
    pub fn start(limits: QueueLimits, terminal_bars: bool) -> Self {
        let concurrent = limits.concurrent.max(1);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                running: Vec::new(),
                idle: Arc::new(Board::new(terminal_bars && concurrent == 1)),
                finished: Finished::default(),
                served: HashMap::new(),
                turn: 0,
                next_number: 0,
                closed: false,
                mean_duration_s: None,
            }),
            changed: Condvar::new(),
            limits,
            meter: Meter::default(),
        });
        let workers = (0..concurrent)
            .map(|index| {
                let for_worker = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("generation-{index}"))
                    .spawn(move || carry_out(&for_worker))
                    .expect("the system has room for one more thread")
            })
            .collect();
        Self {
            shared,
            workers: Mutex::new(workers),
        }
    }

    /// The state that A1111's global routes read and change: of the job that has run longest, or the last.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        let queue = self.shared.queue.lock();
        let shown = queue.running.iter().find(|job| job.ticket.job.is_some());
        Arc::clone(shown.map_or(&queue.idle, |job| &job.board))
    }

    /// Counters of what the queue did.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.shared.meter
    }

    /// Carries out `work` when its turn comes. A caller who stops waiting frees the place; once the job
    /// runs, it runs to its end unless the limits say otherwise.
    ///
    /// # Errors
    /// When the queue is full or closed, the job was cancelled before it ran, or it panicked.
    pub async fn run<T, E>(
        &self,
        ticket: Ticket,
        work: impl FnOnce(&Board) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, JobError>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let number = self.enqueue(
            ticket,
            true,
            Box::new(move |board| {
                let result = work(board);
                Done {
                    succeeded: result.is_ok(),
                    answer: Box::new(move || {
                        // A caller who left does not want the result.
                        let _ = sender.send(result);
                    }),
                }
            }),
        )?;
        let _place = Place {
            shared: &self.shared,
            number,
        };
        match receiver.await {
            Ok(result) => Ok(result),
            Err(_) if self.shared.queue.lock().closed => Err(JobError::ShuttingDown),
            Err(_) if self.shared.queue.lock().finished.cancelled(number) => {
                Err(JobError::Cancelled)
            }
            Err(_) => Err(JobError::Panicked),
        }
    }

    /// Carries out `work` when its turn comes, with nobody waiting for it. `work` answers whether it
    /// succeeded. `bounded` is false for jobs that had a place before a restart.
    ///
    /// # Errors
    /// When the queue is full or closed.
    pub fn submit(
        &self,
        ticket: Ticket,
        bounded: bool,
        work: impl FnOnce(&Board) -> bool + Send + 'static,
    ) -> Result<(), JobError> {
        let work: Work = Box::new(move |board| Done {
            succeeded: work(board),
            answer: Box::new(|| {}),
        });
        self.enqueue(ticket, bounded, work).map(|_| ())
    }

    /// How many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().waiting.len()
    }

    /// How many jobs run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.queue.lock().running.len()
    }

    /// The jobs with an id: those that run, then those that wait, in the order of their turns.
    #[must_use]
    pub fn list(&self) -> Vec<JobView> {
        let queue = self.shared.queue.lock();
        let running = queue
            .running
            .iter()
            .filter_map(|job| view(&job.ticket, Whereabouts::Running));
        let waiting = queue
            .turns()
            .into_iter()
            .enumerate()
            .filter_map(|(ahead, index)| {
                let entry = &queue.waiting[index];
                let whereabouts = Whereabouts::Waiting { ahead };
                view(&entry.ticket, whereabouts)
            });
        running.chain(waiting).collect()
    }

    /// The ids of waiting jobs, in the order of their turns.
    #[must_use]
    pub fn pending_tasks(&self) -> Vec<String> {
        let queue = self.shared.queue.lock();
        queue.pending()
    }

    /// The progress of one job; `known_preview` is the id of the preview that the caller has. Without a
    /// job, the missing id is the active one, as in A1111.
    #[must_use]
    pub fn task_progress(
        &self,
        id: Option<&str>,
        options: PreviewOptions,
        known_preview: i64,
        want_preview: bool,
    ) -> TaskProgress {
        let queue = self.shared.queue.lock();
        let running = queue
            .running
            .iter()
            .find(|job| job.ticket.job.is_some() && job.ticket.task.as_deref() == id);
        let board = match running {
            Some(job) => Some(Arc::clone(&job.board)),
            None if id.is_none() && queue.running.is_empty() => Some(Arc::clone(&queue.idle)),
            None => None,
        };
        let completed = id.is_some_and(|id| queue.finished.contains(id));
        if let Some(board) = board {
            drop(queue);
            return board.task_progress(completed, options, known_preview, want_preview);
        }
        let pending = queue.pending();
        let place = pending
            .iter()
            .position(|pending| Some(pending.as_str()) == id);
        TaskProgress::waiting(completed, place, pending.len())
    }

    /// An estimate of the seconds until a job that has so many before it begins, from the time that jobs
    /// took lately; `None` before the first one ended.
    #[must_use]
    pub fn eta_s(&self, ahead: usize) -> Option<f64> {
        let queue = self.shared.queue.lock();
        let mean_s = queue.mean_duration_s?;
        let running_s: f64 = queue
            .running
            .iter()
            .map(|job| (mean_s - job.begun.elapsed().as_secs_f64()).max(0.0))
            .sum();
        let threads = self.shared.limits.concurrent.max(1) as f64;
        Some((running_s + ahead as f64 * mean_s) / threads)
    }

    /// Ends the job of this id, whether it waits or runs, and no other.
    pub fn cancel(&self, id: &str) -> Cancelled {
        let mut queue = self.shared.queue.lock();
        if let Some(job) = queue.running.iter().find(|job| job.ticket.is(id)) {
            job.board.interrupt();
            return Cancelled::Running;
        }
        let found = queue.waiting.iter().position(|entry| entry.ticket.is(id));
        let Some(entry) = found.and_then(|index| queue.waiting.remove(index)) else {
            return Cancelled::Unknown;
        };
        queue.finished.note_cancelled(entry.number);
        // Its caller is told while the queue is free.
        drop(queue);
        drop(entry);
        Cancelled::Waiting
    }

    /// Whether no job is taken any more.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.shared.queue.lock().closed
    }

    /// Refuses everything that waits or comes later. The running jobs go on.
    pub fn close(&self) {
        let refused = {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        drop(refused);
        self.shared.changed.notify_all();
    }

    /// Interrupts what runs: the jobs end with what they have.
    pub fn interrupt_all(&self) {
        for job in &self.shared.queue.lock().running {
            job.board.interrupt();
        }
    }

    /// [`Jobs::close`], then waits for the running jobs.
    pub fn shut_down(&self) {
        self.close();
        for worker in std::mem::take(&mut *self.workers.lock()) {
            let _ = worker.join();
        }
    }

    fn enqueue(&self, ticket: Ticket, bounded: bool, work: Work) -> Result<u64, JobError> {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return Err(JobError::ShuttingDown);
        }
        if bounded {
            let admitted = self.shared.limits.admit(&queue.waiting, &ticket);
            admitted.inspect_err(|_| self.shared.meter.refused())?;
        }
        let number = queue.next_number;
        queue.next_number += 1;
        queue.waiting.push_back(Entry {
            number,
            ticket,
            submitted: Instant::now(),
            work,
        });
        drop(queue);
        self.shared.changed.notify_one();
        Ok(number)
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ticket {
    fn is(&self, id: &str) -> bool {
        self.task.as_deref() == Some(id)
    }
}

impl QueueLimits {
    fn admit(&self, waiting: &VecDeque<Entry>, ticket: &Ticket) -> Result<(), JobError> {
        if waiting.len() >= self.waiting {
            return Err(JobError::QueueFull {
                waiting: waiting.len(),
            });
        }
        let own = waiting
            .iter()
            .filter(|entry| entry.ticket.client == ticket.client)
            .count();
        let limit = ticket.waiting_limit.unwrap_or(usize::MAX);
        if own >= self.waiting_per_client.min(limit) {
            return Err(JobError::ClientFull { waiting: own });
        }
        Ok(())
    }
}

impl Queue {
    /// Indices into `waiting` in the order in which they will run if nothing else comes.
    fn turns(&self) -> Vec<usize> {
        let mut served = self.served.clone();
        let mut turn = self.turn;
        let mut left: Vec<usize> = (0..self.waiting.len()).collect();
        let mut order = Vec::with_capacity(left.len());
        while let Some(at) = self.next_among(&left, &served) {
            let index = left.remove(at);
            turn += 1;
            served.insert(self.waiting[index].ticket.client.clone(), turn);
            order.push(index);
        }
        order
    }

    /// The place in `left` of the entry whose client was served longest ago; of equals the oldest entry.
    fn next_among(&self, left: &[usize], served: &HashMap<String, u64>) -> Option<usize> {
        let turn_of = |index: usize| served.get(&self.waiting[index].ticket.client).copied();
        (0..left.len()).min_by_key(|&at| (turn_of(left[at]), at))
    }

    fn take_next(&mut self) -> Option<Entry> {
        let all: Vec<usize> = (0..self.waiting.len()).collect();
        let index = self.next_among(&all, &self.served)?;
        let entry = self.waiting.remove(index)?;
        self.turn += 1;
        self.served.insert(entry.ticket.client.clone(), self.turn);
        Some(entry)
    }

    /// Clients that have no job are forgotten.
    fn forget_idle_clients(&mut self) {
        let (waiting, running) = (&self.waiting, &self.running);
        self.served.retain(|client, _| {
            waiting.iter().any(|entry| entry.ticket.client == *client)
                || running.iter().any(|job| job.ticket.client == *client)
        });
    }

    fn pending(&self) -> Vec<String> {
        self.turns()
            .into_iter()
            .filter_map(|index| self.waiting[index].ticket.task.clone())
            .collect()
    }
}

fn view(ticket: &Ticket, whereabouts: Whereabouts) -> Option<JobView> {
    Some(JobView {
        task: ticket.task.clone()?,
        job: ticket.job?,
        client: ticket.client.clone(),
        whereabouts,
    })
}

/// A caller's hold on its place in the queue.
struct Place<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        let found = queue
            .waiting
            .iter()
            .position(|entry| entry.number == self.number);
        let left = found.and_then(|index| queue.waiting.remove(index));
        if left.is_none() && self.shared.limits.cancel_on_disconnect {
            // After its end the job is not among the running ones any more.
            if let Some(job) = queue.running.iter().find(|job| job.number == self.number) {
                job.board.interrupt();
            }
        }
        drop(queue);
        drop(left);
    }
}

/// A job, carried out on one of the queue's threads.
type Work = Box<dyn FnOnce(&Board) -> Done + Send>;

/// A job that was carried out, its answer not yet given.
struct Done {
    succeeded: bool,
    answer: Box<dyn FnOnce() + Send>,
}

fn carry_out(shared: &Shared) {
    while let Some((number, board, work)) = next_job(shared) {
        // Every log line of the job tells whose it is.
        let _span = tracing::info_span!("job", id = board.task()).entered();
        let done = catch_unwind(AssertUnwindSafe(|| work(&board)))
            .inspect_err(|panic| {
                tracing::error!(message = panic_text(panic.as_ref()), "a job panicked");
            })
            .ok();
        // The board is idle before the caller hears of the end: clients poll for that right after.
        end_job(shared, number, done.as_ref().map(|done| done.succeeded));
        if let Some(done) = done {
            (done.answer)();
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Waits for a job and puts it among the running ones.
fn next_job(shared: &Shared) -> Option<(u64, Arc<Board>, Work)> {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(entry) = queue.take_next() {
            shared.meter.started(entry.submitted.elapsed());
            let board = Arc::new(match entry.ticket.job {
                Some(job) => {
                    queue
                        .idle
                        .following(job, entry.ticket.task.clone(), shared.meter.clone())
                }
                None => Board::new(false),
            });
            queue.running.push(Running {
                number: entry.number,
                ticket: entry.ticket,
                begun: Instant::now(),
                board: Arc::clone(&board),
            });
            return Some((entry.number, board, entry.work));
        }
        if queue.closed {
            return None;
        }
        shared.changed.wait(&mut queue);
    }
}

/// `succeeded` is `None` after a panic.
fn end_job(shared: &Shared, number: u64, succeeded: Option<bool>) {
    let mut queue = shared.queue.lock();
    let Some(at) = queue.running.iter().position(|job| job.number == number) else {
        return;
    };
    let job = queue.running.remove(at);
    shared.meter.ended(succeeded);
    if job.ticket.job.is_some() {
        let took_s = job.begun.elapsed().as_secs_f64();
        let mean_s = queue.mean_duration_s.unwrap_or(took_s);
        queue.mean_duration_s = Some(mean_s + (took_s - mean_s) * NEWEST_SHARE);
    }
    if job.ticket.job.is_some() {
        job.board.end();
        queue.idle = job.board;
        if let Some(task) = job.ticket.task.filter(|_| succeeded == Some(true)) {
            queue.finished.add(task);
        }
    }
    queue.forget_idle_clients();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::JobControl as _;
    use futures_util::FutureExt as _;
    use std::sync::mpsc;

    fn ticket(task: &str) -> Ticket {
        Ticket {
            job: Some("scripts_txt2img"),
            task: Some(task.to_owned()),
            ..Ticket::default()
        }
    }

    fn of_client(client: &str, task: &str) -> Ticket {
        Ticket {
            client: client.to_owned(),
            ..ticket(task)
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .expect("a runtime")
    }

    #[test]
    fn jobs_run_in_the_order_of_arrival() {
        let jobs = Arc::new(Jobs::start(QueueLimits::default(), false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (hold, held) = mpsc::channel::<()>();
        runtime().block_on(async {
            let first = {
                let jobs = Arc::clone(&jobs);
                tokio::spawn(async move { jobs.run(ticket("first"), move |_| held.recv()).await })
            };
            while !jobs.task_progress(Some("first"), PREVIEW, -1, false).active {
                tokio::task::yield_now().await;
            }
            let mut others = Vec::new();
            for index in 0..3 {
                let (for_task, seen) = (Arc::clone(&jobs), Arc::clone(&seen));
                others.push(tokio::spawn(async move {
                    let work = move |_: &Board| {
                        seen.lock().push(index);
                        Ok::<_, ()>(())
                    };
                    for_task.run(ticket(&index.to_string()), work).await
                }));
                while jobs.waiting() <= index {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(jobs.pending_tasks(), ["0", "1", "2"]);
            hold.send(()).expect("the first job listens");
            for other in others {
                other
                    .await
                    .expect("joined")
                    .expect("carried out")
                    .expect("succeeded");
            }
            first
                .await
                .expect("joined")
                .expect("carried out")
                .expect("succeeded");
        });
        assert_eq!(*seen.lock(), [0, 1, 2]);
    }

    const PREVIEW: super::super::PreviewOptions = super::super::PreviewOptions {
        enabled: false,
        every_steps: 10,
        grid: false,
    };

    /// Starts a job that runs until the sender is used or dropped, and waits until it runs.
    async fn block(jobs: &Arc<Jobs>) -> mpsc::Sender<()> {
        let (hold, held) = mpsc::channel::<()>();
        let for_task = Arc::clone(jobs);
        tokio::spawn(async move { for_task.run(ticket("block"), move |_| held.recv()).await });
        while !jobs.task_progress(Some("block"), PREVIEW, -1, false).active {
            tokio::task::yield_now().await;
        }
        hold
    }

    /// Starts a job called `late` behind a running one, and waits until it waits.
    async fn wait_in_line(
        jobs: &Arc<Jobs>,
    ) -> tokio::task::JoinHandle<Result<Result<(), ()>, JobError>> {
        let for_task = Arc::clone(jobs);
        let waiting =
            tokio::spawn(async move { for_task.run(ticket("late"), |_| Ok::<_, ()>(())).await });
        while jobs.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        waiting
    }

    #[test]
    fn a_caller_who_leaves_frees_the_place() {
        let jobs = Arc::new(Jobs::start(QueueLimits::default(), false));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            let left = jobs.run(ticket("gone"), |_| Ok::<_, ()>(())).now_or_never();
            assert!(left.is_none(), "the first job is still running");
            assert_eq!(jobs.waiting(), 0);
            assert!(jobs.pending_tasks().is_empty());
            drop(hold);
        });
    }

    #[test]
    fn clients_take_turns_and_one_clients_jobs_stay_in_order() {
        let jobs = Arc::new(Jobs::start(QueueLimits::default(), false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            for (client, task) in [
                ("greedy", "g1"),
                ("greedy", "g2"),
                ("greedy", "g3"),
                ("modest", "m1"),
                ("modest", "m2"),
            ] {
                let seen = Arc::clone(&seen);
                jobs.submit(of_client(client, task), true, move |_| {
                    seen.lock().push(task);
                    true
                })
                .expect("there is room");
            }
            assert_eq!(jobs.pending_tasks(), ["g1", "m1", "g2", "m2", "g3"]);
            drop(hold);
            while jobs.waiting() + jobs.running() > 0 {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(*seen.lock(), ["g1", "m1", "g2", "m2", "g3"]);
    }

    #[test]
    fn one_client_cannot_take_every_place() {
        let limits = QueueLimits {
            waiting_per_client: 1,
            ..QueueLimits::default()
        };
        let jobs = Arc::new(Jobs::start(limits, false));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            let submit = |client, task| jobs.submit(of_client(client, task), true, |_| true);
            assert!(submit("a", "a1").is_ok());
            let refused = submit("a", "a2").unwrap_err();
            assert!(matches!(refused, JobError::ClientFull { waiting: 1 }));
            assert!(submit("b", "b1").is_ok());
            drop(hold);
        });
    }

    /// Eight jobs run at once and one waits; those that are cancelled end, the others never notice.
    #[test]
    fn cancelling_one_job_touches_no_other() {
        let limits = QueueLimits {
            concurrent: 8,
            ..QueueLimits::default()
        };
        let jobs = Arc::new(Jobs::start(limits, false));
        let ended = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for index in 0..9 {
            let (ended, stop) = (Arc::clone(&ended), Arc::clone(&stop));
            jobs.submit(ticket(&index.to_string()), true, move |board| {
                while !board.interrupted() && !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                ended.lock().push((index, board.interrupted()));
                true
            })
            .expect("there is room");
        }
        while jobs.running() < 8 {
            std::thread::yield_now();
        }
        assert_eq!(jobs.pending_tasks(), ["8"]);
        assert_eq!(jobs.cancel("8"), Cancelled::Waiting);
        assert_eq!(jobs.cancel("3"), Cancelled::Running);
        assert_eq!(jobs.cancel("nobody"), Cancelled::Unknown);
        while jobs.running() > 7 {
            std::thread::yield_now();
        }
        assert_eq!(*ended.lock(), [(3, true)]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        jobs.shut_down();
        let mut ended = ended.lock().clone();
        ended.sort_unstable();
        let expected: Vec<_> = (0..8).map(|index| (index, index == 3)).collect();
        assert_eq!(ended, expected);
    }

    #[test]
    fn the_caller_of_a_cancelled_job_is_told() {
        let jobs = Arc::new(Jobs::start(QueueLimits::default(), false));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            let waiting = wait_in_line(&jobs).await;
            assert_eq!(jobs.cancel("late"), Cancelled::Waiting);
            let error = waiting.await.expect("joined").unwrap_err();
            assert!(matches!(error, JobError::Cancelled));
            drop(hold);
        });
    }

    #[test]
    fn a_caller_who_leaves_a_running_job_stops_it_where_the_limits_say_so() {
        for cancel_on_disconnect in [false, true] {
            let limits = QueueLimits {
                cancel_on_disconnect,
                ..QueueLimits::default()
            };
            let jobs = Arc::new(Jobs::start(limits, false));
            let (hold, held) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel();
            runtime().block_on(async {
                let for_task = Arc::clone(&jobs);
                let caller = tokio::spawn(async move {
                    let work = move |board: &Board| {
                        let _ = held.recv();
                        let _ = tell.send(board.interrupted());
                        Ok::<_, ()>(())
                    };
                    for_task.run(ticket("a"), work).await
                });
                while jobs.running() == 0 {
                    tokio::task::yield_now().await;
                }
                caller.abort();
                assert!(caller.await.is_err(), "the caller left");
            });
            drop(hold);
            assert_eq!(told.recv(), Ok(cancel_on_disconnect));
        }
    }

    #[test]
    fn task_progress_tells_waiting_from_unknown() {
        let jobs = Arc::new(Jobs::start(QueueLimits::default(), false));
        assert!(jobs.task_progress(None, PREVIEW, -1, false).active);
        runtime().block_on(async {
            let hold = block(&jobs).await;
            for task in ["a", "b"] {
                jobs.submit(ticket(task), true, |_| true).expect("room");
            }
            let queued = jobs.task_progress(Some("b"), PREVIEW, -1, false);
            assert_eq!(queued.text.as_deref(), Some("In queue: 2/2"));
            let unknown = jobs.task_progress(Some("c"), PREVIEW, -1, false);
            assert_eq!(unknown.text.as_deref(), Some("Waiting..."));
            assert!(!jobs.task_progress(None, PREVIEW, -1, false).active);
            hold.send(()).expect("the job listens");
        });
        jobs.shut_down();
        assert!(
            jobs.task_progress(Some("block"), PREVIEW, -1, false)
                .completed
        );
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_too() {
        let jobs = Arc::new(Jobs::start(
            QueueLimits {
                waiting: 0,
                ..QueueLimits::default()
            },
            false,
        ));
        runtime().block_on(async {
            let error = jobs
                .run(ticket("a"), |_| Ok::<_, ()>(()))
                .await
                .unwrap_err();
            assert!(matches!(error, JobError::QueueFull { waiting: 0 }));
            jobs.close();
            let error = jobs
                .run(ticket("b"), |_| Ok::<_, ()>(()))
                .await
                .unwrap_err();
            assert!(matches!(error, JobError::ShuttingDown));
        });
    }

    #[test]
    fn a_panic_does_not_end_the_queue() {
        let jobs = Jobs::start(QueueLimits::default(), false);
        runtime().block_on(async {
            let work = |_: &Board| -> Result<(), ()> { panic!("on purpose") };
            let error = jobs.run(ticket("a"), work).await.unwrap_err();
            assert!(matches!(error, JobError::Panicked));
            let again = jobs.run(ticket("b"), |_| Ok::<_, ()>(7)).await;
            assert!(matches!(again, Ok(Ok(7))));
        });
    }

    #[test]
    fn shutting_down_refuses_what_waits_and_finishes_what_runs() {
        let jobs = Arc::new(Jobs::start(QueueLimits::default(), false));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            let waiting = wait_in_line(&jobs).await;
            jobs.close();
            let refused = waiting.await.expect("joined").unwrap_err();
            assert!(matches!(refused, JobError::ShuttingDown));
            drop(hold);
        });
        jobs.shut_down();
    }
}
