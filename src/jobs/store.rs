//! Jobs that outlive the process: their records in an embedded database, bodies and results in files.
//!
//! A record is committed before its job is promised to anybody. Files are written beside their place,
//! flushed and renamed, so a crash leaves a whole file or none. What was queued or running when the process
//! ended is found again by [`Store::unfinished`].

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

/// Record (JSON) by id.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// Id by client and idempotency key.
const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("idempotency_keys");

/// A job that was running when the process ended is tried so often in all.
pub const ATTEMPT_LIMIT: u32 = 5;

/// Why a job cannot be kept or found again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the jobs of {path} cannot be opened: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("the database of jobs failed: {0}")]
    Database(String),
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the record of a job cannot be read: {0}")]
    Record(#[from] serde_json::Error),
}

/// Where a kept job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptState {
    Queued,
    Running,
    Done,
    Failed,
    /// It never ran, or was interrupted; then the result holds what it had.
    Cancelled,
}

impl KeptState {
    /// Whether nothing will happen to the job any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// Where the end of a job is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub url: String,
    /// It was told, or given up.
    pub settled: bool,
}

/// What is known of a kept job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    /// The route of the body, for example `txt2img`.
    pub kind: String,
    pub client: String,
    pub state: KeptState,
    /// How often it began.
    pub attempts: u32,
    /// The place in the order of arrival.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// Status and body of the answer to a job that failed.
    pub error: Option<(u16, serde_json::Value)>,
    pub has_result: bool,
    pub idempotency_key: Option<String>,
    /// SHA-256 of the body, to tell a repeated request from another one with the same key.
    pub body_sha256: String,
    pub webhook: Option<Webhook>,
}

impl Record {
    /// A job that waits from now on.
    #[must_use]
    pub fn queued(id: String, kind: &str, client: &str, body_sha256: String) -> Self {
        Self {
            id,
            kind: kind.to_owned(),
            client: client.to_owned(),
            state: KeptState::Queued,
            attempts: 0,
            sequence: 0,
            created_ms: now_ms(),
            started_ms: None,
            ended_ms: None,
            error: None,
            has_result: false,
            idempotency_key: None,
            body_sha256,
            webhook: None,
        }
    }

    fn key(&self) -> Option<String> {
        let key = self.idempotency_key.as_ref()?;
        Some(format!("{}\0{key}", self.client))
    }
}

/// What [`Store::insert`] met.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    New,
    /// The client used this idempotency key before.
    Repeated(Box<Record>),
    /// Another job has this id.
    Taken,
}

/// The kept jobs of one data folder.
#[derive(Debug)]
pub struct Store {
    database: Database,
    folder: PathBuf,
    next_sequence: Mutex<u64>,
}

