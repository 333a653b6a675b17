mod types;

use devices::registry::DeviceConfig;
use devices::virtio::DeviceType;

use super::*;

fn refused(text: &str) -> String {
    Config::parse(Path::new("/etc/xen-dm.toml"), text)
        .unwrap_err()
        .to_string()
}

fn parsed(text: &str) -> Config {
    Config::parse(Path::new("/etc/xen-dm.toml"), text).unwrap()
}

fn disk_of(config: &Config, guest: &str, name: &str) -> devices::blk::BlkConfig {
    let disk = devices::blk::BlkConfig::new("/disk.img");
    config
        .guest(guest, None)
        .disk(Some(name), 51712)
        .apply(disk)
}

#[test]
fn an_empty_file_says_nothing() {
    let config = parsed("");

    assert_eq!(config.log, LogLevel::Info);
    assert_eq!(config.state_dir, Path::new(STATE_DIR));
    assert_eq!(config.events, EventMode::Auto);
    assert_eq!(config.stop_warning(), Duration::from_secs(5));
    assert!(!config.allow_foreign_with_grants);
}

#[test]
fn the_example_is_a_configuration_and_says_what_it_describes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/xen-dm.toml");

    let config = Config::load(&path).unwrap();

    let web = config.guest("example-1", None);
    assert_eq!(web.allow_foreign_with_grants, Some(false));
    assert_eq!(web.events, Some(EventMode::Plain));
    let disk = disk_of(&config, "example-1", "xvda");
    assert_eq!(disk.serial.as_deref(), Some("example-root"));
    assert_eq!(disk.physical_block_size, Some(4096));
    let uuid = config.guest("any", Some("e9a3c1d2-0b7f-4d8e-9a41-3c5d7e9f1b20"));
    assert_eq!(uuid.virtio(0, DeviceType(2)).unwrap().kind().name, "blk");
    assert_eq!(uuid.virtio(1, DeviceType(4)).unwrap().kind().name, "rng");
    let console = uuid.virtio(2, DeviceType(3)).unwrap();
    assert_eq!(console.kind().name, "console");
    assert_eq!(uuid.virtio(3, DeviceType(9)), None);
    assert_eq!(uuid.virtio(3, DeviceType(19)).unwrap().kind().name, "vsock");
    assert_eq!(uuid.virtio(4, DeviceType(1)).unwrap().kind().name, "net");
    let files = uuid.virtio(5, DeviceType(26)).unwrap().kind();
    assert_eq!((files.name, files.device_type.0), ("vhost-user", 26));
}

#[test]
fn keys_that_name_no_disk_are_refused() {
    let names = [
        "xvda", "xvdaa1", "hdc", "sdb3", "d0", "d5p2", "51712", "0xca00",
    ];
    let mistakes = [
        "vda",
        "xvd",
        "xvd1a",
        "XVDA",
        "/dev/xvda",
        "d",
        "d1p",
        "-1",
        "xvd*",
        "",
        "051712",
        "+51712",
        "xvda0000001",
        "xvdzzzzzzzz",
    ];

    let refusals = mistakes.map(|key| {
        refused(&format!(
            "log = \"info\"\n[guest.a.disk.{key:?}]\nqueues = 1\n"
        ))
    });

    for name in names {
        parsed(&format!("[guest.a.disk.{name:?}]\nqueues = 1\n"));
    }
    for (key, text) in mistakes.iter().zip(refusals) {
        assert!(text.contains("line 2, key guest.a.disk."), "{text}");
        assert!(text.contains(&format!("{key:?} names no disk")), "{text}");
    }
}

#[test]
fn the_defaults_in_the_examples_comments_are_the_defaults() {
    let text = include_str!("../../../resources/xen-dm.toml");
    let defaults: String = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' ') && line.contains(" = "))
        .map(|line| format!("{line}\n"))
        .collect();

    let config = parsed(&defaults);

    assert_eq!(defaults.lines().count(), 8);
    assert_eq!(
        format!("{:?}", config.events),
        format!("{:?}", Config::default().events)
    );
    assert_eq!(config.swiotlb, Config::default().swiotlb);
    assert_eq!(config.granted_data, Config::default().granted_data);
    assert_eq!(config.log, Config::default().log);
    assert_eq!(config.state_dir, Config::default().state_dir);
    assert_eq!(
        config.control_socket(None),
        Config::default().control_socket(None)
    );
    assert_eq!(config.stop_warning(), Config::default().stop_warning());
    assert_eq!(
        config.allow_foreign_with_grants,
        Config::default().allow_foreign_with_grants
    );
}

