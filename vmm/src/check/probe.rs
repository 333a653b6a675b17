//! Asking the host. Nothing here changes anything, needs privileges, or waits
//! longer than [`PATIENCE`] a question.

use std::fs;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use swiotlb::features::{DIRECT_MAPPED, NOT_DIRECT_MAPPED};
use swiotlb::{Arch, FeatureInputs, detect};
use xen::features::FeatureWord;
use xen::host::{HostFile, OpenError};
use xen::privcmd::{self, EventfdSupport, Privcmd};
use xen::xenstore::{Options, Tree, Way, Xenstore};
use xen::{DomId, Host, dm_op};

use super::facts::{
    Eventfd, Facts, Features, FileFact, FileState, IoreqServer, Limits, OpenFiles, Route,
    XenstoreFact,
};
use crate::discovery;
use crate::logs::report;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long xenstored may take for one reply; there are two.
const REPLY: Duration = Duration::from_millis(1500);
/// No domain has this number (`DOMID_INVALID`, `xen/include/public/xen.h`).
const NO_DOMAIN: DomId = DomId(0x7ff4);

/// Descriptors of a daemon without guests, generously.
const FILES_OF_DAEMON: u64 = 48;
/// Descriptors of a guest without devices, generously.
pub const FILES_OF_GUEST: u64 = 16;
/// Descriptors of a device with one queue, its image among them, generously.
pub const FILES_OF_DEVICE: u64 = 16;

/// What there is to know of `host`.
#[must_use]
pub fn gather(host: &Host) -> Facts {
    let on_xen = host.is_on_xen();
    let mut facts = Facts {
        xen_dm: env!("CARGO_PKG_VERSION").to_owned(),
        on_xen,
        xen: None,
        kernel: line_of("/proc/sys/kernel/osrelease"),
        files: Vec::new(),
        ioreq_server: IoreqServer::NotAsked,
        privcmd_restricted: None,
        target: None,
        irqfd: Eventfd::NotAsked,
        ioeventfd: Eventfd::NotAsked,
        xenstore: XenstoreFact {
            reachable: false,
            route: None,
            path: None,
            error: None,
        },
        domid: None,
        guests_memory: None,
        features: None,
        limits: limits(host),
    };
    if on_xen {
        facts.files = HostFile::ALL.map(|file| probe_file(host, file)).into();
        facts.xen = host.xen_version();
        ask_privcmd(host, &mut facts);
        ask_xenstore(host, &mut facts);
        facts.features = features(host);
    }
    facts
}

/// Whether this Xen hands guests' accesses to device models: asks something of
/// a domain that cannot be there. With ioreq servers the answer is just that.
#[must_use]
pub fn ask_ioreq_server(privcmd: &Privcmd) -> IoreqServer {
    match privcmd.nr_vcpus(NO_DOMAIN) {
        Err(dm_op::Error::NoIoreqServer { .. }) => IoreqServer::Absent,
        Err(dm_op::Error::Restricted { .. }) => IoreqServer::Forbidden,
        Err(dm_op::Error::NoDomain { .. }) | Ok(_) => IoreqServer::Present,
        Err(error) => {
            tracing::debug!("device-model operations: {}", report(&error));
            IoreqServer::Failed
        }
    }
}

/// Runs `question` on a thread; nothing if it takes too long. The thread is
/// left to itself then, until the process ends.
fn within<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name("check".into());
    thread
        .spawn(move || {
            // whoever asked may have given up
            let _ = sender.send(question());
        })
        .ok()?;
    receiver.recv_timeout(PATIENCE).ok()
}

fn probe_file(host: &Host, file: HostFile) -> FileFact {
    let asked = host.clone();
    let (state, error, remedy) = match within(move || asked.probe(file)) {
        Some(Ok(())) => (FileState::Open, None, None),
        Some(Err(error)) => {
            let state = match &error {
                OpenError::NotOnXen { .. } | OpenError::NoDriver { .. } => FileState::Missing,
                OpenError::NoPermission { .. } => FileState::Forbidden,
                OpenError::Failed { .. } => FileState::Failed,
            };
            let remedy = error.remedy();
            let text = match state {
                FileState::Failed => report(&error),
                _ => error.problem(),
            };
            (state, Some(text), (!remedy.is_empty()).then_some(remedy))
        }
        None => (FileState::Silent, None, None),
    };
    FileFact {
        path: file.path().to_owned(),
        module: file.module().to_owned(),
        state,
        error,
        remedy,
    }
}

fn ask_privcmd(host: &Host, facts: &mut Facts) {
    let open = |fact: &FileFact| fact.state == FileState::Open;
    if !facts.files.first().is_some_and(open) {
        return;
    }
    let asked = host.clone();
    let answers = within(move || {
        let privcmd = asked.open_privcmd().ok()?;
        let version = privcmd.version();
        let restricted = matches!(version, Err(privcmd::Error::Restricted { .. }));
        let version = version
            .ok()
            .map(|(major, minor)| format!("{major}.{minor}"));
        Some((
            ask_ioreq_server(&privcmd),
            restricted,
            version,
            eventfd(privcmd.irqfd_support()),
            eventfd(privcmd.ioeventfd_support()),
        ))
    });
    if let Some((ioreq_server, restricted, version, irqfd, ioeventfd)) = answers.flatten() {
        facts.ioreq_server = ioreq_server;
        facts.privcmd_restricted = Some(restricted);
        facts.irqfd = irqfd;
        facts.ioeventfd = ioeventfd;
        facts.xen = facts.xen.take().or(version);
    }
}

