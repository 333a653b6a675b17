//! A queue in use: its rings, its chains and its data path.
//!
//! An [`ActiveQueue`] belongs to one worker thread from the moment the driver
//! is ready until the queue is given back; then its rings are unmapped.
//! Indices, notification suppression and used entries are virtio-queue's;
//! chains are walked by [`chain`], because a malformed chain is an error here
//! and never a short chain.

pub mod chain;
pub mod inflight;
pub mod ring;
#[cfg(test)]
mod tests;
pub mod track;
mod used;

use std::num::Wrapping;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;
use swiotlb::{Dma, Done, Fault, Job, Need, Range, Transfer};
use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::features;
use super::interrupt::Notifier;
pub use chain::{Chain, Descriptor, DescriptorRanges};
use ring::RingMemory;
use track::Tracked;

/// Where the driver has put a queue, as its registers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table, as the guest wrote it.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
}

impl QueueLayout {
    /// Bytes of the descriptor table. virtio 1.3 §2.7
    pub fn desc_len(&self) -> u32 {
        16 * u32::from(self.size)
    }

    /// Bytes of the available ring, `used_event` included.
    pub fn avail_len(&self) -> u32 {
        6 + 2 * u32::from(self.size)
    }

    /// Bytes of the used ring, `avail_event` included.
    pub fn used_len(&self) -> u32 {
        6 + 8 * u32::from(self.size)
    }
}

/// How far a queue has got; plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePosition {
    /// Next entry of the available ring to take.
    pub next_avail: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

/// What breaks a queue until its device is reset.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The size is zero, no power of two or above the queue's limit.
    #[error("queue size {0} is no power of two within the limit")]
    Size(u16),
    /// A ring part does not have the alignment that virtio asks for.
    #[error("{part} at {address:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Its address.
        address: u64,
        /// The alignment it must have, bytes.
        align: u64,
    },
    /// A ring part cannot be reached.
    #[error("{part} cannot be mapped")]
    Ring {
        /// Which part.
        part: &'static str,
        /// Why.
        #[source]
        source: Fault,
    },
    /// The available index is further ahead than the ring is long.
    #[error("available index {index} is {ahead} entries ahead in a ring of {size}")]
    IndexJumped {
        /// The index found.
        index: u16,
        /// How far ahead it is.
        ahead: u16,
        /// The ring's size.
        size: u16,
    },
    /// A chain breaks the rules.
    #[error("chain {head}: {why}")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
        /// Which rule.
        why: chain::ChainError,
    },
    /// An indirect table cannot be read.
    #[error("chain {head}: its indirect table cannot be read")]
    Table {
        /// Index of its first descriptor.
        head: u16,
        /// Why.
        #[source]
        source: Fault,
    },
    /// The device's own layout of a request is broken where no status byte
    /// can tell the driver.
    #[error("chain {head}: {why}")]
    Request {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        why: String,
    },
    /// Not the guest: the process that serves the device broke the rules, or
    /// cannot go on.
    #[error("the back end at {}: {why}", socket.display())]
    BackEnd {
        /// Where it listens.
        socket: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The rings' memory failed.
    #[error("ring access failed: {0}")]
    Access(#[from] virtio_queue::Error),
}

/// The first descriptor of a chain, owned: made by the ring, given up to
/// [`ActiveQueue::push`].
#[derive(Debug)]
pub struct Head {
    index: u16,
    generation: u64,
}

impl Head {
    /// Index of the descriptor.
    pub fn index(&self) -> u16 {
        self.index
    }
}

/// Counters of one queue; written by its worker.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Kicks, by whichever way they came. Kicks that came together count each.
    pub kicks: AtomicU64,
    /// Chains taken.
    pub taken: AtomicU64,
    /// Chains pushed.
    pub pushed: AtomicU64,
    /// Bytes that the device said it wrote.
    pub written: AtomicU64,
}

/// An indirect table, to be fetched.
struct Table {
    /// Whose it is, in the batch.
    at: usize,
    range: Range,
    bytes: Vec<u8>,
}

/// A queue that a worker serves.
pub struct ActiveQueue {
    index: u16,
    ring: Queue,
    memory: RingMemory,
    dma: Dma,
    notifier: Arc<Notifier>,
    stats: Arc<QueueStats>,
    indirect: bool,
    unannounced: bool,
    /// The used index when it was last looked whether to interrupt.
    announced: Wrapping<u16>,
    generation: u64,
    /// Of a queue whose requests in flight are to outlive it.
    tracked: Option<Tracked>,
}

