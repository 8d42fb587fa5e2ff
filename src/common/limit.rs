//! A limit on how many things happen at once. It can change while some of them happen.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The limit. Permits are acquired from its semaphore.
#[derive(Clone, Debug)]
pub struct Limit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    semaphore: Arc<Semaphore>,
    size: AtomicUsize,
    /// Held while the size changes.
    resizing: Mutex<()>,
    resized: Notify,
}

impl Limit {
    /// A limit with this many permits, at most [`Semaphore::MAX_PERMITS`].
    pub fn new(size: usize) -> Limit {
        let size = size.min(Semaphore::MAX_PERMITS);
        Limit(Arc::new(Inner {
            semaphore: Arc::new(Semaphore::new(size)),
            size: AtomicUsize::new(size),
            resizing: Mutex::default(),
            resized: Notify::new(),
        }))
    }

    /// The semaphore, to acquire permits from.
    pub fn semaphore(&self) -> &Arc<Semaphore> {
        &self.0.semaphore
    }

    /// The current size.
    pub fn size(&self) -> usize {
        self.0.size.load(Ordering::Relaxed)
    }

    /// Waits for permits: `wanted`, or all of them if the limit is smaller. May be cancelled.
    pub async fn acquire(&self, wanted: usize) -> Option<OwnedSemaphorePermit> {
        loop {
            let resized = self.0.resized.notified();
            let permits = u32::try_from(wanted.min(self.size())).unwrap_or(u32::MAX);
            tokio::select! {
                biased;
                // More than the new size would never be available.
                () = resized => {}
                // The semaphore is never closed.
                permit = self.semaphore().clone().acquire_many_owned(permits) => return permit.ok(),
            }
        }
    }

    /// Changes the size. Permits that are held stay valid. When the limit shrinks, they count against the new size, and
    /// new permits are issued only below it. Must run inside a tokio runtime.
    pub fn resize(&self, size: usize) {
        let size = size.min(Semaphore::MAX_PERMITS);
        let _resizing = self.0.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let present = self.0.size.swap(size, Ordering::Relaxed);
        if size >= present {
            self.semaphore().add_permits(size - present);
        } else {
            let surplus = present - size;
            let held = surplus - self.semaphore().forget_permits(surplus);
            let semaphore = self.semaphore().clone();
            if held > 0 {
                tokio::spawn(async move {
                    // One waiter for all of them, because each waiter queues behind those that came before it.
                    let mut held = held;
                    while held > 0 {
                        let chunk = u32::try_from(held).unwrap_or(u32::MAX);
                        // The semaphore is never closed.
                        let Ok(permits) = semaphore.acquire_many(chunk).await else { return };
                        permits.forget();
                        held -= chunk as usize;
                    }
                });
            }
        }
        self.0.resized.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_smaller_limit_counts_permits_that_are_held() {
        let limit = Limit::new(3);
        let held = limit.semaphore().clone().acquire_many_owned(3).await.expect("open");
        limit.resize(1);
        tokio::task::yield_now().await;
        drop(held);
        tokio::task::yield_now().await;
        assert_eq!((limit.size(), limit.semaphore().available_permits()), (1, 1));
        limit.resize(4);
        assert_eq!(limit.semaphore().available_permits(), 4);
    }

    #[tokio::test]
    async fn a_smaller_limit_is_reached_although_others_wait() {
        let limit = Limit::new(4);
        let held = limit.acquire(4).await.expect("open");
        let mut waiting: Vec<_> = (0..8).map(|_| Box::pin(limit.semaphore().clone().acquire_owned())).collect();
        for waiting in &mut waiting {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        limit.resize(1);
        tokio::task::yield_now().await;
        drop(held);
        // Those who waited before come first. After them, one permit is left.
        for waiting in waiting {
            drop(waiting.await.expect("open"));
        }
        tokio::task::yield_now().await;
        assert_eq!(limit.semaphore().available_permits(), 1);
    }

    #[tokio::test]
    async fn who_waits_for_more_than_the_new_size_gets_all_of_it() {
        let limit = Limit::new(16);
        let held = limit.acquire(16).await.expect("open");
        let mut waiting = std::pin::pin!(limit.acquire(16));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        limit.resize(4);
        drop(held);
        assert_eq!(waiting.await.expect("open").num_permits(), 4);
    }
}