#[test]
fn an_unknown_key_is_refused_with_file_and_line() {
    let text = refused("log = \"info\"\n\nserail = \"x\"\n");

    assert!(text.starts_with("/etc/xen-dm.toml, line 3"), "{text}");
    assert!(text.contains("serail"), "{text}");
}

#[test]
fn an_unknown_key_of_a_disk_is_refused_with_the_keys_above_it() {
    let text = refused("[guest.\"web-*\".disk.xvda]\nserial = \"a\"\nqueue_size = 8\n");

    assert!(text.starts_with("/etc/xen-dm.toml, line 3"), "{text}");
    assert!(text.contains("guest.\"web-*\".disk.xvda"), "{text}");
    assert!(text.contains("queue_size"), "{text}");
}

#[test]
fn a_value_of_the_wrong_kind_names_its_key() {
    let text = refused("log = \"info\"\n[guest.a.disk.xvda]\nqueue-size = \"big\"\n");

    assert!(
        text.starts_with("/etc/xen-dm.toml, line 3, key guest.a.disk.xvda.queue-size"),
        "{text}"
    );
}

#[test]
fn a_value_that_no_disk_can_have_names_its_line_key_and_value() {
    let text = refused("[guest.a.disk.xvda]\nserial = \"a\"\nqueue-size = 100\n");

    assert!(
        text.starts_with("/etc/xen-dm.toml, line 3, key guest.a.disk.xvda.queue-size"),
        "{text}"
    );
    assert!(text.contains("100"), "{text}");
}

#[test]
fn an_engine_that_does_not_serve_the_format_names_its_line_and_key() {
    let text = refused("[guest.a.disk.xvda]\nformat = \"qcow2\"\nengine = \"io-uring\"\n");
    let other = refused("[guest.a.disk.xvda]\nformat = \"vmdk\"\n");

    assert!(
        text.starts_with("/etc/xen-dm.toml, line 3, key guest.a.disk.xvda.engine"),
        "{text}"
    );
    assert!(text.contains("qcow2"), "{text}");
    assert!(other.starts_with("/etc/xen-dm.toml, line 2"), "{other}");
    assert!(other.contains("vmdk") && other.contains("raw"), "{other}");
}

/// What is behind a generic device.
fn behind(config: &Config, guest: &str, devid: u32, id: u32) -> Option<String> {
    let device = config.guest(guest, None);
    let device = device.virtio(devid, DeviceType(id))?;
    let DeviceConfig::Blk(disk) = device else {
        panic!("{device:?}")
    };
    Some(disk.path.display().to_string())
}

#[test]
fn a_devices_number_goes_before_its_type_and_both_before_patterns() {
    let config = parsed(
        "[guest.web.virtio.1.blk]\npath = \"/number\"\n\
         [guest.web.virtio.device2.blk]\npath = \"/type\"\n\
         [guest.web.virtio.\"device*\".blk]\npath = \"/pattern\"\n\
         [guest.web.virtio.\"*\".blk]\npath = \"/any\"\n",
    );

    assert_eq!(behind(&config, "web", 1, 2).as_deref(), Some("/number"));
    assert_eq!(behind(&config, "web", 0, 2).as_deref(), Some("/type"));
    assert_eq!(behind(&config, "web", 0, 4).as_deref(), Some("/pattern"));
    assert_eq!(behind(&config, "db", 1, 2), None);
}

#[test]
fn a_device_is_configured_with_the_keys_of_its_kind_and_no_others() {
    let text = refused("[guest.a.virtio.0.blk]\npath = \"/a\"\nsize = 3\n");

    assert!(text.starts_with("/etc/xen-dm.toml, line 3"), "{text}");
    assert!(
        text.contains("guest.a.virtio.0.blk") && text.contains("size"),
        "{text}"
    );
}

#[test]
fn a_kind_that_does_not_exist_is_refused() {
    let text = refused("\n[guest.a.virtio.0.gpu]\n");

    assert!(
        text.starts_with("/etc/xen-dm.toml, line 2, key guest.a.virtio.0"),
        "{text}"
    );
    assert!(text.contains("gpu") && text.contains("blk"), "{text}");
}

#[test]
fn a_value_that_no_device_can_have_names_its_line_key_and_value() {
    let text = refused("[guest.\"w*\".virtio.0.blk]\npath = \"/a\"\n\n# odd\nqueue-size = 100\n");

    let place = "/etc/xen-dm.toml, line 5, key guest.\"w*\".virtio.0.blk.queue-size";
    assert!(text.starts_with(place), "{text}");
    assert!(text.contains("queue-size 100"), "{text}");
}

