//! The console as its transport sees it: features, configuration space,
//! queues; and what a host can do with it while it runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::config::{ConsoleSpec, PortSpec};
use super::control::{Board, Receiver, Sender};
use super::endpoint::EndpointError;
use super::input::Input;
use super::output::Output;
use super::port::Port;
use super::size::Size;
use super::stats::{ConsoleStats, ControlStats};
use crate::virtio::{Device, DeviceError, DeviceType, HostPlace, QueueHandler};

/// The window has a size. virtio 1.3 §5.3.3
const F_SIZE: u64 = 1 << 0;
/// There is more than one port. virtio 1.3 §5.3.3
const F_MULTIPORT: u64 = 1 << 1;
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
    /// Tells the driver of ports.
    Tell,
    /// Is told of ports by the driver.
    Hear,
}

impl Role {
    /// The first two queues are those of port 0. With several ports there are
    /// two for control next, and then two for each further port.
    fn of(index: u16) -> Role {
        let port = usize::from(index / 2);
        match (port, index % 2) {
            (0, 0) => Role::Receive(0),
            (0, _) => Role::Transmit(0),
            (1, 0) => Role::Tell,
            (1, _) => Role::Hear,
            (pair, 0) => Role::Receive(pair.saturating_sub(1)),
            (pair, _) => Role::Transmit(pair.saturating_sub(1)),
        }
    }
}

/// A queue that the console does not have.
#[derive(Debug, Error)]
#[error("the console has {queues} queues, not a number {index}")]
struct NoSuchQueue {
    index: u16,
    queues: usize,
}

/// What a console of several ports has besides.
#[derive(Debug, Clone)]
struct Control {
    board: Arc<Board>,
    stats: Arc<ControlStats>,
}

impl Control {
    fn new() -> Result<Self, EndpointError> {
        Ok(Control {
            board: Arc::new(Board::new().map_err(EndpointError::Means)?),
            stats: Arc::default(),
        })
    }
}

/// A virtio console. Its host's ends stay as they are over resets.
#[derive(Debug)]
pub struct ConsoleDevice {
    ports: Vec<Arc<Port>>,
    control: Option<Control>,
    queue_sizes: Vec<u16>,
    features: u64,
    /// Of the first port.
    handle: ConsoleHandle,
    handles: Vec<ConsoleHandle>,
}

impl ConsoleDevice {
    /// Makes the terminal, the socket or the file of each port of `spec`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn open(spec: ConsoleSpec) -> Result<Self, EndpointError> {
        let control = spec.multiport.then(Control::new).transpose()?;
        let (handle, console) = open_port(spec.first, spec.queue_size, control.as_ref())?;
        let features = features(&console, control.is_some());
        let (mut handles, mut ports) = (vec![handle.clone()], vec![console]);
        for port in spec.further {
            let (handle, port) = open_port(port, spec.queue_size, control.as_ref())?;
            handles.push(handle);
            ports.push(port);
        }
        let pairs = ports.len().saturating_add(usize::from(control.is_some()));
        Ok(ConsoleDevice {
            ports,
            control,
            queue_sizes: vec![spec.queue_size; pairs.saturating_mul(2)],
            features,
            handle,
            handles,
        })
    }

    /// What a host can do with its first port, the console itself.
    pub fn handle(&self) -> &ConsoleHandle {
        &self.handle
    }

    /// The same for all ports, by their numbers.
    pub fn handles(&self) -> &[ConsoleHandle] {
        &self.handles
    }

    /// What its first port has done so far.
    pub fn stats(&self) -> &Arc<ConsoleStats> {
        self.handle.stats()
    }

    fn config_space(&self) -> ConfigSpace {
        let size = self.ports.first().and_then(|port| port.size());
        ConfigSpace {
            cols: size.map_or(0, |size| size.cols).into(),
            rows: size.map_or(0, |size| size.rows).into(),
            max_nr_ports: u32::try_from(self.ports.len()).unwrap_or(u32::MAX).into(),
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
        let queues = self.queue_sizes.len();
        let no_such = || Box::new(NoSuchQueue { index, queues });
        let port = |number: usize| self.ports.get(number).map(Arc::clone).ok_or_else(no_such);
        let control = || self.control.clone().ok_or_else(no_such);
        Ok(match Role::of(index) {
            Role::Receive(number) => Box::new(Input::new(port(number)?)?),
            Role::Transmit(number) => Box::new(Output::new(port(number)?)?),
            Role::Tell => {
                let Control { board, stats } = control()?;
                let size = self.queue_sizes.get(usize::from(index)).copied();
                Box::new(Sender::new(board, stats, size.unwrap_or(0).into()))
            }
            Role::Hear => {
                let Control { board, stats } = control()?;
                Box::new(Receiver::new(board, self.ports.clone(), stats))
            }
        })
    }

    fn reset(&mut self) {
        if let Some(control) = &self.control {
            control.board.reset();
        }
        for port in &self.ports {
            port.opened_by_guest(false);
        }
    }

    /// All ports together.
    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let mut all: Vec<(&str, u64)> = Vec::new();
        for (name, count) in self.ports.iter().flat_map(|port| port.statistics()) {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => all.push((name, count)),
            }
        }
        let control = self.control.as_ref();
        all.extend(control.map_or_else(Vec::new, |control| control.stats.snapshot().list()));
        all
    }

    fn host_path(&self) -> Option<&Path> {
        Some(&self.handle.path)
    }

    fn places(&self) -> Vec<HostPlace> {
        let one = self.ports.len() == 1;
        let places = self.handles.iter().zip(&self.ports);
        let place = |(handle, port): (&ConsoleHandle, &Arc<Port>)| HostPlace {
            name: handle.name.clone(),
            path: handle.path.clone(),
            statistics: match one {
                true => Vec::new(),
                false => port.statistics(),
            },
        };
        places.map(place).collect()
    }
}

fn open_port(
    spec: PortSpec,
    queue_size: u16,
    control: Option<&Control>,
) -> Result<(ConsoleHandle, Arc<Port>), EndpointError> {
    let name = spec.name.clone();
    let link = spec.target.path().map(Path::to_owned);
    let place = control.map(|control| control.board.add(name.clone(), spec.console, spec.size));
    let port = Arc::new(Port::open(spec, queue_size, place)?);
    let handle = ConsoleHandle {
        name,
        path: port.endpoint.path().to_owned(),
        port: Arc::downgrade(&port),
        stats: Arc::clone(&port.stats),
    };
    tracing::info!(
        port = handle.name,
        path = %handle.path.display(),
        link = link.map(|path| path.display().to_string()),
        "console opened"
    );
    Ok((handle, port))
}

/// What is offered; `console` is the first port.
fn features(console: &Port, multiport: bool) -> u64 {
    let mut features = 0;
    if console.size().is_some() {
        features |= F_SIZE;
    }
    if multiport {
        features |= F_MULTIPORT;
    }
    // such writes are made on the thread that all devices of the guest share:
    // it must not wait for a disk
    if console.endpoint.is_prompt() {
        features |= F_EMERG_WRITE;
    }
    features
}

/// A port of a console as its host sees it; clones are the same. It does not
/// keep the console alive.
#[derive(Clone, Debug)]
pub struct ConsoleHandle {
    name: Option<String>,
    path: PathBuf,
    port: Weak<Port>,
    stats: Arc<ConsoleStats>,
}

impl ConsoleHandle {
    /// The name that the guest finds for it.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Where a user finds it: the terminal (`/dev/pts/3`, whatever links to
    /// it), the socket or the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The window of whoever looks at the console has another size now, in
    /// characters; 0 is no size. A port whose guest was never told a size
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
