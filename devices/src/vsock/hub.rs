//! What the workers of a device share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::VsockSpec;
use super::stats::Stats;
use super::table::Table;
use crate::unix::{ListenError, Listener};
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;
use crate::virtio::log_limit::LogLimit;

/// See the module.
#[derive(Debug)]
pub(super) struct Hub {
    pub spec: VsockSpec,
    pub listener: Listener,
    pub stats: Arc<Stats>,
    /// Troubles with clients of the host, with its listeners, and with replies.
    pub client_log: LogLimit,
    pub connect_log: LogLimit,
    pub reply_log: LogLimit,
    /// Locked to look at and to note, never while bytes are copied.
    table: Mutex<Table>,
    /// For the worker of the receive queue, which reads the host's sockets.
    reader: Bell,
    /// For the worker of the transmit queue, which writes them.
    writer: Bell,
    /// For the worker of the event queue.
    event: Bell,
}

/// Clients that wait in the kernel's queue.
const BACKLOG: i32 = 64;

impl Hub {
    /// Listens for the host's clients.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(spec: VsockSpec) -> Result<Self, ListenError> {
        let listener = Listener::new(&spec.path, BACKLOG)?;
        let bell = || {
            Bell::new().map_err(|source| ListenError::Listen {
                path: spec.path.clone(),
                source,
            })
        };
        Ok(Hub {
            reader: bell()?,
            writer: bell()?,
            event: bell()?,
            table: Mutex::new(Table::new(spec.cid, spec.connections.into(), spec.buffer)),
            stats: Arc::default(),
            client_log: LogLimit::default(),
            connect_log: LogLimit::default(),
            reply_log: LogLimit::default(),
            listener,
            spec,
        })
    }

    /// All connections have ended, and the guest is to be told.
    pub fn lose(&self) {
        self.lock().clear();
        self.stir();
        self.event.ring();
    }

    pub fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what was lost, and has the reader look if it has something to
    /// do. The writer calls it after it was at the table.
    pub fn stir(&self) {
        if self.take_stirred() {
            self.reader.ring();
        }
    }

    /// Counts what was lost; true if the reader has something to do.
    pub fn take_stirred(&self) -> bool {
        let (stirred, (dropped, resets)) = {
            let mut table = self.lock();
            (table.take_stirred(), table.take_losses())
        };
        add(&self.stats.counters.dropped_bytes, dropped);
        add(&self.stats.counters.resets, resets);
        stirred
    }

    /// The bell of the receive queue's worker.
    pub fn reader(&self) -> &Bell {
        &self.reader
    }

    /// The bell of the transmit queue's worker.
    pub fn writer(&self) -> &Bell {
        &self.writer
    }

    /// The bell of the event queue's worker: the guest is to be told that all
    /// its connections have ended.
    pub fn event(&self) -> &Bell {
        &self.event
    }

    /// Where the socket for a port of the host is.
    pub fn port_path(&self, port: u32) -> PathBuf {
        self.spec.port_path(port)
    }
}
