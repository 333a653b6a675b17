//! What the command line takes, and how it ends.

use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_daemon_takes_a_file_and_force() {
    let cli = Cli::try_parse_from(["xen-dm", "daemon", "--config", "/f", "--force"]).unwrap();

    let Command::Daemon(args) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!(args.config.as_deref(), Some("/f".as_ref()));
    assert!(args.force);
}

#[test]
fn run_takes_several_disks_and_devices_with_a_first_place() {
    let cli = Cli::try_parse_from([
        "xen-dm",
        "run",
        "--domid",
        "5",
        "--disk",
        "/a",
        "--disk",
        "/b,readonly",
        "--device",
        "blk,path=/c,mmio=0xa000000",
        "--mmio",
        "0x2000400",
        "--grants",
    ])
    .unwrap();

    let Command::Run(args) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!((args.domid, args.disk.len(), args.device.len()), (5, 2, 1));
    assert_eq!((args.mmio, args.irq, args.grants), (0x0200_0400, 33, true));
    assert_eq!(args.device[0].mmio, Some(0x0a00_0000));
}

#[test]
fn places_without_devices_are_refused() {
    for option in ["--mmio=0x2000000", "--irq=40", "--grants"] {
        let refused = Cli::try_parse_from(["xen-dm", "run", "--domid", "5", option]);

        let error = refused.unwrap_err().to_string();
        assert!(error.contains("--disk"), "{option}: {error}");
    }
}

#[test]
fn run_is_told_whether_the_guest_is_direct_mapped() {
    let told = |word: Option<&str>| {
        let words = ["xen-dm", "run", "--domid", "5"].into_iter().chain(word);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Run(args) = cli.command else {
            panic!("{:?}", cli.command)
        };
        Ok::<_, String>(args.direct_mapped)
    };

    assert_eq!(told(None), Ok(None));
    assert_eq!(told(Some("--direct-mapped")), Ok(Some(true)));
    assert_eq!(told(Some("--direct-mapped=true")), Ok(Some(true)));
    assert_eq!(told(Some("--direct-mapped=false")), Ok(Some(false)));
    let refused = told(Some("--direct-mapped=1")).unwrap_err();
    assert!(refused.contains("'1'"), "{refused}");
}

#[test]
fn the_first_place_is_libxls() {
    let cli = Cli::try_parse_from(["xen-dm", "run", "--domid", "5"]).unwrap();

    let Command::Run(args) = cli.command else {
        panic!("{:?}", cli.command)
    };
    let Places { mmio, irq, grants } = Places::default();
    assert_eq!((args.mmio, args.irq, args.grants), (mmio, irq, grants));
}

#[test]
fn help_on_force_says_what_happens_to_guests() {
    let mut command = Cli::command();
    let daemon = command.find_subcommand_mut("daemon").unwrap();

    let help = daemon.render_long_help().to_string();

    assert!(help.contains("their disks are gone"));
}

#[test]
fn the_list_in_the_help_on_devices_is_a_device() {
    let mut command = Cli::command();
    let run = command.find_subcommand_mut("run").unwrap();
    let help = run.render_long_help().to_string();
    // lines are broken where they are too long
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let example = help.split('`').find(|part| part.starts_with("console,"));

    let device: DeviceArgument = example.unwrap().parse().unwrap();

    assert_eq!(device.device.kind().name, "console");
}

#[test]
fn the_cause_of_a_failure_to_start_stands_before_its_remedy() {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let xenstore = xen::xenstore::Error::Unavailable {
        tried: vec![("/x".into(), refused)],
    };

    let text = explained(&StartError::Xenstore(xenstore));

    let places = ["cannot be reached", "connection refused", "start it"];
    let places = places.map(|words| text.find(words).unwrap());
    assert!(places.is_sorted(), "{text}");
    assert!(text.ends_with("xencommons)"), "{text}");
}

#[test]
fn every_failure_to_start_has_its_exit_code() {
    let running = StateError::Running {
        lock: "/l".into(),
        pid: None,
    };

    assert_eq!(exit_of(&StartError::NoIoreqServer), Exit::Host);
    assert_eq!(exit_of(&StartError::State(running)), Exit::Running);
}
