//! The source of entropy as its transport sees it: one queue, no features and
//! no configuration space. virtio 1.3 §5.4

use std::sync::{Arc, Mutex};
use std::time::Instant;

use thiserror::Error;

use super::config::RngSpec;
use super::handler::RngHandler;
use super::source::{Source, SourceError};
use super::stats::{REQUEST, RngStatsSnapshot, Stats};
use crate::virtio::bucket::TokenBucket;
use crate::virtio::log_limit::LogLimit;
use crate::virtio::{Device, DeviceError, DeviceType, QueueHandler};

/// A queue that the device does not have.
#[derive(Debug, Error)]
#[error("a source of entropy has one queue, not a number {0}")]
struct NoSuchQueue(u16);

/// A virtio source of entropy. What it holds of the host, and how much the
/// guest may still have, outlives resets.
#[derive(Debug)]
pub struct RngDevice {
    source: Arc<Source>,
    /// The worker's alone while there is one: never contended.
    bucket: Option<Arc<Mutex<TokenBucket>>>,
    stats: Arc<Stats>,
    log: Arc<LogLimit>,
    queue_sizes: [u16; 1],
}

impl RngDevice {
    /// Opens the source of `spec`.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn open(spec: RngSpec) -> Result<Self, SourceError> {
        let source = Source::open(spec.path())?;
        tracing::info!(
            source = source.name(),
            bytes_per_second = spec.rate.map(|rate| rate.per_second),
            "source of entropy opened"
        );
        Ok(RngDevice {
            source: Arc::new(source),
            bucket: spec
                .rate
                .map(|rate| Arc::new(Mutex::new(TokenBucket::new(rate, Instant::now())))),
            stats: Arc::default(),
            log: Arc::default(),
            queue_sizes: [spec.queue_size],
        })
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> RngStatsSnapshot {
        self.stats.counters.snapshot()
    }
}

impl Device for RngDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start_queue(
        &mut self,
        index: u16,
        _features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        if index != 0 {
            return Err(Box::new(NoSuchQueue(index)));
        }
        Ok(Box::new(RngHandler::new(
            Arc::clone(&self.source),
            self.bucket.clone(),
            Arc::clone(&self.stats),
            Arc::clone(&self.log),
        )?))
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.stats.counters.snapshot().list();
        list.extend(self.stats.request_latency.list(&REQUEST));
        list
    }
}
