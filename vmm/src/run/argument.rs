//! A device on the command line: `blk,path=/disk.img,mmio=0x2000000,irq=33`.

use std::str::FromStr;

use devices::registry::{ConfigError, DeviceConfig, DeviceSpec};
use serde::de::value::MapDeserializer;
use thiserror::Error;

use super::text::{Text, number, truth};
use crate::guest::SLOT_SIZE;
use crate::words::in_words;

/// A device, and where its user wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceArgument {
    /// The device.
    pub device: DeviceSpec,
    /// `mmio`: first guest-physical address of its registers.
    pub mmio: Option<u64>,
    /// `irq`: its interrupt.
    pub irq: Option<u32>,
    /// `grants`: the guest is to use grants.
    pub grants: Option<bool>,
}

/// What is wrong with a device on the command line.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ArgumentError {
    /// A value that is not what its key wants.
    #[error("{key}={value} is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wanted.
        expected: &'static str,
    },
    /// A kind or key that is none, or a value that is of the wrong type.
    #[error("{}{message}", prefix(key))]
    Refused {
        /// The key, if it is about one.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// The same of a disk whose path was cut at a comma, perhaps.
    #[error(
        "{}{message} (the image is {path:?}: what --disk has up to its first comma. One whose path \
         has a comma is said by --device 'blk,path=\"PATH\"')",
        prefix(key)
    )]
    Disk {
        /// The image.
        path: String,
        /// The key, if it is about one.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A value that no device of its kind can have.
    #[error(transparent)]
    Device(#[from] ConfigError),
    /// A bracket or a quotation mark without its second half.
    #[error("{0:?} does not end: a bracket or a quotation mark is missing")]
    Open(String),
}

fn prefix(key: &str) -> String {
    match key {
        "" | "." => String::new(),
        key => format!("{key}: "),
    }
}

/// Reads the address of a device's registers.
///
/// # Errors
/// [`ArgumentError::Value`] unless it is a multiple of 0x200.
pub fn parse_mmio(value: &str) -> Result<u64, ArgumentError> {
    number(value)
        .filter(|base| base.is_multiple_of(SLOT_SIZE))
        .ok_or_else(|| wrong("mmio", value, "an address that is a multiple of 0x200"))
}

/// Reads the number of an interrupt that devices can have.
///
/// # Errors
/// [`ArgumentError::Value`] unless it is a shared peripheral one. Arm GIC
/// architecture specification (IHI 0069), §2.2.1.
pub fn parse_irq(value: &str) -> Result<u32, ArgumentError> {
    number(value)
        .and_then(|irq| u32::try_from(irq).ok())
        .filter(|irq| (32..=1019).contains(irq))
        .ok_or_else(|| wrong("irq", value, "the number of an interrupt from 32 to 1019"))
}

fn wrong(key: &'static str, value: &str, expected: &'static str) -> ArgumentError {
    ArgumentError::Value {
        key,
        value: value.to_owned(),
        expected,
    }
}

/// A disk as `--disk` has it: the image, then the keys of any device.
///
/// # Errors
/// [`ArgumentError`].
pub fn parse_disk(text: &str) -> Result<DeviceArgument, ArgumentError> {
    // the path is one whole word, whatever it looks like
    let (path, rest) = text.split_once(',').unwrap_or((text, ""));
    let mut words = vec![("path", path)];
    words.extend(keys(rest)?);
    DeviceArgument::new("blk", words).map_err(|error| match error {
        ArgumentError::Refused { key, message } => ArgumentError::Disk {
            path: path.to_owned(),
            key,
            message,
        },
        other => other,
    })
}

impl FromStr for DeviceArgument {
    type Err = ArgumentError;

    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
        DeviceArgument::new(kind, keys(rest)?)
    }
}

impl DeviceArgument {
    fn new(kind: &str, words: Vec<(&str, &str)>) -> Result<DeviceArgument, ArgumentError> {
        let (mut mmio, mut irq, mut grants) = (None, None, None);
        let mut own = Vec::new();
        for (key, value) in words {
            match key {
                "mmio" => mmio = Some(parse_mmio(value)?),
                "irq" => irq = Some(parse_irq(value)?),
                "grants" => {
                    let wrong = || wrong("grants", value, "true or false");
                    grants = Some(truth(value).ok_or_else(wrong)?);
                }
                key => own.push((key, Text(value))),
            }
        }
        let mut track = serde_path_to_error::Track::new();
        let values = MapDeserializer::new(own.into_iter());
        let config = DeviceConfig::read(
            kind,
            serde_path_to_error::Deserializer::new(values, &mut track),
        )
        .map_err(|error: serde::de::value::Error| ArgumentError::Refused {
            key: track.path().to_string(),
            message: in_words(&error.to_string()),
        })?;
        Ok(DeviceArgument {
            device: config.validate()?,
            mmio,
            irq,
            grants,
        })
    }
}

/// The keys and values between the commas; a key alone is true.
fn keys(text: &str) -> Result<Vec<(&str, &str)>, ArgumentError> {
    let words = words(text)?;
    let pairs = words.into_iter().filter(|word| !word.is_empty());
    Ok(pairs
        .map(|word| word.split_once('=').unwrap_or((word, "true")))
        .collect())
}

