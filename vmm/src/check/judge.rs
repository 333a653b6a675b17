//! What the facts mean: pure functions from [`Facts`] to the table's lines.

use serde::{Deserialize, Serialize};
use xen::host::{BOOT_XEN, HostFile};
use xen::memory::most_mappings;

use super::facts::{Eventfd, Facts, FileFact, FileState, IoreqServer, Route};
use super::remedy;

/// Mappings of this process that are no guest's data: its own, rings, pools.
const OWN_MAPPINGS: u64 = 1024;
/// The kernel's own limit of gntdev; below it somebody has lowered it.
const GNTDEV_DEFAULT: usize = 64 * 1024;
/// No guest is said to fit that is larger: 4 TiB.
const MOST_GIGABYTES: u64 = 4096;
/// Fewer devices than this are a note.
const FEW_DEVICES: u64 = 16;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Guests can be served, but something is slower, smaller or not known.
    Note,
    /// No guest can be served.
    Problem,
}

impl Severity {
    /// Its name, as in the table and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Problem => "problem",
        }
    }
}

/// One fact, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Which: `xen`, `kernel`, `privcmd`, `gntdev`, `evtchn`, `gntalloc`,
    /// `xenbus`, `ioreq_server`, `restriction`, `irqfd`, `ioeventfd`,
    /// `xenstore`, `domain`, `features`, `grants`, `open_files`,
    /// `locked_memory`, `mappings`.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// What was found, for people.
    pub found: String,
    /// What helps, for people, if something is to be done.
    pub remedy: Option<String>,
}

impl Line {
    fn new(id: &str, severity: Severity, found: impl Into<String>) -> Line {
        Line {
            id: id.to_owned(),
            severity,
            found: found.into(),
            remedy: None,
        }
    }

    fn ok(id: &str, found: impl Into<String>) -> Line {
        Line::new(id, Severity::Ok, found)
    }

    fn note(id: &str, found: impl Into<String>) -> Line {
        Line::new(id, Severity::Note, found)
    }

    fn problem(id: &str, found: impl Into<String>) -> Line {
        Line::new(id, Severity::Problem, found)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Line {
        self.remedy = Some(remedy.into());
        self
    }
}

/// The lines of the table. Without Xen only what is not Xen's is in it.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![xen(facts), kernel(facts)];
    if facts.on_xen {
        let files = HostFile::ALL.into_iter().zip(&facts.files);
        lines.extend(files.map(|(which, fact)| file(which, fact)));
        lines.push(ioreq_server(facts));
        lines.push(restriction(facts));
        lines.push(eventfd("irqfd", facts.irqfd, remedy::KERNEL_EVENTS));
        lines.push(eventfd("ioeventfd", facts.ioeventfd, remedy::KERNEL_KICKS));
        lines.push(xenstore(facts));
        lines.push(domain(facts));
        lines.push(features(facts));
        lines.extend(grants(facts));
    }
    lines.push(open_files(facts));
    lines.push(locked_memory(facts));
    lines.extend(mappings(facts));
    lines
}

fn xen(facts: &Facts) -> Line {
    match (facts.on_xen, &facts.xen) {
        (false, _) => Line::problem("xen", remedy::NO_XEN).remedy(BOOT_XEN),
        (true, Some(version)) => Line::ok("xen", format!("Xen {version}")),
        (true, None) => Line::note("xen", "Xen, which does not tell its version"),
    }
}

fn kernel(facts: &Facts) -> Line {
    match &facts.kernel {
        Some(version) => Line::ok("kernel", format!("Linux {version}")),
        None => Line::note("kernel", "its version cannot be read"),
    }
}

