use xen::DomId;
use xen::fake::{Machine, MachineConfig, PrivcmdEventfd};
use xen::host::HostFile;

use super::*;

/// The report of a fake host that lacks something.
fn check(change: impl FnOnce(&mut MachineConfig)) -> Report {
    let mut config = MachineConfig::default();
    change(&mut config);
    let machine = Machine::with_config(config).unwrap();
    run(&Host::Fake(machine))
}

#[track_caller]
fn line<'a>(report: &'a Report, id: &str) -> &'a Line {
    let mut lines = report.lines.iter();
    lines.find(|line| line.id == id).unwrap()
}

fn problems(report: &Report) -> Vec<&str> {
    let lines = report.lines.iter();
    lines
        .filter(|line| line.severity == Severity::Problem)
        .map(|line| line.id.as_str())
        .collect()
}

#[test]
fn a_host_with_everything_can_serve() {
    let report = check(|_| {});

    assert_eq!(problems(&report), [""; 0]);
    assert!(report.can_serve);
    assert_eq!(line(&report, "xen").found, "Xen 4.20");
    assert_eq!(line(&report, "domain").severity, Severity::Ok);
    assert_eq!(line(&report, "irqfd").severity, Severity::Ok);
    assert_eq!(line(&report, "restriction").severity, Severity::Ok);
    assert_eq!(line(&report, "xenstore").severity, Severity::Ok);
    assert_eq!(report.facts.domid, Some(0));
}

#[test]
fn a_host_without_xen_has_one_problem_and_its_remedy() {
    let report = check(|machine| machine.on_xen = false);

    let ids: Vec<&str> = report.lines.iter().map(|line| line.id.as_str()).collect();
    assert_eq!(problems(&report), ["xen"]);
    assert!(!report.can_serve);
    assert!(
        !ids.contains(&"xenstore") && ids.contains(&"open_files"),
        "{ids:?}"
    );
    let remedy = line(&report, "xen").remedy.as_deref().unwrap();
    assert!(remedy.contains("xen-dm demo"), "{remedy}");
}

#[test]
fn a_missing_device_file_names_its_module() {
    for (file, id) in [
        (HostFile::Privcmd, "privcmd"),
        (HostFile::Gntdev, "gntdev"),
        (HostFile::Evtchn, "evtchn"),
    ] {
        let report = check(|machine| machine.closed_files = vec![(file, libc::ENOENT)]);

        assert_eq!(problems(&report), [id]);
        let line = line(&report, id);
        assert!(line.found.contains("is missing"), "{line:?}");
        let remedy = line.remedy.as_deref().unwrap();
        assert!(remedy.contains(&format!("modprobe xen-{id}")), "{remedy}");
    }
}

#[test]
fn a_forbidden_device_file_says_who_may() {
    let report = check(|machine| {
        machine.closed_files = vec![(HostFile::Privcmd, libc::EACCES)];
    });

    assert_eq!(problems(&report), ["privcmd"]);
    assert!(line(&report, "privcmd").found.contains("may not be opened"));
    assert_eq!(report.facts.files[0].state, FileState::Forbidden);
    // what depends on it is not known, and is no problem of its own
    assert_eq!(line(&report, "ioreq_server").severity, Severity::Note);
    assert_eq!(report.facts.irqfd, Eventfd::NotAsked);
}

#[test]
fn files_that_no_device_model_needs_are_notes() {
    let report = check(|machine| {
        machine.closed_files = vec![
            (HostFile::Gntalloc, libc::ENOENT),
            (HostFile::Xenbus, libc::ENOENT),
        ];
    });

    assert!(report.can_serve);
    assert_eq!(line(&report, "gntalloc").severity, Severity::Note);
    assert_eq!(line(&report, "xenbus").severity, Severity::Note);
}

#[test]
fn a_xen_without_ioreq_servers_says_how_to_build_one() {
    let report = check(|machine| machine.ioreq_server = false);

    assert_eq!(problems(&report), ["ioreq_server"]);
    let line = line(&report, "ioreq_server");
    assert!(line.found.contains("Debian's Xen"), "{line:?}");
    assert!(line.remedy.as_deref().unwrap().contains("IOREQ_SERVER=y"));
}