impl Store {
    /// Opens the jobs of `folder`, which is created where it is missing. Files without a record, which a
    /// crash may leave, are removed.
    ///
    /// # Errors
    /// When the folder cannot be written or another process has the jobs open.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        fs_err::create_dir_all(folder).map_err(|source| StoreError::File {
            path: folder.to_owned(),
            source,
        })?;
        let path = folder.join("jobs.redb");
        let database = Database::create(&path).map_err(|error| StoreError::Open {
            path,
            reason: error.to_string(),
        })?;
        let transaction = database.begin_write().map_err(database_error)?;
        transaction.open_table(RECORDS).map_err(database_error)?;
        transaction.open_table(KEYS).map_err(database_error)?;
        transaction.commit().map_err(database_error)?;
        let store = Self {
            database,
            folder: folder.to_owned(),
            next_sequence: Mutex::new(0),
        };
        let records = store.list()?;
        let last = records.iter().map(|record| record.sequence).max();
        *store.next_sequence.lock() = last.map_or(0, |last| last + 1);
        store.remove_orphans(&records);
        Ok(store)
    }

    /// Keeps a job with its body. The body is on disk before the record is.
    ///
    /// # Errors
    /// When it cannot be written; then nothing is kept.
    pub fn insert(&self, mut record: Record, body: &[u8]) -> Result<Inserted, StoreError> {
        let mut next_sequence = self.next_sequence.lock();
        let transaction = self.database.begin_write().map_err(database_error)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(database_error)?;
            let mut keys = transaction.open_table(KEYS).map_err(database_error)?;
            let known = match record.key() {
                Some(key) => keys
                    .get(key.as_str())
                    .map_err(database_error)?
                    .map(|id| id.value().to_owned()),
                None => None,
            };
            if let Some(id) = known
                && let Some(bytes) = records.get(id.as_str()).map_err(database_error)?
            {
                let known = serde_json::from_slice(bytes.value())?;
                return Ok(Inserted::Repeated(Box::new(known)));
            }
            if records
                .get(record.id.as_str())
                .map_err(database_error)?
                .is_some()
            {
                return Ok(Inserted::Taken);
            }
            record.sequence = *next_sequence;
            write_whole(&self.body_path(&record.id), body)?;
            let bytes = serde_json::to_vec(&record)?;
            records
                .insert(record.id.as_str(), bytes.as_slice())
                .map_err(database_error)?;
            if let Some(key) = record.key() {
                keys.insert(key.as_str(), record.id.as_str())
                    .map_err(database_error)?;
            }
        }
        transaction.commit().map_err(database_error)?;
        *next_sequence += 1;
        Ok(Inserted::New)
    }

    /// Changes a record and answers it as it is then; `None`: there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Record>, StoreError> {
        let transaction = self.database.begin_write().map_err(database_error)?;
        let record = {
            let mut records = transaction.open_table(RECORDS).map_err(database_error)?;
            let found = records
                .get(id)
                .map_err(database_error)?
                .map(|bytes| serde_json::from_slice::<Record>(bytes.value()))
                .transpose()?;
            let Some(mut record) = found else {
                return Ok(None);
            };
            change(&mut record);
            let bytes = serde_json::to_vec(&record)?;
            records
                .insert(id, bytes.as_slice())
                .map_err(database_error)?;
            record
        };
        transaction.commit().map_err(database_error)?;
        Ok(Some(record))
    }

    /// The record of a job.
    ///
    /// # Errors
    /// When the database fails.
    pub fn get(&self, id: &str) -> Result<Option<Record>, StoreError> {
        let transaction = self.database.begin_read().map_err(database_error)?;
        let records = transaction.open_table(RECORDS).map_err(database_error)?;
        let bytes = records.get(id).map_err(database_error)?;
        let record = bytes.map(|bytes| serde_json::from_slice(bytes.value()));
        Ok(record.transpose()?)
    }

    /// Every record, in the order of arrival.
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self) -> Result<Vec<Record>, StoreError> {
        let transaction = self.database.begin_read().map_err(database_error)?;
        let records = transaction.open_table(RECORDS).map_err(database_error)?;
        let mut list = Vec::new();
        for entry in records.iter().map_err(database_error)? {
            let (_, bytes) = entry.map_err(database_error)?;
            list.push(serde_json::from_slice::<Record>(bytes.value())?);
        }
        list.sort_by_key(|record| record.sequence);
        Ok(list)
    }

    /// Jobs that were queued or running when the process ended, in the order of arrival.
    ///
    /// # Errors
    /// When the database fails.
    pub fn unfinished(&self) -> Result<Vec<Record>, StoreError> {
        let mut list = self.list()?;
        list.retain(|record| !record.state.is_final());
        Ok(list)
    }

    /// The body that a job was submitted with.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn body(&self, id: &str) -> Result<Vec<u8>, StoreError> {
        read_whole(&self.body_path(id))
    }

    /// Writes the answer of a job; [`Store::update`] makes it known after.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_result(&self, id: &str, answer: &[u8]) -> Result<(), StoreError> {
        write_whole(&self.result_path(id), answer)
    }

    /// The answer of a job.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn result(&self, id: &str) -> Result<Vec<u8>, StoreError> {
        read_whole(&self.result_path(id))
    }

    /// Takes a job back that was never promised to anybody.
    ///
    /// # Errors
    /// When the database fails.
    pub fn remove(&self, id: &str) -> Result<(), StoreError> {
        if let Some(record) = self.get(id)? {
            self.remove_all(&[record])?;
        }
        Ok(())
    }

    /// The body of a job that ended is not needed any more.
    pub fn discard_body(&self, id: &str) {
        remove(&self.body_path(id));
    }

    /// Forgets jobs that ended more than `seconds` ago and whose webhooks are settled.
    ///
    /// # Errors
    /// When the database fails.
    pub fn forget_older_than(&self, seconds: u64) -> Result<usize, StoreError> {
        let before = now_ms().saturating_sub(seconds.saturating_mul(1000));
        let mut old = self.list()?;
        old.retain(|record| {
            record.ended_ms.is_some_and(|ended| ended <= before)
                && record.webhook.as_ref().is_none_or(|hook| hook.settled)
        });
        if !old.is_empty() {
            self.remove_all(&old)?;
        }
        Ok(old.len())
    }

    fn remove_all(&self, old: &[Record]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(database_error)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(database_error)?;
            let mut keys = transaction.open_table(KEYS).map_err(database_error)?;
            for record in old {
                records.remove(record.id.as_str()).map_err(database_error)?;
                if let Some(key) = record.key() {
                    keys.remove(key.as_str()).map_err(database_error)?;
                }
            }
        }
        transaction.commit().map_err(database_error)?;
        for record in old {
            remove(&self.body_path(&record.id));
            remove(&self.result_path(&record.id));
        }
        Ok(())
    }

    fn body_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{}.body.json", file_stem(id)))
    }

    fn result_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{}.result.json", file_stem(id)))
    }

    fn remove_orphans(&self, records: &[Record]) {
        let known: std::collections::HashSet<PathBuf> = records
            .iter()
            .flat_map(|record| [self.body_path(&record.id), self.result_path(&record.id)])
            .collect();
        let Ok(entries) = fs_err::read_dir(&self.folder) else {
            return;
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = path.to_string_lossy();
            let ours = name.ends_with(".json") || name.ends_with(".part");
            if ours && !known.contains(&path) {
                remove(&path);
            }
        }
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Ids come from clients: only their digest becomes a file name.
fn file_stem(id: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut stem = format!("{:x}", Sha256::digest(id.as_bytes()));
    stem.truncate(32);
    stem
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    use std::io::Write as _;
    let part = path.with_extension("part");
    let written = fs_err::File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(&part, path)
    });
    written.map_err(|source| StoreError::File {
        path: path.to_owned(),
        source,
    })
}

