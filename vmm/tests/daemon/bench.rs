//! A fake machine, its toolstack, and a daemon on a thread of its own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;
use vmm::config::Config;
use vmm::daemon::{Daemon, Options, RunError, StartError, StopHandle, control};
use vmm::demo::guest::{Addresses, Disk, DriverMemory, Registers, hal};
use xen::fake::toolstack::{Device, DeviceId, Toolstack, VirtioDevice, VirtioDisk};
use xen::fake::{Bank, Census, Domain, DomainConfig, GuestHeap, Machine};
use xen::xenstore::XenbusState;
use xen::{DomId, Host};

/// Bound of every wait.
pub const LONG: Duration = Duration::from_secs(30);
const MEMORY: u64 = 16 << 20;
/// Where a guest that is mapped one to one may have its RAM: no bank of
/// libxl's is there.
const DIRECT_RAM: u64 = 0x8000_0000;

/// Waits until `done` says so.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the control thread has logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Waits for a line that holds every one of `words`, and gives it.
    #[track_caller]
    pub fn line(&self, words: &[&str]) -> String {
        let find = || {
            let text = self.text();
            let found = text
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            found.map(str::to_owned)
        };
        until(&format!("a line of the log with {words:?}"), || {
            find().is_some()
        });
        find().unwrap()
    }

    /// How many lines hold `word`.
    pub fn count(&self, word: &str) -> usize {
        self.text()
            .lines()
            .filter(|line| line.contains(word))
            .count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// A running daemon.
pub struct Running {
    pub log: Log,
    stop: StopHandle,
    thread: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Asks it to leave.
    pub fn ask_to_leave(&self) {
        self.stop.stop();
    }

    /// Asks it to read its configuration anew.
    pub fn reload(&self) {
        self.stop.reload();
    }

    pub fn has_left(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has left.
    #[track_caller]
    pub fn left(self) {
        until("the daemon leaves", || self.thread.is_finished());
        self.thread.join().unwrap().unwrap();
    }
}

/// A host with images.
pub struct Bench {
    pub machine: Machine,
    pub toolstack: Toolstack,
    directory: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let machine = Machine::new().unwrap();
        let toolstack = Toolstack::new(machine.store()).unwrap();
        Bench {
            machine,
            toolstack,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The daemon's records.
    pub fn records(&self) -> Vec<String> {
        let files = fs::read_dir(self.path("state")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".json")).collect()
    }

    pub fn options(&self, toml: &str) -> Options {
        let mut config = Config::parse(Path::new("test.toml"), toml).unwrap();
        config.state_dir = self.path("state");
        Options {
            config,
            ..Options::default()
        }
    }

    /// A daemon that runs, with the defaults.
    pub fn daemon(&self) -> Running {
        self.daemon_with(self.options(""))
    }

    pub fn daemon_with(&self, options: Options) -> Running {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .finish();
        let dispatch = tracing::Dispatch::new(subscriber);
        let (stop, control) = control().unwrap();
        let host = Host::Fake(self.machine.clone());
        let start = || Daemon::start(host, options, control).unwrap();
        let daemon = tracing::dispatcher::with_default(&dispatch, start);
        let thread = std::thread::spawn(move || {
            tracing::dispatcher::with_default(&dispatch, || daemon.run())
        });
        Running { log, stop, thread }
    }

    /// Why a daemon does not start.
    pub fn refusal(&self) -> StartError {
        self.refusal_of(self.options(""))
    }

    pub fn refusal_of(&self, options: Options) -> StartError {
        let (_stop, control) = control().unwrap();
        let host = Host::Fake(self.machine.clone());
        Daemon::start(host, options, control)
            .err()
            .expect("the daemon started")
    }

    /// A guest that xenstored knows.
    pub fn guest(&self, name: &str) -> TestGuest {
        let config = DomainConfig::with_memory(MEMORY);
        let domain = self.machine.create_domain(config).unwrap();
        self.toolstack.create_domain(domain.id(), name).unwrap();
        let ram = 0x4000_0000;
        TestGuest { domain, ram }
    }

    /// A guest that Xen has made at its own start, mapped one to one, and that
    /// xenstored has never heard of.
    pub fn unknown_guest(&self) -> TestGuest {
        let bank = Bank {
            first_gfn: DIRECT_RAM >> 12,
            frames: MEMORY >> 12,
        };
        let config = DomainConfig {
            banks: vec![bank],
            // direct_mapped
            features: 0x0006_6005,
            ..DomainConfig::default()
        };
        let domain = self.machine.create_domain(config).unwrap();
        self.machine.store().release(domain.id());
        let ram = DIRECT_RAM;
        TestGuest { domain, ram }
    }

    /// An image of `bytes`.
    pub fn image(&self, name: &str, bytes: u64) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Disk number `index` of a guest, with an image of its own.
    pub fn disk(&self, guest: &TestGuest, index: u8) -> VirtioDisk {
        let image = self.image(&format!("{}-{index}.img", guest.id()), 1 << 20);
        VirtioDisk::new(guest.id(), index, image)
    }

    /// `xl create` or `xl block-attach`: waits for state 2.
    #[track_caller]
    pub fn attach(&self, disk: &VirtioDisk) {
        self.toolstack.attach(disk, LONG).unwrap();
    }

    #[track_caller]
    pub fn wait(&self, device: &impl Device, state: XenbusState) {
        self.toolstack
            .wait_state(&device.id(), state, LONG)
            .unwrap();
    }

    pub fn node(&self, id: &DeviceId, key: &str) -> Option<String> {
        self.machine
            .store()
            .read(&format!("{}/{key}", id.backend_path()))
    }

    pub fn state(&self, device: &impl Device) -> Option<String> {
        self.node(&device.id(), "state")
    }

    /// Where xenbus tools look for an error.
    pub fn error_path(id: &DeviceId) -> String {
        let DeviceId {
            backend,
            domain,
            kind,
            devid,
        } = id;
        let kind = kind.name();
        format!("/local/domain/{backend}/error/backend/{kind}/{domain}/{devid}/error")
    }

    /// Waits for a device's error, and gives it.
    #[track_caller]
    pub fn error(&self, device: &impl Device) -> String {
        let path = Self::error_path(&device.id());
        until("an error node", || self.machine.store().exists(&path));
        let error = self.machine.store().read(&path).unwrap();
        assert_eq!(self.node(&device.id(), "error").as_ref(), Some(&error));
        error
    }

    /// `xl destroy`.
    #[track_caller]
    pub fn destroy(&self, guest: &TestGuest) {
        self.toolstack.destroy_domain(guest.id(), LONG).unwrap();
        guest.domain.destroy();
    }

    pub fn census(&self, guest: &TestGuest) -> Census {
        self.machine
            .census()
            .get(&guest.id())
            .copied()
            .unwrap_or_default()
    }

    /// Waits until nothing of a guest is held any more.
    #[track_caller]
    pub fn freed(&self, guest: &TestGuest) {
        until("all of the guest is freed", || {
            self.census(guest).is_clean()
        });
        until("no zombie is left", || !guest.domain.exists());
    }
}

/// A guest.
pub struct TestGuest {
    pub domain: Domain,
    /// Where its RAM is.
    ram: u64,
}

/// Where a guest finds a disk, however it was announced.
#[derive(Clone, Copy)]
pub struct Spot {
    pub base: u64,
    pub irq: u32,
    pub grants: bool,
}

impl From<&VirtioDisk> for Spot {
    fn from(disk: &VirtioDisk) -> Self {
        Spot {
            base: disk.base,
            irq: disk.irq,
            grants: disk.grant_usage,
        }
    }
}

impl From<&VirtioDevice> for Spot {
    fn from(device: &VirtioDevice) -> Self {
        Spot {
            base: device.base,
            irq: device.irq,
            grants: device.grant_usage,
        }
    }
}

impl TestGuest {
    pub fn id(&self) -> DomId {
        self.domain.id()
    }

    /// Which device its driver finds at a disk's registers.
    pub fn device_id(&self, base: u64) -> u64 {
        self.domain.vcpu(0).read(base + 8, 4).unwrap()
    }

    /// Brings a disk's driver up and has `f` use it, on a vCPU's thread. The
    /// driver is gone afterwards, and with it the device reset.
    #[track_caller]
    pub fn with_driver<R: Send + 'static>(
        &self,
        disk: impl Into<Spot>,
        f: impl FnOnce(&mut Disk) -> R + Send + 'static,
    ) -> R {
        let Spot { base, irq, grants } = disk.into();
        let addresses = if grants {
            Addresses::Grants
        } else {
            Addresses::Plain
        };
        let (domain, ram) = (self.domain.clone(), self.ram);
        vmm::demo::guest::within("the driver", LONG, move || {
            let heap = GuestHeap::new(&domain, ram >> 12, MEMORY >> 12).unwrap();
            hal::enter(DriverMemory::new(&domain, &heap, addresses));
            let registers = Registers::probe(&domain.vcpu(0), base).unwrap();
            let mut disk = Disk::new(registers, domain.interrupts().unwrap(), irq).unwrap();
            f(&mut disk)
        })
        .unwrap()
    }
}