fn eventfd(support: EventfdSupport) -> Eventfd {
    match support {
        EventfdSupport::Available => Eventfd::Available,
        EventfdSupport::NotConfigured => Eventfd::NotConfigured,
        EventfdSupport::Unknown => Eventfd::TooOld,
    }
}

fn ask_xenstore(host: &Host, facts: &mut Facts) {
    let asked = host.clone();
    let answers = within(move || {
        let options = Options {
            timeout: REPLY,
            ..Options::default()
        };
        let store = asked
            .connect_xenstore_with(options)
            .map_err(|error| report(&error))?;
        // whatever the answer, it is one
        match store.exists("/local/domain") {
            Err(error) if error.errno().is_none() => return Err(report(&error)),
            _ => {}
        }
        let (own, target) = own_and_target(&store);
        let memory = guests_memory(&store, own);
        Ok((store.way().clone(), own, target, memory))
    });
    let silent = || Err(format!("no answer within {PATIENCE:?}"));
    match answers.unwrap_or_else(silent) {
        Ok((way, domid, target, guests_memory)) => {
            let (route, path) = match way {
                Way::Socket(path) => (Route::Socket, Some(path)),
                Way::Device(path) => (Route::Device, Some(path)),
                Way::Stream => (Route::Stream, None),
            };
            facts.xenstore = XenstoreFact {
                reachable: true,
                route: Some(route),
                path: path.map(|path| path.display().to_string()),
                error: None,
            };
            facts.domid = domid;
            facts.target = target;
            facts.guests_memory = guests_memory;
        }
        Err(error) => facts.xenstore.error = Some(error),
    }
}

/// This domain's number, and its `target`.
fn own_and_target(store: &Xenstore) -> (Option<u16>, Option<u16>) {
    let own = discovery::own_domain(store).ok().map(|own| own.0);
    let target = own.and_then(|own| {
        let node = store.at(format!("/local/domain/{own}"));
        node.read_optional("target").ok().flatten()
    });
    (own, target)
}

/// What each other domain may have, as libxl writes it for the domain itself.
fn guests_memory(store: &Xenstore, own: Option<u16>) -> Option<Vec<u64>> {
    let domains = store.directory("/local/domain").ok()?;
    let own = own.map(|own| own.to_string());
    let guests = domains.iter().filter(|domain| own.as_ref() != Some(domain));
    let bytes = guests.filter_map(|domain| {
        let node = store.at(format!("/local/domain/{domain}"));
        // one that hides it, or is just going
        let kib = node.read_optional::<u64>("memory/static-max").ok()??;
        Some(kib.saturating_mul(1024))
    });
    Some(bytes.collect())
}

fn features(host: &Host) -> Option<Features> {
    let word = host
        .features()
        .ok()
        .or_else(|| host.open_privcmd().ok()?.features().ok())?;
    let initial_domain = word.contains(FeatureWord::DOM0);
    let inputs = FeatureInputs {
        arch: arch(host),
        xen_domain: true,
        initial_domain,
        features: Some(word.raw()),
    };
    // lenient, and with a word there is nothing else to fail
    let found = detect(&inputs, false).ok()?;
    Some(Features {
        word: word.to_string(),
        mapping: found.kind.to_string(),
        linux_swiotlb: found.linux,
        legacy_rule: inputs.arch == Arch::Arm
            && word.raw() & (DIRECT_MAPPED | NOT_DIRECT_MAPPED) == 0,
        contradictory: found.contradictory,
        initial_domain,
    })
}

fn arch(host: &Host) -> Arch {
    let x86 = cfg!(any(target_arch = "x86_64", target_arch = "x86"));
    match host {
        Host::Kernel if x86 => Arch::X86 {
            pv: line_of("/sys/hypervisor/guest_type").as_deref() == Some("PV"),
            machine_addresses: false,
        },
        // the fake is an Arm machine wherever it runs
        _ => Arch::Arm,
    }
}

fn limits(host: &Host) -> Limits {
    let files = getrlimit(Resource::Nofile);
    let fit = |soft: u64| {
        soft.saturating_sub(FILES_OF_DAEMON) / FILES_OF_GUEST.saturating_add(FILES_OF_DEVICE)
    };
    Limits {
        open_files: OpenFiles {
            soft: files.current,
            hard: files.maximum,
            devices: files.current.map(fit),
        },
        locked_memory: getrlimit(Resource::Memlock).current,
        mappings: line_of("/proc/sys/vm/max_map_count").and_then(|text| text.parse().ok()),
        gntdev_grants: host.gntdev_limit(),
    }
}

/// The text of a small file.
fn line_of(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}