/// Splits at the commas that are outside of brackets and quotation marks.
fn words(text: &str) -> Result<Vec<&str>, ArgumentError> {
    let mut words = Vec::new();
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    let mut start = 0;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth = depth.saturating_add(1),
            ']' | '}' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                words.push(text.get(start..at).unwrap_or_default());
                start = at.saturating_add(1);
            }
            _ => {}
        }
    }
    if quoted || depth > 0 {
        let rest = text.get(start..).unwrap_or_default();
        return Err(ArgumentError::Open(rest.to_owned()));
    }
    words.push(text.get(start..).unwrap_or_default());
    Ok(words)
}

#[cfg(test)]
mod tests {
    use devices::blk::BlkConfig;
    use devices::net::NetConfig;
    use devices::vsock::VsockConfig;

    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<DeviceArgument>().unwrap_err().to_string()
    }

    fn disk(config: BlkConfig) -> DeviceSpec {
        DeviceSpec::Blk(config.validate().unwrap())
    }

    #[test]
    fn a_device_has_a_kind_a_place_and_the_keys_of_its_kind() {
        let text = "blk,path=/a b.img,readonly,queue-size=64,serial=007,mmio=0x2000200,irq=34,\
                    grants=true";

        let argument: DeviceArgument = text.parse().unwrap();

        let config = BlkConfig {
            readonly: true,
            queue_size: 64,
            serial: Some("007".into()),
            ..BlkConfig::new("/a b.img")
        };
        assert_eq!(argument.device, disk(config));
        assert_eq!(argument.mmio, Some(0x0200_0200));
        assert_eq!((argument.irq, argument.grants), (Some(34), Some(true)));
    }

    #[test]
    fn sockets_and_network_cards_have_their_keys_here_too() {
        let sockets: DeviceArgument = "vsock,path=/run/v,cid=7".parse().unwrap();
        let card: DeviceArgument = "net,tap=vm1,queues=2,offload=false,mac=52:54:00:00:00:01"
            .parse()
            .unwrap();

        let vsock = VsockConfig {
            cid: 7,
            ..VsockConfig::new("/run/v")
        };
        let net = NetConfig {
            queues: 2,
            offload: Some(false),
            mac: Some("52:54:00:00:00:01".into()),
            ..NetConfig::tap("vm1")
        };
        assert_eq!(sockets.device, DeviceSpec::Vsock(vsock.validate().unwrap()));
        assert_eq!(card.device, DeviceSpec::Net(net.validate().unwrap()));
        assert!(refused("net,queues=2").contains("tap or socket"));
    }

    #[test]
    fn a_disk_is_a_path_and_what_differs() {
        let argument = parse_disk("/images/[x].img,readonly=true,discard=false").unwrap();

        let config = BlkConfig {
            readonly: true,
            discard: false,
            ..BlkConfig::new("/images/[x].img")
        };
        assert_eq!(argument.device, disk(config));
        assert_eq!(
            (argument.mmio, argument.irq, argument.grants),
            (None, None, None)
        );
    }

    #[test]
    fn a_disk_whose_path_has_a_comma_is_told_where_to_say_so() {
        let error = parse_disk("/images/a,b.img,readonly")
            .unwrap_err()
            .to_string();

        for word in ["b.img", "\"/images/a\"", "--device 'blk,path=\"PATH\"'"] {
            assert!(error.contains(word), "{word} in {error}");
        }
    }

    #[test]
    fn commas_in_quotation_marks_and_brackets_are_part_of_a_value() {
        let argument: DeviceArgument = r#"blk,path="/a,b \"c\".img",readonly"#.parse().unwrap();
        let list = words(r#"a=[{x="1,2"},{y=3}],b"#).unwrap();

        let config = BlkConfig {
            readonly: true,
            ..BlkConfig::new("/a,b \"c\".img")
        };
        assert_eq!(argument.device, disk(config));
        assert_eq!(list, [r#"a=[{x="1,2"},{y=3}]"#, "b"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key_and_value() {
        for (text, told) in [
            ("disk,path=/a", &["disk", "blk"][..]),
            ("blk", &["path"]),
            ("blk,path=/a,size=3", &["size", "queue-size"]),
            ("blk,path=/a,queue-size=big", &["queue-size", "big"]),
            ("blk,path=/a,queue-size=100000", &["queue-size", "100000"]),
            ("blk,path=/a,queue-size=100", &["queue-size 100"]),
            ("blk,path=/a,readonly=maybe", &["readonly", "maybe"]),
            ("blk,path=/a,engine=magic", &["magic", "io-uring"]),
            ("blk,path=/a,path=/b", &["path"]),
            ("blk,path=/a,mmio=0x2000100", &["mmio=0x2000100", "0x200"]),
            ("blk,path=/a,irq=-1", &["irq=-1"]),
            ("blk,path=/a,grants=1", &["grants=1"]),
            ("blk,path=\"/a", &["does not end"]),
        ] {
            let error = refused(text);

            assert!(
                told.iter().all(|word| error.contains(word)),
                "{text}: {error}"
            );
        }
    }
}
