//! vhost-user back ends of our own, in this process, and devices in front of
//! them.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::registry::DeviceSpec;
use devices::vhost_user::backend::{Server, Stop};
use devices::vhost_user::frontend::VhostUserConfig;
use devices::vhost_user::frontend::config::Memory;
use devices::virtio::Device;
use vmm::demo::guest::Addresses;

/// A back end on a socket; ends when it is dropped.
pub struct BackEnd {
    path: PathBuf,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl BackEnd {
    /// Serves `device` on `path`.
    pub fn serve(path: &Path, device: Box<dyn Device>) -> BackEnd {
        let server = Server::bind(path, device, "served").unwrap();
        let stop = server.stop_handle();
        let thread = std::thread::spawn(move || server.run().unwrap());
        BackEnd {
            path: path.to_owned(),
            stop,
            thread: Some(thread),
        }
    }

    /// Ends when the directory of its socket is gone.
    pub fn until_its_directory_goes(self) {
        std::thread::spawn(move || {
            while self.path.parent().is_some_and(Path::exists) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// How a guest's driver names memory, and which memory its back end is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub addresses: Addresses,
    pub memory: Memory,
}

impl Way {
    /// Grants through the pool.
    pub const GRANTS: Way = Way {
        addresses: Addresses::Grants,
        memory: Memory::Bounce,
    };
    /// Plain addresses through the pool.
    pub const PLAIN: Way = Way {
        addresses: Addresses::Plain,
        memory: Memory::Bounce,
    };
    /// Plain addresses, with which the back end reaches the guest itself.
    pub const DIRECT: Way = Way {
        addresses: Addresses::Plain,
        memory: Memory::Foreign,
    };

    /// A device of type `virtio_id` behind `socket`, by this way.
    pub fn config(self, socket: impl Into<PathBuf>, virtio_id: u32) -> VhostUserConfig {
        VhostUserConfig {
            memory: self.memory,
            ..VhostUserConfig::new(socket, virtio_id)
        }
    }
}

/// A device in front of a back end.
pub fn in_front(config: VhostUserConfig) -> Box<dyn Device> {
    let spec = DeviceSpec::VhostUser(config.validate().unwrap());
    spec.open().unwrap()
}
