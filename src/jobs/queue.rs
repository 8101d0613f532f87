//! A bounded queue, first come, first served, and the one thread that carries jobs out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::Board;

/// Why a job was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("{waiting} requests are already waiting")]
    QueueFull { waiting: usize },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the job stopped unexpectedly; the log says why")]
    Panicked,
}

/// How a job shows while it waits and runs.
#[derive(Debug, Clone, Default)]
pub struct Ticket {
    /// A1111's first text for the job; `None`: the job takes the queue's turn without showing.
    pub job: Option<&'static str>,
    /// The id that `/internal/progress` finds it by.
    pub task: Option<String>,
}

/// The queue. Dropping it, or [`Jobs::shut_down`], ends its thread after the running job.
pub struct Jobs {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    board: Arc<Board>,
    limit: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Entry>,
    next_number: u64,
    closed: bool,
}

struct Entry {
    number: u64,
    ticket: Ticket,
    /// Answers whether the job succeeded.
    work: Work,
}

impl Jobs {
    /// A queue of at most `limit` waiting jobs with its thread.
    ///
    /// # Panics
    /// When the operating system refuses the thread.
    #[must_use]
    pub fn start(limit: usize, terminal_bars: bool) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            board: Arc::new(Board::new(terminal_bars)),
            limit,
        });
        let for_worker = Arc::clone(&shared);
        let worker = std::thread::Builder::new()
            .name("generation".to_owned())
            .spawn(move || carry_out(&for_worker))
            .expect("the system has room for one more thread");
        Self {
            shared,
            worker: Mutex::new(Some(worker)),
        }
    }

    /// The state that progress is read from.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.shared.board
    }

    /// Carries out `work` when its turn comes. A caller who stops waiting frees the place; once the job
    /// runs, it runs to its end.
    ///
    /// # Errors
    /// When the queue is full or closed, or the job panicked.
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
            Err(_) => Err(JobError::Panicked),
        }
    }

    /// How many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().waiting.len()
    }

    /// Refuses everything that waits or comes later. The running job goes on.
    pub fn close(&self) {
        let refused = {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        for entry in &refused {
            if let Some(task) = &entry.ticket.task {
                self.shared.board.remove_task(task);
            }
        }
        drop(refused);
        self.shared.changed.notify_all();
    }

    /// [`Jobs::close`], then waits for the running job.
    pub fn shut_down(&self) {
        self.close();
        if let Some(worker) = self.worker.lock().take() {
            let _ = worker.join();
        }
    }

    fn enqueue(&self, ticket: Ticket, work: Work) -> Result<u64, JobError> {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return Err(JobError::ShuttingDown);
        }
        if queue.waiting.len() >= self.shared.limit {
            return Err(JobError::QueueFull {
                waiting: queue.waiting.len(),
            });
        }
        let number = queue.next_number;
        queue.next_number += 1;
        if let Some(task) = &ticket.task {
            self.shared.board.add_task(task);
        }
        queue.waiting.push_back(Entry {
            number,
            ticket,
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
        if let Some(entry) = found.and_then(|index| queue.waiting.remove(index)) {
            drop(queue);
            if let Some(task) = &entry.ticket.task {
                self.shared.board.remove_task(task);
            }
        }
    }
}

/// A job, carried out on the queue's thread.
type Work = Box<dyn FnOnce(&Board) -> Done + Send>;

/// A job that was carried out, its answer not yet given.
struct Done {
    succeeded: bool,
    answer: Box<dyn FnOnce() + Send>,
}

fn carry_out(shared: &Shared) {
    while let Some(entry) = next_entry(shared) {
        let board = &*shared.board;
        let shown = entry.ticket.job.is_some();
        if let Some(job) = entry.ticket.job {
            board.begin(job, entry.ticket.task.as_deref());
        }
        let work = entry.work;
        let done = catch_unwind(AssertUnwindSafe(|| work(board)))
            .inspect_err(|panic| {
                tracing::error!(message = panic_text(panic.as_ref()), "a job panicked");
            })
            .ok();
        // The board is idle before the caller hears of the end: clients poll for that right after.
        if shown {
            board.end(done.as_ref().is_some_and(|done| done.succeeded));
        }
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

fn next_entry(shared: &Shared) -> Option<Entry> {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(entry) = queue.waiting.pop_front() {
            return Some(entry);
        }
        if queue.closed {
            return None;
        }
        shared.changed.wait(&mut queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::sync::mpsc;

    fn ticket(task: &str) -> Ticket {
        Ticket {
            job: Some("scripts_txt2img"),
            task: Some(task.to_owned()),
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
        let jobs = Arc::new(Jobs::start(10, false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (hold, held) = mpsc::channel::<()>();
        runtime().block_on(async {
            let first = {
                let jobs = Arc::clone(&jobs);
                tokio::spawn(async move { jobs.run(ticket("first"), move |_| held.recv()).await })
            };
            while !jobs
                .board()
                .task_progress(Some("first"), PREVIEW, -1, false)
                .active
            {
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
            assert_eq!(jobs.board().pending_tasks(), ["0", "1", "2"]);
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
        while !jobs
            .board()
            .task_progress(Some("block"), PREVIEW, -1, false)
            .active
        {
            tokio::task::yield_now().await;
        }
        hold
    }

    #[test]
    fn a_caller_who_leaves_frees_the_place() {
        let jobs = Arc::new(Jobs::start(10, false));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            let left = jobs.run(ticket("gone"), |_| Ok::<_, ()>(())).now_or_never();
            assert!(left.is_none(), "the first job is still running");
            assert_eq!(jobs.waiting(), 0);
            assert!(jobs.board().pending_tasks().is_empty());
            drop(hold);
        });
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_too() {
        let jobs = Arc::new(Jobs::start(0, false));
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
        let jobs = Jobs::start(10, false);
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
        let jobs = Arc::new(Jobs::start(10, false));
        runtime().block_on(async {
            let hold = block(&jobs).await;
            let for_task = Arc::clone(&jobs);
            let waiting =
                tokio::spawn(
                    async move { for_task.run(ticket("late"), |_| Ok::<_, ()>(())).await },
                );
            while jobs.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            jobs.close();
            let refused = waiting.await.expect("joined").unwrap_err();
            assert!(matches!(refused, JobError::ShuttingDown));
            drop(hold);
        });
        jobs.shut_down();
    }
}