#[test]
fn a_kernel_without_eventfds_is_a_note_that_tells_old_from_unconfigured() {
    let old = check(|machine| machine.privcmd_eventfd = PrivcmdEventfd::Unknown);
    let bare = check(|machine| machine.privcmd_eventfd = PrivcmdEventfd::NotConfigured);

    assert!(old.can_serve && bare.can_serve);
    assert_eq!(old.facts.irqfd, Eventfd::TooOld);
    assert_eq!(bare.facts.ioeventfd, Eventfd::NotConfigured);
    let line = line(&bare, "irqfd");
    assert_eq!(line.severity, Severity::Note);
    assert!(line.remedy.as_deref().unwrap().contains("hypercall"));
}

#[test]
fn a_privcmd_without_a_target_serves_nobody() {
    let report = check(|machine| machine.privcmd_domain = Some(DomId(0x7fff)));

    assert_eq!(problems(&report), ["restriction"]);
    let line = line(&report, "restriction");
    let remedy = line.remedy.as_deref().unwrap();
    assert!(remedy.contains("privcmd.unrestricted=1"), "{remedy}");
    assert_eq!(report.facts.ioreq_server, IoreqServer::Forbidden);
}

#[test]
fn a_privcmd_with_a_target_serves_that_guest() {
    let machine = Machine::with_config(MachineConfig {
        privcmd_domain: Some(DomId(5)),
        ..MachineConfig::default()
    })
    .unwrap();
    machine
        .store()
        .write("/local/domain/0/target", "5")
        .unwrap();

    let report = run(&Host::Fake(machine));

    assert!(report.can_serve);
    assert_eq!(report.facts.target, Some(5));
    assert!(line(&report, "restriction").found.contains("domain 5"));
}

#[test]
fn a_xenstored_that_does_not_take_connections_is_a_problem() {
    let machine = Machine::new().unwrap();
    machine.store().set_accepting(false);

    let report = run(&Host::Fake(machine));

    assert_eq!(problems(&report), ["xenstore"]);
    let line = line(&report, "xenstore");
    assert!(line.remedy.as_deref().unwrap().contains("xenstored"));
    assert_eq!(report.facts.domid, None);
}

#[test]
fn a_dom0_that_was_not_initialised_says_so() {
    let machine = Machine::new().unwrap();
    machine.store().rm("/local/domain/0/domid").unwrap();

    let report = run(&Host::Fake(machine));

    assert_eq!(problems(&report), ["domain"]);
    let remedy = line(&report, "domain").remedy.as_deref().unwrap();
    assert!(remedy.contains("xen-init-dom0"), "{remedy}");
}

#[test]
fn the_feature_word_is_explained() {
    let word = |features| {
        let report = check(|machine| machine.features = features);
        let facts = report.facts.features.clone().unwrap();
        (facts, line(&report, "features").clone())
    };

    let (direct, _) = word(0x0006_6805);
    let (translated, _) = word(0x0005_6005);
    let (legacy, said) = word(0x0000_0805);
    let (neither, _) = word(0x0000_0005);
    let (both, doubted) = word(0x0003_0005);

    assert_eq!(
        (direct.word.as_str(), direct.mapping.as_str()),
        ("00066805", "OneToOne")
    );
    assert!(direct.linux_swiotlb && direct.initial_domain && !direct.legacy_rule);
    assert_eq!(translated.mapping, "Translated");
    assert_eq!(
        (legacy.mapping.as_str(), legacy.legacy_rule),
        ("OneToOne", true)
    );
    assert!(said.found.contains("by the rule of old"), "{said:?}");
    assert_eq!(
        (neither.mapping.as_str(), neither.legacy_rule),
        ("Translated", true)
    );
    assert_eq!(
        (both.mapping.as_str(), both.contradictory),
        ("OneToOne", true)
    );
    assert_eq!(doubted.severity, Severity::Note);
}

#[test]
fn a_lowered_limit_of_gntdev_is_a_note() {
    let report = check(|machine| machine.gntdev_limit = 128);

    assert!(report.can_serve);
    assert_eq!(line(&report, "grants").severity, Severity::Note);
}

