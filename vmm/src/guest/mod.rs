//! One guest's life: its ioreq server, its devices, and the thread that
//! answers its accesses.
//!
//! [`Guest::start`] claims the guest's virtio windows as wholes and starts the
//! thread; devices come and go by [`Guest::add`] and [`Guest::remove`], called
//! by the control plane on its own thread. The guest's thread waits, by
//! event-manager, for the ioreq server's event channels, for workers that give
//! queues back, and for closures that the control plane sends (event-manager's
//! remote endpoint is the command channel). It decodes an access, hands it to
//! the device's registers and answers; it never touches a queue and never
//! waits for one: a write that stops queues is answered when they have
//! stopped, and other vCPUs and devices go on meanwhile.
//!
//! Whatever a guest does, its vCPUs get their answers: malformed requests
//! read as zero or all ones and are counted; a defect in a device's own code is
//! caught, breaks that device and nothing else.

mod access;
mod attach;
mod config;
mod error;
mod event;
mod mapping;
mod service;
mod slot;
mod stats;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::registry::DeviceSpec;
use event_manager::{EventManager, EventSet, Events, RemoteEndpoint, SubscriberId, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use xen::dm_op::IoRange;
use xen::ioreq::IoreqServer;
use xen::memory::ForeignRam;
use xen::{DomId, Host};

pub use config::{DataPath, DeviceKey, DeviceSlot, EventMode, GuestConfig, MmioWindow, SLOT_SIZE};
pub use error::GuestError;
pub use event::GuestEvent;
pub use mapping::{Mapping, Said};
pub use stats::{DeviceStats, GuestStats, QueueCounts, Wiring};

use event::Outbox;
use service::{Means, Service};

/// How long the guest's thread may take to answer the control plane. It never
/// waits for anything, but it closes images.
const ANSWER: Duration = Duration::from_secs(30);

/// A guest that is being served.
///
/// Dropping it ends it as [`Guest::stop`] does.
pub struct Guest {
    domid: DomId,
    config: GuestConfig,
    server: u16,
    endpoint: RemoteEndpoint<Service>,
    id: SubscriberId,
    outbox: Outbox,
    last: Arc<Mutex<GuestStats>>,
    thread: Option<JoinHandle<Vec<DeviceKey>>>,
}

impl Guest {
    /// Opens Xen's device files, makes an ioreq server for the windows
    /// and starts to answer: a slot without a device says that there is none.
    /// `wake` is rung for every [`GuestEvent`].
    ///
    /// # Errors
    /// What of that failed. Nothing is left behind then.
    pub fn start(host: &Host, config: GuestConfig, wake: EventFd) -> Result<Guest, GuestError> {
        let span =
            tracing::info_span!(parent: None, "guest", domid = %config.domid, name = %config.name);
        let entered = span.clone().entered();
        let domid = config.domid;
        let host_error = |what| {
            move |source| GuestError::Host {
                domid,
                what,
                source,
            }
        };
        let returned = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(host_error("no event file for its queues"))?;
        let mut manager = EventManager::new()
            .map_err(|error| host_error("no event loop")(std::io::Error::other(error)))?;
        let means = open(host, domid)?;
        let server = claim(host, &config, &means)?;
        let number = server.id().0;
        let outbox = Outbox::new(wake);
        let service = Service::new(config.clone(), server, means, returned, outbox.clone());
        let id = register(&mut manager, service)
            .map_err(|error| host_error("no event loop")(std::io::Error::other(error)))?;
        let endpoint = manager.remote_endpoint();
        let last = Arc::default();
        drop(entered);
        let context = thread::Context {
            domid,
            outbox: outbox.clone(),
            last: Arc::clone(&last),
            span,
        };
        let thread = std::thread::Builder::new()
            .name(format!("guest-{domid}"))
            .spawn(move || thread::run(manager, id, &context))
            .map_err(host_error("no thread"))?;
        Ok(Guest {
            domid,
            config,
            server: number,
            endpoint,
            id,
            outbox,
            last,
            thread: Some(thread),
        })
    }

    /// Its domain.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// The id of its ioreq server, to be noted where a later process finds it.
    #[must_use]
    pub fn ioreq_server(&self) -> u16 {
        self.server
    }

    /// Serves a further device. True: it is on trial ([`Trial`](devices::virtio::Trial)), its guest's first
    /// word to it waits, and [`GuestEvent::Usable`] or [`GuestEvent::Unusable`]
    /// follows.
    ///
    /// # Errors
    /// A place or an interrupt that it cannot have, or the host's failure;
    /// [`GuestError::Ended`].
    pub fn add(&self, slot: DeviceSlot) -> Result<bool, GuestError> {
        self.ask(move |service| service.add(slot))?
    }

    /// Removes a device: at once for the guest, whose accesses find an empty
    /// slot from here on; [`GuestEvent::Removed`] follows when its queues have
    /// stopped and nothing of the guest's is held for it any more.
    ///
    /// # Errors
    /// [`GuestError::Unknown`], [`GuestError::Ended`].
    pub fn remove(&self, id: &DeviceKey) -> Result<(), GuestError> {
        let id = id.clone();
        self.ask(move |service| service.remove(&id))?
    }

    /// Has every device look again at what it stands on: a disk, at the size of
    /// its image. Drivers are told of what has changed.
    ///
    /// # Errors
    /// [`GuestError::Ended`].
    pub fn refresh(&self) -> Result<(), GuestError> {
        self.ask(Service::refresh)
    }

    /// Has a device take from `spec` what can change while it is served.
    ///
    /// # Errors
    /// [`GuestError::Unknown`], [`GuestError::Ended`].
    pub fn reconfigure(&self, id: &DeviceKey, spec: DeviceSpec) -> Result<(), GuestError> {
        let id = id.clone();
        self.ask(move |service| service.reconfigure(&id, &spec))?
    }

    /// Takes the events that have come since the last call.
    #[must_use]
    pub fn events(&self) -> Vec<GuestEvent> {
        self.outbox.drain()
    }

    /// Counters as they stand, or as they were when the guest ended.
    #[must_use]
    pub fn snapshot(&self) -> GuestStats {
        let stats = self.snapshot_within(ANSWER);
        stats.unwrap_or_else(|| self.last().clone())
    }

    /// As [`Guest::snapshot`], or nothing if its thread does not answer in
    /// time.
    #[must_use]
    pub fn snapshot_within(&self, patience: Duration) -> Option<GuestStats> {
        match self.ask_within(patience, |service| service.stats()) {
            Ok(stats) => Some(stats),
            Err(GuestError::Silent { .. }) => None,
            Err(_) => Some(self.last().clone()),
        }
    }

    fn last(&self) -> MutexGuard<'_, GuestStats> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the guest: removes all devices, waits for their queues (at most
    /// [`GuestConfig::stop_limit`]), unmaps everything and destroys the ioreq
    /// server. A guest that still runs faults at its next access to the window.
    ///
    /// # Errors
    /// [`GuestError::StillBusy`] if a queue did not stop.
    pub fn stop(mut self) -> Result<(), GuestError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), GuestError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let id = self.id;
        let sent = self.endpoint.fire(move |services| {
            if let Ok(service) = services.subscriber_mut(id) {
                service.end();
            }
        });
        if sent.is_err() {
            tracing::debug!(domid = %self.domid, "the guest's thread has ended already");
        }
        match thread.join() {
            Ok(stuck) if stuck.is_empty() => Ok(()),
            Ok(stuck) => Err(GuestError::StillBusy {
                domid: self.domid,
                devices: stuck.iter().map(ToString::to_string).collect(),
                waited: self.config.stop_limit(),
            }),
            Err(_) => Err(GuestError::Ended(self.domid)),
        }
    }

    /// Has the guest's thread do something.
    fn ask<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Service) -> R + Send + 'static,
    ) -> Result<R, GuestError> {
        self.ask_within(ANSWER, f)
    }

    fn ask_within<R: Send + 'static>(
        &self,
        waited: Duration,
        f: impl FnOnce(&mut Service) -> R + Send + 'static,
    ) -> Result<R, GuestError> {
        let ended = || GuestError::Ended(self.domid);
        let (sender, receiver) = channel();
        let id = self.id;
        self.endpoint
            .fire(move |services| {
                if let Ok(service) = services.subscriber_mut(id) {
                    // whoever asked may have given up
                    let _ = sender.send(f(service));
                }
            })
            .map_err(|_| ended())?;
        receiver.recv_timeout(waited).map_err(|error| match error {
            std::sync::mpsc::RecvTimeoutError::Disconnected => ended(),
            std::sync::mpsc::RecvTimeoutError::Timeout => GuestError::Silent {
                domid: self.domid,
                waited,
            },
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(domid = %self.domid, %error, "end of the guest");
        }
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("domid", &self.domid)
            .field("name", &self.config.name)
            .field("ioreq_server", &self.server)
            .finish_non_exhaustive()
    }
}