fn read_whole(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs_err::read(path).map_err(|source| StoreError::File {
        path: path.to_owned(),
        source,
    })
}

fn remove(path: &Path) {
    if let Err(error) = fs_err::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "a file of an old job stays");
    }
}

fn database_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Database(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, key: Option<&str>) -> Record {
        Record {
            idempotency_key: key.map(str::to_owned),
            ..Record::queued(id.to_owned(), "txt2img", "somebody", "abc".to_owned())
        }
    }

    #[test]
    fn jobs_are_found_again_after_a_restart_in_their_order() {
        let folder = tempfile::tempdir().expect("a folder");
        {
            let store = Store::open(folder.path()).expect("opened");
            for id in ["b", "a", "c"] {
                assert_eq!(
                    store.insert(record(id, None), id.as_bytes()).expect("kept"),
                    Inserted::New
                );
            }
            store.write_result("b", b"{}").expect("written");
            store
                .update("b", |record| {
                    record.state = KeptState::Done;
                    record.has_result = true;
                })
                .expect("updated");
            store
                .update("a", |record| record.state = KeptState::Running)
                .expect("updated");
        }
        let store = Store::open(folder.path()).expect("opened again");
        let unfinished = store.unfinished().expect("read");
        let ids: Vec<&str> = unfinished.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert_eq!(store.body("c").expect("its body"), b"c");
        assert_eq!(store.result("b").expect("its result"), b"{}");
    }

    #[test]
    fn an_idempotency_key_finds_the_first_job_of_the_same_client_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("opened");
        assert_eq!(
            store.insert(record("a", Some("k")), b"").expect("kept"),
            Inserted::New
        );
        let Inserted::Repeated(known) = store.insert(record("b", Some("k")), b"").expect("asked")
        else {
            panic!("the key is known");
        };
        assert_eq!(known.id, "a");
        let other = Record {
            client: "another".to_owned(),
            ..record("c", Some("k"))
        };
        assert_eq!(store.insert(other, b"").expect("kept"), Inserted::New);
        assert_eq!(
            store.insert(record("a", None), b"").expect("asked"),
            Inserted::Taken
        );
    }

    #[test]
    fn old_results_go_with_their_files_and_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("opened");
        store.insert(record("a", Some("k")), b"body").expect("kept");
        store.write_result("a", b"answer").expect("written");
        store
            .update("a", |record| {
                record.state = KeptState::Done;
                record.ended_ms = Some(now_ms());
            })
            .expect("updated");
        assert_eq!(store.forget_older_than(3600).expect("swept"), 0);
        assert_eq!(store.forget_older_than(0).expect("swept"), 1);
        assert!(store.get("a").expect("read").is_none());
        assert!(store.result("a").is_err() && store.body("a").is_err());
        assert_eq!(
            store.insert(record("b", Some("k")), b"").expect("kept"),
            Inserted::New
        );
    }

    #[test]
    fn files_that_a_crash_left_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(Store::open(folder.path()).expect("opened"));
        for name in ["x.body.json", "x.result.part"] {
            fs_err::write(folder.path().join(name), b"half").expect("written");
        }
        drop(Store::open(folder.path()).expect("opened again"));
        let left = fs_err::read_dir(folder.path()).expect("read").count();
        assert_eq!(left, 1, "only the database stays");
    }

    #[test]
    fn ids_never_become_paths() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("opened");
        store
            .insert(record("../../escape", None), b"x")
            .expect("kept");
        assert_eq!(store.body("../../escape").expect("read"), b"x");
        assert!(!folder.path().join("../../escape.body.json").exists());
    }
}
