//! The console as its transport sees it: features, configuration space,
//! queues; and what a host can do with it while it runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::config::ConsoleSpec;
use super::endpoint::EndpointError;
use super::input::Input;
use super::output::Output;
use super::port::Port;
use super::size::Size;
use super::stats::ConsoleStats;
use crate::virtio::{Device, DeviceError, DeviceType, QueueHandler};

/// The window has a size. virtio 1.3 §5.3.3
const F_SIZE: u64 = 1 << 0;
/// Characters can be written without a queue. virtio 1.3 §5.3.3
const F_EMERG_WRITE: u64 = 1 << 2;

/// virtio 1.3 §5.3.4
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
struct ConfigSpace {
    cols: U16,
    rows: U16,
    max_nr_ports: U32,
    emerg_wr: U32,
}

/// Offset of `cols` in the configuration space.
const COLS: u64 = 0;
/// Offset of `emerg_wr`.
const EMERG_WR: u64 = 8;

/// What a queue is for. virtio 1.3 §5.3.2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Brings input to the guest, for the port of this number.
    Receive(usize),
    /// Brings output from the guest.
    Transmit(usize),
}

impl Role {
    /// The first two queues are those of port 0. With several ports there are
    /// two for control next, and then two for each further port.
    fn of(index: u16) -> Option<Role> {
        match index {
            0 => Some(Role::Receive(0)),
            1 => Some(Role::Transmit(0)),
            _ => None,
        }
    }
}

/// A queue that the console does not have.
#[derive(Debug, Error)]
#[error("the console has two queues, not a number {0}")]
struct NoSuchQueue(u16);

/// A virtio console. Its host's end stays as it is over resets.
#[derive(Debug)]
pub struct ConsoleDevice {
    ports: Vec<Arc<Port>>,
    queue_sizes: Vec<u16>,
    features: u64,
    handle: ConsoleHandle,
}

impl ConsoleDevice {
    /// Makes the terminal, the socket or the file of `spec`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn open(spec: ConsoleSpec) -> Result<Self, EndpointError> {
        let port = Arc::new(Port::open(&spec)?);
        let handle = ConsoleHandle {
            path: port.endpoint.path().to_owned(),
            port: Arc::downgrade(&port),
            stats: Arc::clone(&port.stats),
        };
        tracing::info!(
            path = %handle.path.display(),
            link = spec.path().map(|path| path.display().to_string()),
            "console opened"
        );
        let mut features = 0;
        if spec.size.is_some() {
            features |= F_SIZE;
        }
        // such writes are made on the thread that all devices of the guest
        // share: it must not wait for a disk
        if port.endpoint.is_prompt() {
            features |= F_EMERG_WRITE;
        }
        Ok(ConsoleDevice {
            ports: vec![port],
            queue_sizes: vec![spec.queue_size; 2],
            features,
            handle,
        })
    }

    /// What a host can do with it while it runs.
    pub fn handle(&self) -> &ConsoleHandle {
        &self.handle
    }

    /// What it has done so far.
    pub fn stats(&self) -> &Arc<ConsoleStats> {
        self.handle.stats()
    }

    fn config_space(&self) -> ConfigSpace {
        let size = self.ports.first().and_then(|port| port.size());
        ConfigSpace {
            cols: size.map_or(0, |size| size.cols).into(),
            rows: size.map_or(0, |size| size.rows).into(),
            max_nr_ports: 1.into(),
            emerg_wr: 0.into(),
        }
    }
}

impl Device for ConsoleDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // once for both: columns and rows are read one after the other
        if offset == COLS
            && let Some(port) = self.ports.first()
            && port.look_at_size()
        {
            port.bells.input.ring();
        }
        let config = self.config_space();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.as_bytes().get(at..).unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> bool {
        let offered = self.features & F_EMERG_WRITE != 0;
        // a driver may do so before it has negotiated anything.
        // virtio 1.3 §5.3.4
        match (offset, data, self.ports.first()) {
            (EMERG_WR, &[character, _, _, _], Some(port)) if offered => {
                port.emergency(character);
                true
            }
            _ => false,
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        _features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        let no_such = || Box::new(NoSuchQueue(index));
        let role = Role::of(index).ok_or_else(no_such)?;
        let (Role::Receive(number) | Role::Transmit(number)) = role;
        let port = Arc::clone(self.ports.get(number).ok_or_else(no_such)?);
        Ok(match role {
            Role::Receive(_) => Box::new(Input::new(port)?),
            Role::Transmit(_) => Box::new(Output::new(port)?),
        })
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        self.stats().snapshot().list()
    }

    fn host_path(&self) -> Option<&Path> {
        Some(&self.handle.path)
    }
}

/// A console as its host sees it; clones are the same. It does not keep the
/// console alive.
#[derive(Clone, Debug)]
pub struct ConsoleHandle {
    path: PathBuf,
    port: Weak<Port>,
    stats: Arc<ConsoleStats>,
}

impl ConsoleHandle {
    /// Where a user finds it: the terminal (`/dev/pts/3`, whatever links to
    /// it), the socket or the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The window of whoever looks at the console has another size now, in
    /// characters; 0 is no size. A console whose guest was never told a size
    /// does not tell it of this one either.
    pub fn resize(&self, cols: u16, rows: u16) {
        if cols != 0
            && rows != 0
            && let Some(port) = self.port.upgrade()
        {
            port.resize(Size { cols, rows });
        }
    }

    /// Looks whether the size of the terminal has changed, which is otherwise
    /// found out when something is typed.
    pub fn look_at_size(&self) {
        if let Some(port) = self.port.upgrade()
            && port.look_at_size()
        {
            port.bells.input.ring();
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> &Arc<ConsoleStats> {
        &self.stats
    }
}
