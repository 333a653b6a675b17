//! The daemon: every guest that this domain has back ends for.
//!
//! One control thread waits, by event-manager, for xenstored, for the guests'
//! threads, for requests to leave, and for a timer. It alone talks to
//! xenstored and decides what is served; what it decides is carried out by each
//! guest's own thread. `xen-dm run` is the same with one guest ([`Scope`]).
//!
//! ```text
//!  xenstored ── watches ──┐                       ┌─ Guest::start, add, remove
//!  guests ── GuestEvent ──┼─► look at one device ─┼─ state 2, 4, 6; error
//!  signals, StopHandle ───┤   (device.rs)         └─ Guest::stop, on a thread of its own
//!  timer (after failures)─┤
//!  `xen-dm status` ───────┘                       what is served, and its counters (report.rs)
//! ```
//!
//! A device's nodes are read anew whenever something may have changed, and
//! what is to be done follows from what is there and from what is served, not
//! from how it came about: daemon and guests may appear in any order, and
//! xenstored may be restarted. Nothing is waited for here: a device of which another
//! process says whether it can be used is on trial meanwhile (trial.rs).

mod control;
mod device;
mod error;
mod events;
mod guests;
mod host;
mod one;
mod report;
mod scope;
mod served;
mod trial;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;
use xen::xenstore::{Watch, Xenstore};
use xen::{DomId, Host};

pub use control::{Control, StopHandle, control};
pub use error::{RunError, StartError};
pub use scope::Scope;

use one::One;
use scope::Served;
use served::ServedGuest;

use crate::config::Config;
use crate::discovery::{self, Place, Root};
use crate::state::StateDir;
use crate::status::Desk;

/// After a failure everything is looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// Something has become free that another device may have waited for.
const AT_ONCE: Duration = Duration::from_millis(1);

/// What the daemon is to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration.
    pub config: Config,
    /// The file it is from, which is read anew on request.
    pub config_file: Option<PathBuf>,
    /// Which guests are served.
    pub scope: Scope,
    /// Leave when asked to, even while guests are attached.
    pub force: bool,
}

/// What an event is about; the data of its source in the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Xenstore,
    Guests,
    Leave,
    Reload,
    Timer,
    Status,
}

impl Source {
    const ALL: [Source; 6] = [
        Source::Xenstore,
        Source::Guests,
        Source::Leave,
        Source::Reload,
        Source::Timer,
        Source::Status,
    ];

    fn number(self) -> u32 {
        match self {
            Source::Xenstore => 0,
            Source::Guests => 1,
            Source::Leave => 2,
            Source::Reload => 3,
            Source::Timer => 4,
            Source::Status => 5,
        }
    }
}

/// The watches. They fire once when they are set, which is how what is there
/// already is found.
struct Watches {
    /// The back ends' directories.
    _kinds: Vec<Watch>,
    /// Domains that come and go, where this domain may know.
    domains: Option<DomainWatches>,
}

/// What dom0 alone may watch.
struct DomainWatches {
    /// A domain came: nodes may have been there before it.
    introduced: Watch,
    /// A domain went, or shut down.
    released: Watch,
}

/// A guest that is being stopped, on a thread of its own.
struct Stopping {
    name: String,
    thread: JoinHandle<()>,
}

/// The daemon. [`Daemon::run`] is its control thread.
pub struct Daemon {
    host: Host,
    options: Options,
    store: Xenstore,
    root: Root,
    served: Served,
    /// The only guest, if there is but one.
    one: Option<One>,
    watches: Watches,
    state: StateDir,
    control: Control,
    timer: TimerFd,
    /// Where `xen-dm status` asks.
    desk: Desk,
    started: Instant,
    /// Rung by guests' threads, and by threads that have stopped a guest.
    wake: EventFd,
    guests: BTreeMap<DomId, ServedGuest>,
    stopping: BTreeMap<DomId, Stopping>,
    stopped: (Sender<DomId>, Receiver<DomId>),
    /// Devices that are not served, and why.
    refused: BTreeMap<Place, String>,
    /// Asked to leave; done as soon as no guest is attached.
    leaving: bool,
    /// xenstored was not found again; the timer tries.
    lost: bool,
}