/// Each activation has its own generation, so that a head of an earlier one is
/// never taken for one of this.
static GENERATION: AtomicU64 = AtomicU64::new(0);

impl ActiveQueue {
    /// Maps the rings and takes the queue up at `position`.
    ///
    /// # Errors
    /// A layout that breaks virtio's rules, or rings that cannot be mapped.
    pub fn activate(
        index: u16,
        layout: QueueLayout,
        position: QueuePosition,
        negotiated: u64,
        mut dma: Dma,
        notifier: Arc<Notifier>,
        stats: Arc<QueueStats>,
    ) -> Result<Self, QueueError> {
        check_layout(&layout)?;
        let memory = RingMemory::map(&layout, &mut dma)?;
        let mut ring = Queue::new(layout.size)?;
        ring.try_set_size(layout.size)?;
        ring.try_set_desc_table_address(GuestAddress(layout.desc))?;
        ring.try_set_avail_ring_address(GuestAddress(layout.avail))?;
        ring.try_set_used_ring_address(GuestAddress(layout.used))?;
        ring.set_next_avail(position.next_avail);
        ring.set_next_used(position.next_used);
        ring.set_event_idx(negotiated & features::RING_EVENT_IDX != 0);
        ring.set_ready(true);
        Ok(ActiveQueue {
            index,
            ring,
            memory,
            dma,
            notifier,
            stats,
            indirect: negotiated & features::RING_INDIRECT_DESC != 0,
            unannounced: false,
            announced: Wrapping(position.next_used),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            tracked: None,
        })
    }

    /// Its number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Counts kicks of the guest.
    pub(crate) fn count_kicks(&self, kicks: u64) {
        tally(&self.stats.kicks, kicks);
    }

    /// The guest's memory.
    pub fn dma(&mut self) -> &mut Dma {
        &mut self.dma
    }

    /// Takes up to `max` available chains, fetching all their indirect tables
    /// as one batch, each once and whole.
    ///
    /// # Errors
    /// Any malformed chain or index breaks the queue.
    pub fn take(&mut self, max: usize) -> Result<Vec<Chain>, QueueError> {
        if let Some(left) = self.left_behind(max) {
            return self.chains(&left);
        }
        let index = self.ring.avail_idx(&self.memory, Ordering::Acquire)?;
        let next = Wrapping(self.ring.next_avail());
        let ahead = (index - next).0;
        let size = self.ring.size();
        if ahead > size {
            return Err(QueueError::IndexJumped {
                index: index.0,
                ahead,
                size,
            });
        }
        let count = usize::from(ahead).min(max);
        let mut heads = Vec::with_capacity(count);
        for i in (0..count).map_while(|i| u16::try_from(i).ok()) {
            let slot = (next + Wrapping(i)).0 % size;
            let entry = self.ring.avail_ring() + 4 + 2 * u64::from(slot);
            let head: u16 = self
                .memory
                .read_obj(GuestAddress(entry))
                .map_err(virtio_queue::Error::GuestMemory)?;
            heads.push(u16::from_le(head));
        }
        let chains = self.chains(&heads)?;
        self.note_taken(&heads);
        let taken = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        self.ring.set_next_avail((next + Wrapping(taken)).0);
        tally(&self.stats.taken, u64::from(taken));
        Ok(chains)
    }

    /// Whether there is something to take; also if that cannot be told, which
    /// [`ActiveQueue::take`] then says.
    pub(crate) fn is_available(&self) -> bool {
        let index = self.ring.avail_idx(&self.memory, Ordering::Acquire);
        index.map_or(true, |index| index.0 != self.ring.next_avail())
    }

    /// The chains of `heads`.
    fn chains(&mut self, heads: &[u16]) -> Result<Vec<Chain>, QueueError> {
        let mut chains = Vec::with_capacity(heads.len());
        let mut tables = Vec::new();
        let (ring, size) = (self.memory.descriptors(), self.ring.size());
        for (at, &index) in heads.iter().enumerate() {
            let generation = self.generation;
            let mut chain = Chain::of(Head { index, generation });
            let table = chain.walk_ring(&ring, size, self.indirect);
            if let Some(range) = table.map_err(|why| QueueError::Chain { head: index, why })? {
                tables.push(Table {
                    at,
                    range,
                    bytes: vec![0; range.len() as usize],
                });
            }
            chains.push(chain);
        }
        self.add_tables(&mut chains, tables)?;
        Ok(chains)
    }

