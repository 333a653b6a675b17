use serde::de::value::MapDeserializer;

use super::*;

fn disk() -> BlkConfig {
    BlkConfig::new("/disk.img")
}

#[test]
fn defaults_are_a_writable_disk_with_one_queue_of_256() {
    let spec = disk().validate().unwrap();

    assert_eq!((spec.queue_size, spec.queues), (256, 1));
    assert!(!spec.readonly && spec.discard);
    assert_eq!(spec.serial, [0; 20]);
}

#[test]
fn a_key_that_does_not_exist_is_named() {
    let keys = [("path", "/disk.img"), ("qeue-size", "4")].into_iter();
    let source = MapDeserializer::<_, serde::de::value::Error>::new(keys);

    let error = BlkConfig::deserialize(source).unwrap_err().to_string();

    assert!(error.contains("qeue-size"), "{error}");
    assert!(error.contains("queue-size"), "{error}");
}

#[test]
fn a_path_is_enough() {
    let keys = [("path", "/disk.img")].into_iter();
    let source = MapDeserializer::<_, serde::de::value::Error>::new(keys);

    assert_eq!(BlkConfig::deserialize(source).unwrap(), disk());
}

#[test]
fn a_short_serial_is_padded_and_one_of_20_is_not_terminated() {
    let serial = |text: &str| {
        let serial = Some(text.to_owned());
        BlkConfig { serial, ..disk() }.validate()
    };

    assert_eq!(&serial("abc").unwrap().serial[..5], b"abc\0\0");
    assert_eq!(
        &serial("12345678901234567890").unwrap().serial,
        b"12345678901234567890"
    );
    for bad in ["123456789012345678901", "näher", "a\nb"] {
        assert_eq!(serial(bad), Err(ConfigError::Serial(bad.into())));
    }
}

#[test]
fn an_error_names_the_key_and_the_value() {
    let config = BlkConfig {
        queue_size: 100,
        ..disk()
    };

    let text = config.validate().unwrap_err().to_string();

    assert_eq!(text, "queue-size 100 is no power of two from 4 to 1024");
}

#[test]
fn values_out_of_bounds_are_refused() {
    for queue_size in [0, 2, 2048] {
        let config = BlkConfig {
            queue_size,
            ..disk()
        };
        assert_eq!(config.validate(), Err(ConfigError::QueueSize(queue_size)));
    }
    for queues in [0, 17] {
        let config = BlkConfig { queues, ..disk() };
        assert_eq!(config.validate(), Err(ConfigError::Queues(queues)));
    }
    for logical in [0, 256, 1000, 8192] {
        let logical_block_size = Some(logical);
        let config = BlkConfig {
            logical_block_size,
            ..disk()
        };
        assert_eq!(config.validate(), Err(ConfigError::LogicalBlock(logical)));
    }
    let config = BlkConfig {
        logical_block_size: Some(4096),
        physical_block_size: Some(512),
        ..disk()
    };
    let refused = ConfigError::PhysicalBlock {
        physical: 512,
        logical: 4096,
    };
    assert_eq!(config.validate(), Err(refused));
    assert_eq!(BlkConfig::new("").validate(), Err(ConfigError::NoPath));
}

#[test]
fn a_qcow2_image_is_served_by_threads_and_never_by_io_uring() {
    let qcow2 = |engine| BlkConfig {
        format: Format::Qcow2,
        engine,
        ..disk()
    };

    let auto = qcow2(EngineKind::Auto).validate().unwrap();
    let sync = qcow2(EngineKind::Sync).validate().unwrap();
    let ring = qcow2(EngineKind::IoUring).validate().unwrap_err();
    let nothing = BlkConfig {
        format: Format::Qcow2,
        ..BlkConfig::null(4096)
    };

    assert_eq!(auto.format(), Some(Format::Qcow2));
    assert_eq!(
        (auto.engine, sync.engine),
        (EngineKind::Threads, EngineKind::Sync)
    );
    assert_eq!((ring.key(), ring), ("engine", ConfigError::Engine));
    assert_eq!(nothing.validate(), Err(ConfigError::NullFormat));
}

#[test]
fn a_rate_has_a_seconds_burst_unless_it_is_said() {
    let limited = |burst| BlkConfig {
        bytes_per_second: Some(5000),
        bytes_burst: burst,
        ..disk()
    };
    let burst = |burst| {
        limited(burst)
            .validate()
            .unwrap()
            .rates
            .bytes
            .unwrap()
            .burst
    };

    assert_eq!((burst(None), burst(Some(7))), (5000, 7));
}

#[test]
fn rates_out_of_bounds_and_bursts_without_one_are_refused() {
    let rate = BlkConfig {
        operations_per_second: Some(0),
        ..disk()
    };
    let alone = BlkConfig {
        operations_burst: Some(9),
        ..disk()
    };

    let (rate, alone) = (rate.validate().unwrap_err(), alone.validate().unwrap_err());

    assert_eq!(rate.key(), "operations-per-second");
    assert_eq!(rate, ConfigError::Rate("operations-per-second", 0));
    assert_eq!(alone, ConfigError::BurstAlone("operations-burst", 9));
}

#[test]
fn a_disk_has_an_image_or_a_size_but_not_both() {
    let both = BlkConfig {
        null: Some(4096),
        ..disk()
    };

    assert_eq!(both.validate(), Err(ConfigError::NullAndPath(4096)));
    assert_eq!(BlkConfig::null(8192).validate().unwrap().path(), None);
    for size in [0, 512, u64::MAX - 4095] {
        let refused = BlkConfig::null(size).validate();
        assert_eq!(refused, Err(ConfigError::Null(size)));
    }
}
