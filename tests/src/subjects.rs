//! The devices that are tortured: how each is made, and what it is asked for.
//!
//! At least one entry for each kind of the registry, in its order; a test sees
//! to it that none is missing.

mod net;
mod vsock;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devices::blk::{BlkConfig, EngineKind};
use devices::console::{Backend, ConsoleConfig, ConsoleDevice, PortConfig};
use devices::registry::DeviceSpec;
use devices::rng::RngConfig;
use devices::vhost_user::frontend::VhostUserConfig;
use devices::virtio::{Device, DeviceType};
use vmm::demo::guest::Pattern;

use crate::back_end::{BackEnd, in_front};
use crate::raw::Request;
use crate::stand::{Stand, configured, disk};

/// A kind of device under test.
pub struct Subject {
    /// Its name in the registry.
    pub kind: &'static str,
    /// Makes one, on something that is named by the number.
    pub make: fn(&Stand, u32) -> Box<dyn Device>,
    /// The queue that requests go to.
    pub queue: u16,
    /// A request, and what its answer must look like.
    pub request: fn(&mut Pattern) -> Request,
    /// Whether an answer is that of a device that works.
    pub is_answer: fn(&Request, &[Vec<u8>]) -> bool,
}

/// Every kind.
pub const SUBJECTS: &[Subject] = &[
    Subject {
        kind: "blk",
        make: make_disk,
        queue: 0,
        request: disk_request,
        is_answer: is_disk_answer,
    },
    Subject {
        kind: "blk",
        make: make_direct_disk,
        queue: 0,
        request: disk_request,
        is_answer: is_disk_answer,
    },
    Subject {
        kind: "blk",
        make: make_synchronous_disk,
        queue: 0,
        request: disk_request,
        is_answer: is_disk_answer,
    },
    Subject {
        kind: "blk",
        make: make_limited_disk,
        queue: 0,
        request: disk_request,
        is_answer: is_disk_answer,
    },
    Subject {
        kind: "rng",
        make: make_rng,
        queue: 0,
        request: rng_request,
        is_answer: is_rng_answer,
    },
    Subject {
        kind: "console",
        make: make_console_on_file,
        queue: 1,
        request: output_request,
        is_answer: is_output_answer,
    },
    Subject {
        kind: "console",
        make: make_console_with_input,
        queue: 0,
        request: input_request,
        is_answer: is_input_answer,
    },
    Subject {
        kind: "console",
        make: make_console_of_two_ports,
        queue: 3,
        request: port_message,
        is_answer: is_output_answer,
    },
    Subject {
        kind: "vsock",
        make: vsock::make_with_listener,
        queue: 1,
        request: vsock::packet,
        is_answer: vsock::is_taken,
    },
    Subject {
        kind: "vsock",
        make: vsock::make_with_clients,
        queue: 0,
        request: vsock::buffers,
        is_answer: vsock::is_call,
    },
    Subject {
        kind: "vsock",
        make: vsock::make_with_losses,
        queue: 2,
        request: vsock::event_buffer,
        is_answer: vsock::is_transport_reset,
    },
    Subject {
        kind: "net",
        make: net::make_with_reader,
        queue: 1,
        request: net::frame,
        is_answer: net::is_taken,
    },
    Subject {
        kind: "net",
        make: net::make_with_sender,
        queue: 0,
        request: net::buffers,
        is_answer: net::is_frame,
    },
    Subject {
        kind: "net",
        make: net::make_with_reader,
        queue: 2,
        request: net::command,
        is_answer: net::is_answer,
    },
    Subject {
        kind: "vhost-user",
        make: make_behind_a_back_end,
        queue: 0,
        request: rng_request,
        is_answer: is_rng_answer,
    },
];

/// Bytes of the disk.
const DISK: usize = 1 << 20;

fn make_disk(stand: &Stand, number: u32) -> Box<dyn Device> {
    disk(&disk_image(stand, number))
}

/// A disk past the page cache, by io_uring if the host has it: all its data is
/// bounced.
fn make_direct_disk(stand: &Stand, number: u32) -> Box<dyn Device> {
    configured(BlkConfig {
        direct: true,
        ..BlkConfig::new(disk_image(stand, number))
    })
}

/// A disk by system calls, one by one.
fn make_synchronous_disk(stand: &Stand, number: u32) -> Box<dyn Device> {
    configured(BlkConfig {
        engine: EngineKind::Sync,
        ..BlkConfig::new(disk_image(stand, number))
    })
}

/// A disk past the page cache, by threads, whose guest now and then has to wait.
fn make_limited_disk(stand: &Stand, number: u32) -> Box<dyn Device> {
    configured(BlkConfig {
        engine: EngineKind::Threads,
        direct: true,
        operations_per_second: Some(5000),
        operations_burst: Some(20),
        ..BlkConfig::new(disk_image(stand, number))
    })
}

fn disk_image(stand: &Stand, number: u32) -> PathBuf {
    let path = stand.path(&format!("torture-{number}.img"));
    if !path.exists() {
        std::fs::write(&path, vec![0x5a; DISK]).unwrap();
    }
    path
}

