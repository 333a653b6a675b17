//! The program as a user calls it: what it says, and how it ends.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Output};

fn xen_dm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xen-dm"))
        .args(arguments)
        .output()
        .unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_tells_its_version() {
    let output = xen_dm(&["--version"]);

    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), concat!("xen-dm ", env!("CARGO_PKG_VERSION")));
    assert!(output.status.success());
}

#[test]
fn help_lists_the_exit_codes() {
    let text = String::from_utf8(xen_dm(&["--help"]).stdout).unwrap();

    assert!(text.contains("3  configuration refused"), "{text}");
}

#[test]
fn a_command_line_that_is_none_ends_with_2() {
    assert_eq!(xen_dm(&["deamon"]).status.code(), Some(2));
}

#[test]
fn a_configuration_that_is_refused_ends_with_3_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let (file, state) = (
        directory.path().join("bad.toml"),
        directory.path().join("state"),
    );
    fs::write(&file, format!("state-dir = {state:?}\n\nunknown-key = 1\n")).unwrap();

    let output = xen_dm(&["daemon", "--config", file.to_str().unwrap()]);

    let text = complaint(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("bad.toml, line 3") && text.contains("unknown-key"),
        "{text}"
    );
    assert!(!state.exists());
}

#[test]
fn a_configuration_that_is_not_there_ends_with_3() {
    let output = xen_dm(&["daemon", "--config", "/nonexistent/xen-dm.toml"]);

    assert_eq!(output.status.code(), Some(3));
    assert!(complaint(&output).contains("/nonexistent/xen-dm.toml"));
}

#[test]
fn a_log_filter_that_is_none_ends_with_3() {
    let output = Command::new(env!("CARGO_BIN_EXE_xen-dm"))
        .arg("daemon")
        .env("XEN_DM_LOG", "vmm=loud")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(3));
    assert!(complaint(&output).contains("XEN_DM_LOG"));
}

#[test]
fn an_image_that_is_there_twice_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    fs::write(&image, [0; 4096]).unwrap();
    let disk = format!("--device=blk,path={}", image.display());
    let socket = |name| format!("--socket={}", directory.path().join(name).display());

    let output = xen_dm(&["vhost-user", &socket("a"), &disk, &socket("b"), &disk]);

    let text = complaint(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("disk.img is the image of two devices"),
        "{text}"
    );
    assert!(!text.contains("waiting for it"), "{text}");
}

#[test]
fn a_device_that_cannot_be_read_ends_with_2_and_names_the_key() {
    let output = xen_dm(&[
        "run",
        "--domid",
        "5",
        "--device",
        "blk,path=/a,queue-size=3",
    ]);

    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("queue-size 3"));
}

#[test]
fn a_guest_has_to_be_named() {
    let output = xen_dm(&["run"]);

    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("--domid"));
}

#[test]
fn a_guest_that_no_run_serves_is_told_as_such() {
    let output = xen_dm(&["status", "--domid=4711"]);

    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("no `xen-dm run` of guest 4711"), "{text}");
}

#[test]
fn devices_in_one_place_are_a_wrong_command_line() {
    let output = xen_dm(&["run", "--domid=5", "--disk=/a,irq=40", "--disk=/b,irq=40"]);

    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("device 2 has interrupt 40"), "{text}");
}

#[test]
fn check_says_the_same_in_text_and_in_json_and_ends_with_its_verdicts_code() {
    let (text, json) = (xen_dm(&["check"]), xen_dm(&["check", "--json"]));

    let report: vmm::check::Report = serde_json::from_slice(&json.stdout).unwrap();
    let verdict = if report.can_serve { 0 } else { 4 };
    assert_eq!(text.status.code(), Some(verdict));
    assert_eq!(json.status.code(), Some(verdict));
    let text = String::from_utf8(text.stdout).unwrap();
    for line in &report.lines {
        let name = line.id.replace('_', " ");
        let start = format!("{:<8} {name}", line.severity.name());
        assert!(text.contains(start.trim_end()), "{start} in {text}");
    }
}

#[test]
fn check_looks_at_a_configuration_alone_where_one_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("xen-dm.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        xen_dm(&["check", "--config", file.to_str().unwrap()])
    };

    let good = check("log = \"info\"\n");
    let bad = check("\nlog = \"loud\"\n");

    assert_eq!(good.status.code(), Some(0), "{}", complaint(&good));
    assert_eq!((good.stdout, good.stderr), (Vec::new(), Vec::new()));
    assert_eq!(bad.status.code(), Some(3));
    let text = complaint(&bad);
    assert!(
        text.contains("line 2") && text.contains("xen-dm.toml"),
        "{text}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_ends_nothing_with_an_error() {
    for arguments in [&["check"][..], &["check", "--json"], &["demo"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);

        let output = Command::new(env!("CARGO_BIN_EXE_xen-dm"))
            .args(arguments)
            .stdout(writer)
            .output()
            .unwrap();

        assert_eq!(complaint(&output), "", "{arguments:?}");
        assert_ne!(output.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn status_without_a_daemon_says_how_to_start_one_and_ends_with_6() {
    let output = xen_dm(&["status", "--socket", "/nonexistent/control.sock"]);

    let text = complaint(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("/nonexistent/control.sock"), "{text}");
    assert!(text.contains("xen-dm daemon"), "{text}");
}

#[test]
fn status_says_where_no_daemon_can_run_at_all() {
    let output = xen_dm(&["status", "--socket", "/nonexistent/control.sock"]);
    let json = xen_dm(&["check", "--json"]);

    let report: vmm::check::Report = serde_json::from_slice(&json.stdout).unwrap();
    let says_so = complaint(&output).contains("does not run on Xen");
    assert_eq!(says_so, !report.facts.on_xen);
}