#[test]
fn limits_are_judged_by_the_devices_that_fit() {
    let judged = |soft, devices| {
        let mut facts = check(|_| {}).facts;
        facts.limits.open_files = OpenFiles {
            soft,
            hard: None,
            devices,
        };
        let lines = judge(&facts);
        lines
            .into_iter()
            .find(|line| line.id == "open_files")
            .unwrap()
            .severity
    };

    assert_eq!(judged(None, None), Severity::Ok);
    assert_eq!(judged(Some(65536), Some(2000)), Severity::Ok);
    assert_eq!(judged(Some(200), Some(5)), Severity::Note);
    assert_eq!(judged(Some(20), Some(0)), Severity::Problem);
}

#[test]
fn a_file_whose_opening_does_not_return_is_a_problem() {
    let mut facts = check(|_| {}).facts;
    facts.files[0].state = FileState::Silent;

    let lines = judge(&facts);

    let line = lines.iter().find(|line| line.id == "privcmd").unwrap();
    assert_eq!(line.severity, Severity::Problem);
    assert!(line.found.contains("does not return"));
}

#[test]
fn the_json_has_the_documented_keys_and_reads_back() {
    let report = check(|machine| machine.ioreq_server = false);

    let json = serde_json::to_value(&report).unwrap();

    assert_eq!(json["version"], 1);
    assert_eq!(json["can_serve"], false);
    assert_eq!(json["facts"]["ioreq_server"], "absent");
    assert_eq!(json["facts"]["irqfd"], "available");
    assert_eq!(json["facts"]["files"][0]["state"], "open");
    assert_eq!(json["facts"]["xenstore"]["route"], "stream");
    assert_eq!(json["lines"][0]["id"], "xen");
    assert_eq!(json["lines"][0]["severity"], "ok");
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
}

#[test]
fn the_table_fits_a_terminal_and_has_each_line_once() {
    let report = check(|machine| {
        machine.ioreq_server = false;
        machine.closed_files = vec![(HostFile::Gntdev, libc::ENOENT)];
        machine.privcmd_eventfd = PrivcmdEventfd::Unknown;
    });
    let mut out = Vec::new();

    print(&report, &mut out).unwrap();

    let text = String::from_utf8(out).unwrap();
    assert!(
        text.lines().all(|line| line.chars().count() <= 98),
        "{text}"
    );
    assert_eq!(text.matches("\nproblem ").count(), 2, "{text}");
    assert!(
        text.contains("-> load the kernel module xen-gntdev"),
        "{text}"
    );
    assert!(text.ends_with("No guest can be served here: see the problems above.\n"));
}

#[test]
fn the_memory_of_each_guest_that_is_here_is_found() {
    let machine = Machine::new().unwrap();
    let store = machine.store();
    store
        .write("/local/domain/0/memory/static-max", "1")
        .unwrap();
    store
        .write("/local/domain/3/memory/static-max", "2048")
        .unwrap();
    store.write("/local/domain/4/name", "hides it").unwrap();

    let report = run(&Host::Fake(machine));

    assert_eq!(report.facts.guests_memory, Some(vec![2 << 20]));
}

#[test]
fn too_few_mappings_for_the_guests_that_are_here_are_a_note_with_a_number() {
    let facts = check(|_| {}).facts;
    let judged = |mappings, guests: &[u64]| {
        let mut facts = facts.clone();
        facts.limits.mappings = Some(mappings);
        facts.guests_memory = Some(guests.to_vec());
        let lines = judge(&facts);
        lines
            .into_iter()
            .find(|line| line.id == "mappings")
            .unwrap()
    };

    let none = judged(65_530, &[]);
    let fit = judged(65_530, &[32 << 30, 1 << 30]);
    let many = judged(65_530, &[1 << 30; 30]);
    let large = judged(65_530, &[64 << 30]);
    let raised = judged(131_072, &[64 << 30]);
    let lowered = judged(3_000, &[]);

    assert!(none.found.contains("a guest of 60 GiB"), "{none:?}");
    let severities = [&none, &fit, &many, &large, &raised, &lowered].map(|line| line.severity);
    use Severity::{Note, Ok};
    assert_eq!(severities, [Ok, Ok, Note, Note, Ok, Note]);
    let remedy = large.remedy.unwrap();
    assert!(remedy.contains("vm.max_map_count=131072"), "{remedy}");
    assert!(
        lowered.found.contains("not enough for a guest"),
        "{lowered:?}"
    );
}