impl Daemon {
    /// Checks the host, takes the state directory, removes what a dead daemon
    /// left, and sets the watches. With one guest, it is served when this
    /// returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn start(host: Host, options: Options, control: Control) -> Result<Daemon, StartError> {
        host::check(&host)?;
        let store = host.connect_xenstore().map_err(StartError::Xenstore)?;
        let served = Served::new(&options.scope);
        let state = match served.one {
            None => StateDir::open(&options.config.state_dir)?,
            Some(_) => StateDir::beside(&options.config.state_dir)?,
        };
        let own = discovery::own_domain(&store).map_err(StartError::OwnDomain)?;
        let root = Root::new(own);
        host::remove_stale(&host, &store, &root, &state, served.one)?;
        let watches = set_watches(&store, &root).map_err(StartError::Xenstore)?;
        let system = |what| move |source| StartError::System { what, source };
        let wake =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(system("making an event file"))?;
        let timer = TimerFd::new()
            .map_err(io::Error::from)
            .map_err(system("making a timer"))?;
        let desk = Desk::open(&options.config.control_socket(served.one))
            .map_err(system("making event files"))?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            domid = %own,
            state_dir = %options.config.state_dir.display(),
            "serving the back ends of this domain"
        );
        let mut daemon = Daemon {
            host,
            options,
            store,
            root,
            one: served.one.map(One::new),
            served,
            watches,
            state,
            control,
            timer,
            desk,
            started: Instant::now(),
            wake,
            guests: BTreeMap::new(),
            stopping: BTreeMap::new(),
            stopped: channel(),
            refused: BTreeMap::new(),
            leaving: false,
            lost: false,
        };
        daemon.begin()?;
        Ok(daemon)
    }

    /// Serves until it is asked to leave and may. All guests are stopped then.
    ///
    /// # Errors
    /// [`RunError`]: the control loop failed.
    pub fn run(self) -> Result<(), RunError> {
        let failed = |what| move |source| RunError::Loop { what, source };
        let mut manager = EventManager::<Daemon>::new().map_err(failed("making it"))?;
        let sources = Source::ALL.map(|source| (self.descriptor(source), source.number()));
        let id = manager.add_subscriber(self);
        let mut ops = manager.event_ops(id).map_err(failed("filling it"))?;
        for (descriptor, number) in sources {
            ops.add(Events::with_data_raw(descriptor, number, EventSet::IN))
                .map_err(failed("filling it"))?;
        }
        loop {
            manager.run().map_err(failed("waiting for events"))?;
            let daemon = manager.subscriber_mut(id).map_err(failed("finding it"))?;
            if daemon.may_leave() {
                break;
            }
        }
        let daemon = manager.remove_subscriber(id).map_err(failed("ending it"))?;
        drop(daemon);
        tracing::info!("no guest is served any more; leaving");
        Ok(())
    }

    fn descriptor(&self, source: Source) -> std::os::fd::RawFd {
        match source {
            Source::Xenstore => self.store.watch_fd(),
            Source::Guests => self.wake.as_raw_fd(),
            Source::Leave => self.control.leave_fd(),
            Source::Reload => self.control.reload_fd(),
            Source::Timer => self.timer.as_raw_fd(),
            Source::Status => self.desk.as_raw_fd(),
        }
    }

    fn may_leave(&self) -> bool {
        self.leaving && self.guests.is_empty() && self.stopping.is_empty()
    }

    /// Looks at everything again after a while.
    fn look_again(&mut self, after: Duration) {
        if let Err(error) = self.timer.reset(after, None) {
            tracing::error!(%error, "the timer cannot be set");
        }
    }
}

/// The loop is told of descriptors by [`Daemon::run`], where failures can be
/// returned.
impl MutEventSubscriber for Daemon {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let source = Source::ALL
            .into_iter()
            .find(|source| source.number() == events.data());
        match source {
            Some(Source::Xenstore) => self.on_xenstore(),
            Some(Source::Guests) => self.on_guests(),
            Some(Source::Leave) => self.on_leave(),
            Some(Source::Reload) => self.on_reload(),
            Some(Source::Timer) => self.on_timer(),
            Some(Source::Status) => self.on_status(),
            None => {}
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

fn set_watches(store: &Xenstore, root: &Root) -> Result<Watches, xen::xenstore::Error> {
    let kinds = discovery::KINDS
        .iter()
        .map(|kind| store.watch(&root.kind(kind.name)));
    let domains = || {
        Ok(DomainWatches {
            introduced: store.watch("@introduceDomain")?,
            released: store.watch("@releaseDomain")?,
        })
    };
    let domains = match domains() {
        Ok(watches) => Some(watches),
        Err(error) if discovery::is_refused(&error) => {
            tracing::info!(
                "this domain may not watch others come and go (it is not dom0): a guest's end is \
                 seen when its back ends are removed"
            );
            None
        }
        Err(error) => return Err(error),
    };
    Ok(Watches {
        _kinds: kinds.collect::<Result<_, _>>()?,
        domains,
    })
}