/// A read or a write of one to sixteen sectors anywhere. What is written is
/// what the image holds already, so that reads can be checked whatever was
/// torn off. virtio 1.3 §5.2.6
fn disk_request(pattern: &mut Pattern) -> Request {
    let sectors = 1 + pattern.below(16);
    let sector = pattern.below(DISK as u64 / 512 - sectors);
    let bytes = (sectors * 512) as usize;
    let write = pattern.below(2) == 1;
    let mut header = vec![u8::from(write), 0, 0, 0, 0, 0, 0, 0];
    header.extend(sector.to_le_bytes());
    match write {
        true => Request {
            readable: vec![header, vec![0x5a; bytes]],
            writable: vec![1],
        },
        false => Request {
            readable: vec![header],
            writable: vec![bytes, 1],
        },
    }
}

fn is_disk_answer(_request: &Request, written: &[Vec<u8>]) -> bool {
    match written {
        [status] => status == &[0],
        [data, status] => status == &[0] && data.iter().all(|byte| *byte == 0x5a),
        _ => false,
    }
}

fn make_rng(_stand: &Stand, _number: u32) -> Box<dyn Device> {
    let spec = RngConfig::default().validate().unwrap();
    DeviceSpec::Rng(spec).open().unwrap()
}

/// A source of entropy that another front end of ours serves.
fn make_behind_a_back_end(stand: &Stand, number: u32) -> Box<dyn Device> {
    let path = stand.path(&format!("torture-{number}.vhost"));
    // one for all devices that are made there one after the other
    if !path.exists() {
        BackEnd::serve(&path, make_rng(stand, number)).until_its_directory_goes();
    }
    in_front(VhostUserConfig {
        queue_size: 64,
        ..VhostUserConfig::new(path, DeviceType::ENTROPY.0)
    })
}

/// One to four buffers for random bytes, each large enough not to be zero by
/// accident. virtio 1.3 §5.4.6
fn rng_request(pattern: &mut Pattern) -> Request {
    let buffers = 1 + pattern.below(4);
    Request {
        readable: Vec::new(),
        writable: (0..buffers)
            .map(|_| 16 + pattern.below(2048) as usize)
            .collect(),
    }
}

fn is_rng_answer(_request: &Request, written: &[Vec<u8>]) -> bool {
    written
        .iter()
        .all(|bytes| bytes.iter().any(|byte| *byte != 0))
}

fn console(config: ConsoleConfig) -> Box<dyn Device> {
    Box::new(ConsoleDevice::open(config.validate().unwrap()).unwrap())
}

fn make_console_on_file(stand: &Stand, number: u32) -> Box<dyn Device> {
    console(ConsoleConfig::file(
        stand.path(&format!("torture-{number}.log")),
    ))
}

/// One to four pieces of output. virtio 1.3 §5.3.6
fn output_request(pattern: &mut Pattern) -> Request {
    let buffers = 1 + pattern.below(4);
    Request {
        readable: (0..buffers)
            .map(|_| vec![b'o'; 1 + pattern.below(2048) as usize])
            .collect(),
        writable: Vec::new(),
    }
}

fn is_output_answer(_request: &Request, written: &[Vec<u8>]) -> bool {
    written.is_empty()
}

/// A console with a further port, on files.
fn make_console_of_two_ports(stand: &Stand, number: u32) -> Box<dyn Device> {
    let port = PortConfig {
        backend: Backend::File,
        ..PortConfig::socket("second", stand.path(&format!("torture-{number}.second")))
    };
    console(ConsoleConfig {
        port: vec![port],
        ..ConsoleConfig::file(stand.path(&format!("torture-{number}.log")))
    })
}

/// A message of any kind about any port, in one piece or two, and perhaps with
/// something behind it. virtio 1.3 §5.3.6.2
fn port_message(pattern: &mut Pattern) -> Request {
    let mut message = vec![pattern.below(4) as u8, 0, 0, 0];
    message.extend([pattern.below(10) as u8, 0, pattern.below(2) as u8, 0]);
    message.extend(vec![0; pattern.below(3) as usize]);
    let rest = message.split_off(1 + pattern.below(8) as usize);
    let pieces = [message, rest];
    Request {
        readable: pieces
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .collect(),
        writable: Vec::new(),
    }
}

/// What the host types, again and again.
const TYPED: u8 = b'i';

/// A console on a socket, with somebody there who types without end.
fn make_console_with_input(stand: &Stand, number: u32) -> Box<dyn Device> {
    let path = stand.path(&format!("torture-{number}.sock"));
    let device = console(ConsoleConfig::socket(&path));
    // one for all consoles that are made there one after the other
    let first = std::fs::File::create_new(path.with_extension("typist")).is_ok();
    if first {
        std::thread::spawn(move || type_without_end(&path));
    }
    device
}

/// Ends with the directory.
fn type_without_end(path: &Path) {
    while path.parent().is_some_and(Path::exists) {
        if let Ok(mut stream) = UnixStream::connect(path) {
            while stream.write_all(&[TYPED; 4096]).is_ok() {}
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One to four buffers for input.
fn input_request(pattern: &mut Pattern) -> Request {
    let buffers = 1 + pattern.below(4);
    Request {
        readable: Vec::new(),
        writable: (0..buffers)
            .map(|_| 1 + pattern.below(2048) as usize)
            .collect(),
    }
}

/// What was typed is there from the beginning on, as much as there was.
fn is_input_answer(_request: &Request, written: &[Vec<u8>]) -> bool {
    let bytes = written.concat();
    let typed = bytes.iter().take_while(|byte| **byte == TYPED).count();
    typed > 0 && bytes.iter().skip(typed).all(|byte| *byte == 0)
}
