use std::fs;

use xen::DomId;

use super::*;

/// No process has it: above the largest number Linux gives.
const NOBODY: u32 = 5_000_000;

fn write(directory: &Path, domid: u16, maker: Maker) {
    let record = ServerRecord {
        domid,
        uuid: None,
        server: 1,
        maker,
    };
    record
        .write(&directory.join(format!("{PREFIX}{domid}{SUFFIX}")))
        .unwrap();
}

#[test]
fn a_second_daemon_is_refused_and_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let first = StateDir::open(directory.path()).unwrap();

    let refused = StateDir::open(directory.path()).unwrap_err();
    drop(first);
    let after = StateDir::open(directory.path());

    let text = refused.to_string();
    assert!(
        matches!(refused, StateError::Running { pid: Some(pid), .. } if pid == std::process::id())
    );
    assert!(text.contains("another xen-dm daemon"), "{text}");
    assert!(after.is_ok());
}

#[test]
fn the_directory_is_made_and_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("run/xen-dm");

    let _state = StateDir::open(&path).unwrap();

    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let error = StateDir::open(Path::new("/proc/xen-dm")).unwrap_err();

    assert!(error.to_string().contains("/proc/xen-dm"));
}

#[test]
fn a_record_is_removed_with_its_server() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let file = directory.path().join("domain-7.json");

    let recorded = state.record(DomId(7), Some("some-uuid"), 3).unwrap();
    let written = ServerRecord::read(&file).unwrap();
    recorded.remove();

    assert_eq!((written.domid, written.server), (7, 3));
    assert_eq!(written.uuid.as_deref(), Some("some-uuid"));
    assert_eq!(written.maker, Maker::this_process());
    assert!(!file.exists());
}

#[test]
fn records_of_dead_processes_and_of_earlier_runs_are_stale() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    write(
        directory.path(),
        1,
        Maker {
            pid: NOBODY,
            start_time: 1,
        },
    );
    write(directory.path(), 2, Maker::this_process());
    // the number was given to another process since
    write(
        directory.path(),
        3,
        Maker {
            pid: 1,
            start_time: u64::MAX,
        },
    );

    let mut stale: Vec<u16> = state
        .stale()
        .unwrap()
        .into_iter()
        .map(|(record, _)| record.domid)
        .collect();

    stale.sort_unstable();
    assert_eq!(stale, [1, 2, 3]);
}

#[test]
fn records_of_a_living_process_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let other = std::process::Command::new("sleep").arg("60").spawn();
    let mut other = other.unwrap();
    write(directory.path(), 1, Maker::of(other.id()).unwrap());

    let stale = state.stale().unwrap().len();

    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(stale, 0);
}

#[test]
fn files_that_are_no_records_are_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    fs::write(directory.path().join("domain-1.json"), "{").unwrap();
    fs::write(directory.path().join("notes"), "").unwrap();

    assert!(state.stale().unwrap().is_empty());
}
