//! Work done ahead of time on other threads, and handed over in order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::DataError;
use crate::error::panic_message;

/// Makes item 0, 1, 2, … on a few threads, a few items ahead of the consumer.
///
/// Worker w of N makes items w, w + N, w + 2N, … and has a queue of its own; the consumer takes
/// from one queue after the other. So the order never depends on which thread is faster. As an
/// iterator it has no end, except after an error: a panic in a worker comes out as one.
///
/// Dropping it stops the threads and waits for them.
pub struct Prefetcher<T> {
    lanes: Vec<Lane<T>>,
    /// The lane that holds the next item.
    next_lane: usize,
}

struct Lane<T> {
    items: Receiver<T>,
    worker: JoinHandle<()>,
}

impl<T: Send + 'static> Prefetcher<T> {
    /// Starts with item `first` on `workers` threads, each of which keeps up to `ahead` finished
    /// items waiting.
    ///
    /// # Panics
    ///
    /// If there are no workers.
    pub fn start(
        first: u64,
        workers: usize,
        ahead: usize,
        make: impl Fn(u64) -> T + Send + Sync + 'static,
    ) -> Result<Self, DataError> {
        assert!(workers > 0, "Someone has to make the items. Got workers=0");
        let make = Arc::new(make);
        let mut prefetcher = Self { lanes: Vec::with_capacity(workers), next_lane: 0 };
        for lane in 0..workers as u64 {
            let make = Arc::clone(&make);
            let (sender, items) = sync_channel(ahead);
            let worker = thread::Builder::new()
                .name(format!("prefetch-{lane}"))
                .spawn(move || {
                    // Sending fails once the consumer is gone, which is how a worker learns of it.
                    let mut numbers = (first + lane..).step_by(workers);
                    while numbers.next().is_some_and(|number| sender.send(make(number)).is_ok()) {}
                })
                .map_err(|source| DataError::StartWorker { source })?;
            prefetcher.lanes.push(Lane { items, worker });
        }
        Ok(prefetcher)
    }
}

impl<T> Iterator for Prefetcher<T> {
    type Item = Result<T, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_unless(|| false)
    }
}

impl<T> Prefetcher<T> {
    /// The next item. While it isn't made yet, `is_over` is asked every few milliseconds whether it is still wanted; then
    /// nothing comes.
    pub fn next_unless(&mut self, is_over: impl Fn() -> bool) -> Option<Result<T, DataError>> {
        const ASK_EVERY: Duration = Duration::from_millis(20);
        let lane = self.lanes.get(self.next_lane)?;
        let received = loop {
            match lane.items.recv_timeout(ASK_EVERY) {
                Err(RecvTimeoutError::Timeout) if is_over() => return None,
                Err(RecvTimeoutError::Timeout) => {}
                received => break received,
            }
        };
        match received {
            Ok(item) => {
                self.next_lane = (self.next_lane + 1) % self.lanes.len();
                Some(Ok(item))
            }
            // Only a panic ends a worker while its queue has a reader.
            Err(_) => {
                let failed = self.lanes.swap_remove(self.next_lane);
                self.stop();
                let message = match failed.worker.join() {
                    Err(panic) => panic_message(&*panic),
                    Ok(()) => "it ended early".to_owned(),
                };
                Some(Err(DataError::WorkerPanicked { message }))
            }
        }
    }

    fn stop(&mut self) {
        let (queues, workers): (Vec<_>, Vec<_>) =
            self.lanes.drain(..).map(|lane| (lane.items, lane.worker)).unzip();
        // Frees the workers that wait for room in their queue.
        drop(queues);
        for worker in workers {
            // A panic in a worker whose items nobody waits for any more is of no consequence.
            let _ = worker.join();
        }
    }
}

impl<T> Drop for Prefetcher<T> {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn items_come_in_order_whichever_worker_is_faster() {
        let make = |number: u64| {
            thread::sleep(Duration::from_micros(if number.is_multiple_of(3) { 500 } else { 10 }));
            number * number
        };
        for workers in 1..5 {
            let prefetcher = Prefetcher::start(0, workers, 2, make).unwrap();
            let items: Vec<u64> = prefetcher.take(50).collect::<Result<_, _>>().unwrap();
            assert_eq!(items, (0..50).map(|number| number * number).collect::<Vec<_>>());
        }
    }

    #[test]
    fn it_can_start_anywhere() {
        let prefetcher = Prefetcher::start(41, 3, 1, |number| number).unwrap();
        let items: Vec<u64> = prefetcher.take(4).map(Result::unwrap).collect();
        assert_eq!(items, [41, 42, 43, 44]);
    }

    #[test]
    fn dropping_it_stops_the_workers_which_were_a_bounded_way_ahead() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&made);
        let mut prefetcher = Prefetcher::start(0, 2, 3, move |number| {
            counter.fetch_add(1, Ordering::SeqCst);
            number
        })
        .unwrap();
        prefetcher.next().unwrap().unwrap();
        drop(prefetcher);
        // One item taken, and for each worker three waiting and one in hand.
        let when_dropped = made.load(Ordering::SeqCst);
        assert!(when_dropped <= 1 + 2 * 4, "{when_dropped}");
        // The workers held the other references, and have been waited for.
        assert_eq!(Arc::strong_count(&made), 1);
    }

    #[test]
    fn an_item_that_is_no_longer_wanted_is_not_waited_for() {
        let mut prefetcher;
        // Dropped before it, so that nothing waits for ever where this fails.
        let (let_go, held) = sync_channel::<()>(0);
        let held = std::sync::Mutex::new(held);
        prefetcher = Prefetcher::start(0, 1, 1, move |number| {
            if number == 1 {
                let _ = held.lock().unwrap().recv();
            }
            number
        })
        .unwrap();
        assert_eq!(prefetcher.next().unwrap().unwrap(), 0);
        assert!(prefetcher.next_unless(|| true).is_none());
        // It is still to come.
        drop(let_go);
        assert_eq!(prefetcher.next().unwrap().unwrap(), 1);
    }

    #[test]
    fn a_panic_in_a_worker_is_an_error_and_then_the_end() {
        let mut prefetcher = Prefetcher::start(0, 2, 2, |number| {
            assert!(number != 3, "cannot make item {number}");
            number
        })
        .unwrap();
        let items: Vec<u64> = prefetcher.by_ref().take(3).map(Result::unwrap).collect();
        assert_eq!(items, [0, 1, 2]);
        let error = prefetcher.next().unwrap().unwrap_err();
        assert!(error.to_string().ends_with("panicked: cannot make item 3"), "{error}");
        assert!(prefetcher.next().is_none());
    }
}