fn open(host: &Host, domid: DomId) -> Result<Means, GuestError> {
    let open = |file| {
        move |source: xen::host::OpenError| GuestError::Open {
            domid,
            file,
            source: Box::new(source),
        }
    };
    let privcmd = host.open_privcmd().map_err(open("privcmd"))?;
    let gntdev = host.open_gntdev().map_err(open("gntdev"))?;
    let ram = ForeignRam::new(&privcmd, domid).map_err(|source| GuestError::Open {
        domid,
        file: "its memory",
        source: Box::new(source),
    })?;
    let irqfd = privcmd.irqfd_support();
    tracing::debug!(?irqfd, "interrupts through the kernel");
    Ok(Means {
        privcmd,
        gntdev,
        ram: Arc::new(ram),
        irqfd,
    })
}

/// Makes the ioreq server and has every access to the windows come to it.
fn claim(host: &Host, config: &GuestConfig, means: &Means) -> Result<IoreqServer, GuestError> {
    let domid = config.domid;
    let evtchn = host.open_evtchn().map_err(|source| GuestError::Open {
        domid,
        file: "evtchn",
        source: Box::new(source),
    })?;
    let windows = MmioWindow::list(&config.windows);
    let failed = |source| GuestError::Ioreq {
        domid,
        windows: windows.clone(),
        source,
    };
    let mut server = IoreqServer::create(&means.privcmd, evtchn, domid).map_err(failed)?;
    for &window in &config.windows {
        let last = window.last().ok_or(GuestError::Window { domid, window })?;
        server
            .map_range(IoRange::Memory(window.base, last))
            .map_err(failed)?;
    }
    server.enable().map_err(failed)?;
    tracing::info!(server = %server.id(), vcpus = server.nr_vcpus(), windows, "serving the guest");
    Ok(server)
}

fn register(
    manager: &mut EventManager<Service>,
    service: Service,
) -> Result<SubscriberId, event_manager::Error> {
    let sources = [
        Events::new(service.server(), EventSet::IN),
        Events::new(service.returned(), EventSet::IN),
    ];
    let id = manager.add_subscriber(service);
    let mut ops = manager.event_ops(id)?;
    for source in sources {
        ops.add(source)?;
    }
    Ok(id)
}