fn file(which: HostFile, fact: &FileFact) -> Line {
    let id = match which {
        HostFile::Privcmd => "privcmd",
        HostFile::Gntdev => "gntdev",
        HostFile::Evtchn => "evtchn",
        HostFile::Gntalloc => "gntalloc",
        HostFile::Xenbus => "xenbus",
    };
    let needed = matches!(
        which,
        HostFile::Privcmd | HostFile::Gntdev | HostFile::Evtchn
    );
    let path = &fact.path;
    let found = match (fact.state, &fact.error) {
        (FileState::Open, _) => return Line::ok(id, format!("{path} can be opened")),
        (FileState::Silent, _) => format!("opening {path} does not return"),
        (_, Some(error)) => error.clone(),
        (_, None) => format!("{path} could not be opened"),
    };
    let remedy = match fact.state {
        FileState::Silent => Some(remedy::WAIT_FOR_XENSTORE.to_owned()),
        _ => fact.remedy.clone(),
    };
    match (which, remedy) {
        (HostFile::Gntalloc, _) => Line::note(id, format!("{found}; no device model needs it")),
        (HostFile::Xenbus, _) => Line::note(
            id,
            format!("{found}; it is needed only where xenstored is in another domain"),
        ),
        (_, Some(remedy)) => Line::new(id, required(needed), found).remedy(remedy),
        (_, None) => Line::new(id, required(needed), found),
    }
}

fn required(needed: bool) -> Severity {
    match needed {
        true => Severity::Problem,
        false => Severity::Note,
    }
}

fn ioreq_server(facts: &Facts) -> Line {
    let id = "ioreq_server";
    match facts.ioreq_server {
        IoreqServer::Present => Line::ok(id, "this Xen hands guests' accesses to device models"),
        IoreqServer::Absent => Line::problem(id, remedy::NO_IOREQ_SERVER).remedy(remedy::BUILD_XEN),
        // what follows from that is said by the line about the restriction
        IoreqServer::Forbidden => Line::note(id, "not known: the kernel forbids to ask"),
        IoreqServer::Failed => Line::note(id, "not known: Xen's answer makes no sense"),
        IoreqServer::NotAsked => Line::note(id, "not known: privcmd cannot be asked"),
    }
}

fn restriction(facts: &Facts) -> Line {
    let id = "restriction";
    match (facts.privcmd_restricted, facts.target) {
        (None, _) => Line::note(id, "not known: privcmd cannot be asked"),
        (Some(true), None) => Line::problem(id, "privcmd is restricted, and to no guest (XSA-482)")
            .remedy(remedy::LIFT_RESTRICTION),
        (Some(true), Some(target)) => Line::note(
            id,
            format!("privcmd is restricted to domain {target} (XSA-482): no other can be served"),
        )
        .remedy(remedy::LIFT_RESTRICTION),
        (Some(false), _) if facts.domid.is_some_and(|own| own != 0) => Line::note(
            id,
            "privcmd is not restricted, but this is not dom0: Xen lets it serve those guests alone \
             whose device model it was made",
        ),
        (Some(false), _) => Line::ok(id, "privcmd is not restricted: every guest can be served"),
    }
}

fn eventfd(id: &str, support: Eventfd, remedy: &str) -> Line {
    match support {
        Eventfd::Available => Line::ok(id, "this kernel has it"),
        Eventfd::NotConfigured => {
            let found = "this kernel was built without CONFIG_XEN_PRIVCMD_EVENTFD";
            Line::note(id, found).remedy(remedy)
        }
        Eventfd::TooOld => Line::note(id, "this kernel does not know it").remedy(remedy),
        Eventfd::NotAsked => Line::note(id, "not known: privcmd cannot be asked"),
    }
}

fn xenstore(facts: &Facts) -> Line {
    let fact = &facts.xenstore;
    let path = fact.path.as_deref().unwrap_or_default();
    match (fact.reachable, fact.route) {
        (true, Some(Route::Socket)) => Line::ok("xenstore", format!("by the socket {path}")),
        (true, Some(Route::Device)) => {
            Line::ok("xenstore", format!("by the kernel's device {path}"))
        }
        (true, _) => Line::ok("xenstore", "reached"),
        (false, _) => {
            let error = fact.error.as_deref().unwrap_or("not asked");
            let found = format!("{}: {error}", remedy::NO_XENSTORE);
            Line::problem("xenstore", found).remedy(remedy::START_XENSTORED)
        }
    }
}

