//! What a user may say about a console.

use super::*;
use crate::console::size::Size;

fn read(keys: &str) -> Result<ConsoleConfig, toml::de::Error> {
    toml::from_str(keys)
}

#[test]
fn nothing_said_is_a_terminal_of_80_by_24_that_loses_nothing() {
    let config = read("").unwrap();
    let spec = config.clone().validate().unwrap();

    assert_eq!(config, ConsoleConfig::default());
    assert!(!spec.multiport && spec.further.is_empty());
    let port = spec.first;
    assert_eq!(port.target, Target::Pty { link: None });
    assert_eq!(port.size, Some(Size { cols: 80, rows: 24 }));
    assert_eq!((port.when_full, port.buffer), (WhenFull::Hold, 256 << 10));
    assert_eq!((&port.name, &port.log), (&None, &None));
}

#[test]
fn backends_are_named_in_lower_case() {
    let socket = read("backend = 'socket'\npath = '/run/c.sock'").unwrap();
    let file = read("backend = 'file'\npath = '/c.log'\nwhen-full = 'hold'").unwrap();

    assert_eq!(socket, ConsoleConfig::socket("/run/c.sock"));
    assert_eq!(file.when_full, Some(WhenFull::Hold));
    assert!(read("backend = 'Socket'").is_err());
}

#[test]
fn a_key_that_does_not_exist_is_named() {
    let error = read("bufer = 4096").unwrap_err().to_string();

    assert!(error.contains("bufer") && error.contains("buffer"));
}

#[test]
fn a_full_disk_stops_no_guest_unless_that_is_asked_for() {
    let file = ConsoleConfig::file("/c.log");
    let socket = ConsoleConfig::socket("/c.sock");

    assert_eq!(file.validate().unwrap().first.when_full, WhenFull::Drop);
    assert_eq!(socket.validate().unwrap().first.when_full, WhenFull::Hold);
}

#[test]
fn values_out_of_bounds_are_refused_by_name() {
    let with = |change: fn(&mut ConsoleConfig)| {
        let mut config = ConsoleConfig::default();
        change(&mut config);
        config.validate().unwrap_err()
    };

    let errors = [
        with(|config| config.backend = Backend::Socket),
        with(|config| config.backend = Backend::File),
        with(|config| config.path = Some(PathBuf::new())),
        with(|config| *config = ConsoleConfig::socket("/".repeat(108))),
        with(|config| config.buffer = 4095),
        with(|config| config.buffer = (16 << 20) + 1),
        with(|config| config.cols = Some(80)),
        with(|config| config.rows = Some(24)),
        with(|config| (config.cols, config.rows) = (Some(0), Some(1))),
        with(|config| (config.cols, config.rows) = (Some(1), Some(0))),
        with(|config| config.queue_size = 1),
        with(|config| config.queue_size = 96),
        with(|config| config.queue_size = 2048),
        with(|config| config.name = Some("two words".into())),
        with(|config| config.name = Some("a/b".into())),
        with(|config| config.name = Some(String::new())),
        with(|config| config.name = Some("n".repeat(65))),
        with(|config| config.log = Some(PathBuf::new())),
        with(|config| config.log_size = Some(4096)),
        with(|config| config.log_files = Some(1)),
        with(|config| (config.log, config.log_size) = (Some("/l".into()), Some(4095))),
        with(|config| (config.log, config.log_files) = (Some("/l".into()), Some(100))),
        with(|config| config.port = vec![PortConfig::socket("a", "/a"); 16]),
        with(|config| config.port = vec![PortConfig::socket("", "/a")]),
    ];

    for error in errors {
        let (text, key) = (error.to_string(), error.key());
        let key = key.split('.').next().unwrap();
        assert!(text.starts_with(key), "{text}");
    }
}

