//! Reads next to the writer.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use super::database::{Access, Database};
use super::error::{FailureKind, StoreError};
use super::record::{DeadLetterRow, Spooled};
use super::shared::Shared;
use super::writer::{Job, Work};

/// Reads the spool and the dead letters with a connection of its own. Every call blocks.
#[derive(Debug)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: Sender<Job>,
    /// The connection, and the generation of its database.
    pub(super) open: Option<(u64, Database)>,
}

impl Reader {
    /// The next records of an output, or of one of its topics; see [`Database::read`].
    ///
    /// # Errors
    /// SQLite's. The writer repairs damage in the background, so that reading again later succeeds.
    pub fn read(
        &mut self,
        output: &str,
        topic: Option<&str>,
        after: i64,
        records: usize,
        bytes: u64,
    ) -> Result<Vec<Spooled>, StoreError> {
        self.with(|database| database.read(output, topic, after, records, bytes))
    }

    /// The dead letters to replay; see [`Database::dead_letters_to_replay`].
    ///
    /// # Errors
    /// Those of [`Reader::read`].
    pub fn dead_letters_to_replay(&mut self, after: i64, limit: usize) -> Result<Vec<DeadLetterRow>, StoreError> {
        self.with(|database| database.dead_letters_to_replay(after, limit))
    }

    fn with<T>(&mut self, read: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        let open = match self.open.take().filter(|(opened, _)| *opened == generation) {
            Some((_, database)) => Ok(database),
            None => {
                let _open = self.shared.swapping.read().unwrap_or_else(PoisonError::into_inner);
                Database::open(&self.shared.folder, Access::Read)
            }
        };
        let result = open.and_then(|database| {
            let found = read(&database)?;
            self.open = Some((generation, database));
            Ok(found)
        });
        if let Err(error) = &result
            && error.kind == FailureKind::Damaged
        {
            let (done, _) = oneshot::channel();
            let _ = self.jobs.send(Job::Work(Work::Repair(generation, error.clone()), done));
        }
        result
    }
}