fn domain(facts: &Facts) -> Line {
    match facts.domid {
        Some(0) => Line::ok("domain", "0: this is dom0"),
        Some(own) => Line::ok("domain", format!("{own}: this is a driver domain")),
        None if facts.xenstore.reachable => {
            Line::problem("domain", remedy::NO_OWN_DOMAIN).remedy(remedy::INIT_DOM0)
        }
        None => Line::note("domain", "not known: xenstore cannot be asked"),
    }
}

fn features(facts: &Facts) -> Line {
    let id = "features";
    let Some(features) = &facts.features else {
        return Line::note(id, "this domain's feature word cannot be read")
            .remedy(remedy::SYS_HYPERVISOR);
    };
    let meaning = match features.mapping.as_str() {
        "OneToOne" => "this domain's frames are the machine's",
        "Translated" => "this domain's frames are not the machine's",
        _ => "swiotlb-xen has nothing to do here",
    };
    let why = match (features.contradictory, features.legacy_rule) {
        (true, _) => ", though both bits say so and its contrary, which Xen never does",
        (false, true) if features.initial_domain => {
            ", by the rule of old: neither bit is set, and this is the initial domain on Arm"
        }
        (false, true) => ", by the rule of old: neither bit is set",
        (false, false) => "",
    };
    let found = format!("{}: {}, {meaning}{why}", features.word, features.mapping);
    match features.contradictory {
        true => Line::note(id, found),
        false => Line::ok(id, found),
    }
}

fn grants(facts: &Facts) -> Option<Line> {
    let limit = facts.limits.gntdev_grants?;
    let found = format!("gntdev maps up to {limit} at once");
    Some(match limit < GNTDEV_DEFAULT {
        true => Line::note("grants", found).remedy(format!(
            "large requests over several pages may be refused: the kernel's own limit is \
             {GNTDEV_DEFAULT} (`limit` of the module xen_gntdev)"
        )),
        false => Line::ok("grants", found),
    })
}

fn open_files(facts: &Facts) -> Line {
    let id = "open_files";
    let files = &facts.limits.open_files;
    let (Some(soft), Some(devices)) = (files.soft, files.devices) else {
        return Line::ok(id, "no limit");
    };
    let hard = files.hard.map_or("none".into(), |hard| hard.to_string());
    let found = format!(
        "{soft} (at most {hard}): enough for {devices} devices of one queue, each in a guest of its \
         own"
    );
    match devices {
        0 => Line::problem(id, found).remedy(remedy::MORE_FILES),
        1..FEW_DEVICES => Line::note(id, found).remedy(remedy::MORE_FILES),
        _ => Line::ok(id, found),
    }
}

fn locked_memory(facts: &Facts) -> Line {
    let limit = match facts.limits.locked_memory {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "no limit".to_owned(),
    };
    // mappings of guests' memory are the kernel's affair, not locked pages
    Line::ok(
        "locked_memory",
        format!("{limit}: enough, nothing is locked"),
    )
}

fn mappings(facts: &Facts) -> Option<Line> {
    let count = facts.limits.mappings?;
    let guests = facts.guests_memory.as_deref().unwrap_or_default();
    let largest = (0..=MOST_GIGABYTES)
        .rev()
        .find(|gigabytes| mappings_for([gigabytes << 30]) <= count);
    let needed = mappings_for(guests.iter().copied());
    let alone = match largest {
        Some(gigabytes) => format!("enough for a guest of {gigabytes} GiB"),
        None => "not enough for a guest".to_owned(),
    };
    let found = format!(
        "{count} (vm.max_map_count): {alone} by plain addresses; for the {} here it takes {needed}",
        guests.len()
    );
    let enough = needed <= count && largest.is_some_and(|gigabytes| gigabytes > 0);
    Some(match enough {
        true => Line::ok("mappings", found),
        false => Line::note("mappings", found).remedy(format!(
            "one with grants takes none; for others `sysctl -w vm.max_map_count={}`",
            needed.max(mappings_for([1 << 30])).next_power_of_two()
        )),
    })
}

/// Mappings that a process with guests of so many bytes may come to have.
fn mappings_for(guests: impl IntoIterator<Item = u64>) -> u64 {
    let guests = guests.into_iter().map(most_mappings);
    guests.fold(OWN_MAPPINGS, u64::saturating_add)
}