const PORTS: &str = "
    backend = 'socket'
    path = '/run/c.sock'
    log = '/log/c'
    [[port]]
    name = 'org.example.agent'
    backend = 'socket'
    path = '/run/agent.sock'
    log = '/log/agent'
    log-size = 65536
    log-files = 2
    [[port]]
    name = 'second'
    console = true
";

#[test]
fn further_ports_have_names_and_are_no_consoles_unless_that_is_said() {
    let spec = read(PORTS).unwrap().validate().unwrap();

    let first = &spec.first;
    let [agent, second] = spec.further.as_slice() else {
        panic!("{} further ports", spec.further.len());
    };
    assert!(spec.multiport);
    assert_eq!((&first.name, first.console), (&None, true));
    assert_eq!(agent.name.as_deref(), Some("org.example.agent"));
    assert_eq!((agent.console, agent.size), (false, None));
    assert_eq!(second.target, Target::Pty { link: None });
    assert!(second.console && second.size.is_some());
}

#[test]
fn a_log_has_a_limit_whether_it_is_said_or_not() {
    let spec = read(PORTS).unwrap().validate().unwrap();

    let further = spec.further.into_iter().map(|port| port.log);
    let logs: Vec<_> = [spec.first.log].into_iter().chain(further).collect();
    let log = |path: &str, size, files| {
        let path = path.into();
        Some(LogSpec { path, size, files })
    };
    let expected = [log("/log/c", 1 << 20, 4), log("/log/agent", 65536, 2), None];
    assert_eq!(logs, expected);
}

#[test]
fn a_name_makes_one_port_of_several() {
    let config = ConsoleConfig {
        name: Some("main".into()),
        ..ConsoleConfig::default()
    };

    assert!(config.validate().unwrap().multiport);
}

#[test]
fn what_is_wrong_with_a_port_is_told_with_its_name() {
    let refused = |port: PortConfig| {
        let config = ConsoleConfig {
            port: vec![PortConfig::socket("first", "/first"), port],
            log: Some("/log".into()),
            ..ConsoleConfig::default()
        };
        config.validate().unwrap_err()
    };
    let other = || PortConfig::socket("other", "/other");

    for (port, key, told) in [
        (
            PortConfig {
                name: None,
                ..other()
            },
            "name",
            &["name is missing"][..],
        ),
        (
            PortConfig {
                buffer: 1,
                ..other()
            },
            "buffer",
            &["other", "buffer 1"],
        ),
        (
            PortConfig {
                path: None,
                ..other()
            },
            "path",
            &["other", "path"],
        ),
        (
            PortConfig {
                cols: Some(80),
                rows: Some(24),
                ..other()
            },
            "cols",
            &["other", "cols 80", "console = true"],
        ),
        (PortConfig::socket("first", "/x"), "name", &["first"]),
        (
            PortConfig::socket("other", "/first"),
            "path",
            &["other", "path /first"],
        ),
        (
            PortConfig {
                log: Some("/log".into()),
                ..other()
            },
            "log",
            &["other", "log /log"],
        ),
    ] {
        let error = refused(port);

        let text = error.to_string();
        assert_eq!(error.key(), format!("port.1.{key}"));
        assert!(told.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn a_key_of_a_port_that_does_not_exist_is_named() {
    let error = read("[[port]]\nnome = 'x'").unwrap_err().to_string();

    assert!(error.contains("nome") && error.contains("when-full"));
}

#[test]
fn paths_are_told_with_the_port_that_they_belong_to() {
    let config = read(PORTS).unwrap();

    let paths: Vec<_> = config
        .paths()
        .map(|(key, path)| (key.into_owned(), path.to_str().unwrap()))
        .collect();

    let expected = [
        ("path", "/run/c.sock"),
        ("log", "/log/c"),
        ("port.0.path", "/run/agent.sock"),
        ("port.0.log", "/log/agent"),
    ];
    assert_eq!(paths, expected.map(|(key, path)| (key.to_owned(), path)));
}