#[test]
fn a_device_under_the_wrong_type_is_refused_naming_both() {
    let text = refused("[guest.a.virtio.device4.blk]\npath = \"/a\"\n");

    assert!(
        text.contains("line 1, key guest.a.virtio.device4"),
        "{text}"
    );
    assert!(
        text.contains("device4 is no blk, which is device2"),
        "{text}"
    );
}

#[test]
fn a_vhost_user_device_of_another_type_than_its_key_is_refused_with_both_remedies() {
    let text = refused(
        "[guest.a.virtio.device1a.vhost-user]\nsocket = \"/a\"\nvirtio-id = 25\nqueues = 1\n",
    );

    assert!(text.contains("say virtio-id = 26, or device19"), "{text}");
}

#[test]
fn a_type_that_is_written_in_another_way_is_refused() {
    for (written, plain) in [("device04", "device4"), ("device1A", "device1a")] {
        let text = refused(&format!("[guest.a.virtio.{written}.rng]\n"));

        assert!(text.contains(&format!("is written {plain}")), "{text}");
    }
}

#[test]
fn a_device_that_would_never_be_found_is_refused() {
    let text = refused("[guest.a.virtio.rng.blk]\npath = \"/a\"\n");

    assert!(text.contains("key guest.a.virtio.rng"), "{text}");
    assert!(text.contains("neither"), "{text}");
}

#[test]
fn an_unknown_level_and_an_unknown_mode_are_refused() {
    let level = refused("log = \"loud\"");
    let mode = refused("[guest.a]\nevents = \"none\"");

    assert!(
        level.contains("line 1, key log") && level.contains("loud"),
        "{level}"
    );
    assert!(
        mode.contains("line 2, key guest.a.events") && mode.contains("none"),
        "{mode}"
    );
}

#[test]
fn a_warning_time_out_of_bounds_is_refused() {
    for value in ["0", "601"] {
        let text = refused(&format!("\nstop-warning-seconds = {value}"));

        assert!(text.contains("line 2, key stop-warning-seconds"), "{text}");
        assert!(text.contains(value), "{text}");
    }
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let text = refused("log = \"info\"\n[guest\n");

    assert!(text.starts_with("/etc/xen-dm.toml, line 2"), "{text}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nonexistent/xen-dm.toml")).unwrap_err();

    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("/nonexistent/xen-dm.toml"));
}

#[test]
fn a_uuid_goes_before_a_name_and_a_name_before_patterns() {
    let config = parsed(
        "[guest.\"*\"]\nevents = \"plain\"\n\
         [guest.\"web-?\"]\nevents = \"irqfd\"\n\
         [guest.\"web-1\"]\nevents = \"ioeventfd\"\n\
         [guest.\"AAAA-BB\"]\nevents = \"auto\"\n",
    );
    let events = |name, uuid| config.guest(name, uuid).events;

    assert_eq!(events("web-1", Some("aaaa-bb")), Some(EventMode::Auto));
    assert_eq!(events("web-1", None), Some(EventMode::Ioeventfd));
    assert_eq!(events("web-2", Some("cccc")), Some(EventMode::Irqfd));
    assert_eq!(events("db", None), Some(EventMode::Plain));
}

#[test]
fn a_guest_is_said_to_be_direct_mapped_or_not_or_nothing_is_said() {
    let config =
        parsed("[guest.a]\ndirect-mapped = true\n[guest.b]\ndirect-mapped = false\n[guest.c]\n");
    let said = ["a", "b", "c"].map(|name| config.guest(name, None).direct_mapped);

    let word = refused("[guest.a]\ndirect-mapped = \"yes\"\n");

    assert_eq!(said, [Some(true), Some(false), None]);
    assert!(
        word.contains("line 2, key guest.a.direct-mapped") && word.contains("yes"),
        "{word}"
    );
}

#[test]
fn patterns_match_whole_names() {
    let config = parsed("[guest.\"a*b?c\"]\nevents = \"plain\"\n");
    let matches = |name| config.guest(name, None).events.is_some();

    assert!(matches("abxc") && matches("a-b-bxc") && matches("abbbc"));
    assert!(!matches("abc") && !matches("xabxc") && !matches("abxcd") && !matches(""));
}

#[test]
fn a_disks_name_goes_before_its_number_and_both_before_all() {
    let config = parsed(
        "[guest.a.disk.\"*\"]\nserial = \"any\"\n\
         [guest.a.disk.51712]\nserial = \"number\"\n\
         [guest.a.disk.xvda]\nserial = \"name\"\n",
    );
    let serial = |name, devid| {
        let disk = devices::blk::BlkConfig::new("/disk.img");
        config
            .guest("a", None)
            .disk(name, devid)
            .apply(disk)
            .serial
            .unwrap()
    };

    assert_eq!(serial(Some("xvda"), 51712), "name");
    assert_eq!(serial(Some("hda"), 51712), "number");
    assert_eq!(serial(None, 51728), "any");
}

