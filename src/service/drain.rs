//! Empties a spool without accepting callbacks: for a volume whose bridge no longer runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{LAST_BATCH, LAST_WRITES, Settings, new_metrics, open_store, start_outputs};
use crate::bridge::{Bridge, Rules};
use crate::common::validation::FieldError;
use crate::dialect::Normalizer;
use crate::store::AWAITS_DEAD_LETTERS;

/// How often to check how much is left.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// The result of a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records that are still in the spool, by output. Those that wait for room among the dead letters have an empty
    /// name.
    pub left: Vec<(String, u64)>,
    /// The outputs in `left` that are not configured.
    pub unknown: BTreeSet<String>,
    /// Dead letters in the store.
    pub dead_letters: u64,
}

/// Waits for the lock of the spool's folder, and publishes everything in it with the outputs of a configuration. Ends
/// when the spool is empty, when only records for outputs that are not configured are left, or at the time-out. Accepts
/// no callbacks. Must run inside a tokio runtime.
///
/// # Errors
/// There is no spool, its folder cannot be used or stays locked, or an output cannot start.
pub async fn drain_spool(settings: Settings, timeout: Option<Duration>) -> Result<Drained, FieldError> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let Some(store) = settings.store else {
        return Err(FieldError {
            key: "spool.enabled".to_owned(),
            message: "is false, so there is no spool to drain".to_owned(),
        });
    };
    let metrics = new_metrics()?;
    // Without a time-out, wait for the lock as long as it takes.
    let lock_until = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(10 * 365 * 86_400));
    let store = open_store(store, Some(lock_until), &metrics).await?;
    let outputs = start_outputs(settings.outputs, &metrics)?;
    let names: BTreeSet<String> = outputs.iter().map(|output| output.name().to_owned()).collect();
    let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
    let rules = Rules::new(normalizer, settings.router, settings.dead_letters, &metrics);
    let stopping = CancellationToken::new();
    let bridge = Bridge::new(rules, outputs, settings.delivery, Some(store), stopping.clone(), metrics.clone());
    let bridge = Arc::new(bridge);
    let mut drain = tokio::spawn(bridge.clone().drain(stopping.clone()));
    let is_known = |output: &str| output == AWAITS_DEAD_LETTERS || names.contains(output);
    let left = loop {
        let left = bridge.backlogs();
        if !left.iter().any(|(output, _)| is_known(output)) || is_over() {
            break left;
        }
        tokio::time::sleep(CHECK_EVERY).await;
    };
    stopping.cancel();
    if tokio::time::timeout(LAST_BATCH, &mut drain).await.is_err() {
        drain.abort();
    }
    let dead_letters = u64::try_from(metrics.dead_letters_stored.get()).unwrap_or(0);
    let _ = tokio::time::timeout(LAST_WRITES, bridge.close()).await;
    let unknown = left.iter().map(|(output, _)| output.clone()).filter(|output| !is_known(output)).collect();
    Ok(Drained { left, unknown, dead_letters })
}