    /// Fetches indirect tables, and completes their chains.
    fn add_tables(
        &mut self,
        chains: &mut [Chain],
        mut tables: Vec<Table>,
    ) -> Result<(), QueueError> {
        if tables.is_empty() {
            return Ok(());
        }
        let mut fetches: Vec<_> = tables
            .iter_mut()
            .map(|table| Transfer::from_guest([table.range], &mut table.bytes))
            .collect();
        self.dma.transfer(&mut fetches);
        let fetched: Vec<_> = fetches.into_iter().map(|fetch| fetch.result).collect();
        for (table, fetched) in tables.into_iter().zip(fetched) {
            let Some(chain) = chains.get_mut(table.at) else {
                continue;
            };
            let head = chain.head.index;
            fetched.map_err(|source| QueueError::Table { head, source })?;
            let walked = chain.walk_table(&table.bytes);
            walked.map_err(|why| QueueError::Chain { head, why })?;
        }
        Ok(())
    }

    /// Shows a finished request to the guest: `written` bytes from the start of
    /// its device-writable part. Nothing of it is lent any more: `done` says so.
    ///
    /// # Errors
    /// The used ring's memory failed.
    pub fn push<T: Into<Head>>(&mut self, done: Done<T>, written: u32) -> Result<(), QueueError> {
        let head: Head = done.into_token().into();
        if head.generation != self.generation {
            // completed after its queue was given back: the guest has forgotten it
            tracing::debug!(
                head = head.index,
                "completion of an earlier activation dropped"
            );
            return Ok(());
        }
        self.note_completing(head.index);
        self.ring.add_used(&self.memory, head.index, written)?;
        self.note_completed(head.index);
        self.count_push(written);
        Ok(())
    }

    /// Shows a request for which nothing was ever lent: its bytes went through
    /// [`Dma::transfer`]. Whoever still has the head has made no [`Job`] of it.
    ///
    /// # Errors
    /// As [`ActiveQueue::push`].
    pub fn push_copied(&mut self, head: Head, written: u32) -> Result<(), QueueError> {
        let job = Job {
            token: head,
            ranges: SmallVec::new(),
        };
        let mut flights = Vec::new();
        for mapped in self.dma.map([job], Need::COPY) {
            match mapped {
                Ok(mapped) => flights.push(mapped.submit()),
                Err(rejected) => {
                    let (done, _) = self.dma.reject(rejected);
                    self.push(done, written)?;
                }
            }
        }
        for done in self.dma.finish(&mut flights) {
            self.push(done, written)?;
        }
        Ok(())
    }

    /// The device's configuration space has changed: tells the guest.
    pub fn config_changed(&self) {
        self.notifier.config_changed();
    }

    /// Asks the guest not to kick while the worker looks at the ring anyway.
    ///
    /// # Errors
    /// The rings' memory failed.
    pub fn kicks_off(&mut self) -> Result<(), QueueError> {
        Ok(self.ring.disable_notification(&self.memory)?)
    }

    /// Asks for kicks again. True if something became available meanwhile, so
    /// that no kick may come for it.
    ///
    /// # Errors
    /// The rings' memory failed.
    pub fn kicks_on(&mut self) -> Result<bool, QueueError> {
        Ok(self.ring.enable_notification(&self.memory)?)
    }

    /// Gives the queue back: unmaps its rings and tells how far it got.
    pub fn give_back(mut self) -> QueuePosition {
        self.untake();
        QueuePosition {
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }
}

/// Adds to a counter of a queue's, which its worker alone writes: no other
/// processor has to be asked for that.
fn tally(counter: &AtomicU64, n: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(n), Ordering::Relaxed);
}

/// virtio 1.3 §2.7: sizes and alignments.
pub fn check_layout(layout: &QueueLayout) -> Result<(), QueueError> {
    if !layout.size.is_power_of_two() || layout.size > 32768 {
        return Err(QueueError::Size(layout.size));
    }
    let parts = [
        ("descriptor table", layout.desc, 16),
        ("available ring", layout.avail, 2),
        ("used ring", layout.used, 4),
    ];
    for (part, address, align) in parts {
        if address % align != 0 {
            return Err(QueueError::Misaligned {
                part,
                address,
                align,
            });
        }
    }
    Ok(())
}

impl std::fmt::Debug for ActiveQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActiveQueue")
            .field("index", &self.index)
            .field("size", &self.ring.size())
            .finish_non_exhaustive()
    }
}