#[test]
fn what_is_not_said_about_a_disk_stays_as_it_was() {
    let config = parsed("[guest.a.disk.xvda]\nqueue-size = 64\n");

    let disk = disk_of(&config, "a", "xvda");

    let expected = devices::blk::BlkConfig {
        queue_size: 64,
        ..devices::blk::BlkConfig::new("/disk.img")
    };
    assert_eq!(disk, expected);
}

#[test]
fn a_null_disk_takes_the_place_of_the_toolstacks_image() {
    let config = parsed("[guest.a.disk.xvda]\nnull = 8192\n");

    let disk = disk_of(&config, "a", "xvda");

    assert_eq!(disk, devices::blk::BlkConfig::null(8192));
}

#[test]
fn the_control_socket_is_in_the_state_directory_or_where_it_is_said() {
    let default = parsed("state-dir = \"/run/other\"\n");
    let said = parsed("control-socket = \"/run/x.sock\"\n");

    let one = Some(xen::DomId(5));
    assert_eq!(
        default.control_socket(None),
        Path::new("/run/other/control.sock")
    );
    assert_eq!(
        default.control_socket(one),
        Path::new("/run/other/control.5.sock")
    );
    assert_eq!(said.control_socket(None), Path::new("/run/x.sock"));
    assert_eq!(said.control_socket(one), Path::new("/run/x.5.sock"));
}

#[test]
fn a_control_socket_that_no_socket_can_be_at_is_refused_with_its_line() {
    let long = format!("/{}", "x".repeat(97));

    for path in ["control.sock", "/", long.as_str()] {
        let text = refused(&format!("\ncontrol-socket = {path:?}\n"));
        assert!(
            text.contains("line 2") && text.contains("control-socket"),
            "{text}"
        );
    }
}

#[test]
fn relative_paths_of_devices_are_refused() {
    for (kind, keys, told) in [
        ("blk", "path = \"d.img\"", "d.img"),
        ("console", "backend = \"file\"\npath = \"c\"", "c is no"),
        ("console", "log = \"logs/c\"", "logs/c"),
        ("net", "socket = \"n\"\nlisten = true", "n is no"),
        ("vsock", "path = \"run/v\"", "run/v"),
        ("vhost-user", "socket = \"s\"\nvirtio-id = 26", "s is no"),
    ] {
        let text = refused(&format!("[guest.a.virtio.0.{kind}]\n{keys}\n"));

        assert!(
            text.contains(kind) && text.contains(told) && text.contains("no absolute path"),
            "{text}"
        );
    }
}

#[test]
fn a_state_directory_is_absolute_and_leaves_room_for_a_socket() {
    let long = format!("/{}", "x".repeat(100));
    for path in ["run/xen-dm", long.as_str()] {
        let text = refused(&format!("\nstate-dir = {path:?}\n"));

        assert!(
            text.contains("line 2") && text.contains("state-dir") && text.contains(path),
            "{text}"
        );
    }
    let elsewhere = format!("state-dir = {long:?}\ncontrol-socket = \"/run/x.sock\"\n");
    assert_eq!(parsed(&elsewhere).state_dir, Path::new(&long));
}

#[test]
fn the_bounce_pool_is_as_large_as_it_is_said_or_8_mib() {
    let slots = |text: &str| {
        let config = parsed(&format!("swiotlb = {text:?}\n"));
        config.swiotlb.options().sizing(1).nslots()
    };

    assert_eq!(Config::default().swiotlb.options().sizing(1).nslots(), 4096);
    let told = ["", "128", "32768", "force", "1000,1,noforce"].map(slots);
    assert_eq!(told, [4096, 128, 32768, 4096, 1024]);
}

#[test]
fn pools_and_modes_that_cannot_be_are_refused_with_key_and_value() {
    for (text, told) in [
        ("swiotlb = \"12x\"", &["line 1, key swiotlb", "12x"][..]),
        ("swiotlb = \"forceful\"", &["key swiotlb", "forceful"]),
        ("swiotlb = \"600000\"", &["key swiotlb", "600000", "1 GiB"]),
        (
            "granted-data = \"maps\"",
            &["key granted-data", "maps", "copy-up-to"],
        ),
        (
            "[guest.a]\ngranted-data = \"copy-up-to:x\"",
            &["line 2, key guest.a.granted-data", "copy-up-to:x"],
        ),
    ] {
        let error = refused(text);

        assert!(told.iter().all(|part| error.contains(part)), "{error}");
    }
}
