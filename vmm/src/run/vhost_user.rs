//! Devices served to any VMM over vhost-user sockets: `xen-dm vhost-user`.
//!
//! Needs no Xen and no privileges but to the devices' own files. A thread
//! serves each socket; the calling one waits for a signal.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use devices::blk::ImageError;
use devices::registry::{DeviceSpec, OpenError};
use devices::vhost_user::backend::{Server, ServerError};
use devices::virtio::worker::with_causes;
use devices::virtio::{Device, DeviceError, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use thiserror::Error;

use super::DeviceArgument;
use crate::spec::FileId;

/// A device and its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where it listens.
    pub path: PathBuf,
    /// What is behind it.
    pub device: DeviceSpec,
}

/// Sockets and devices that do not belong together.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PairError {
    /// Not as many of the one as of the other.
    #[error("{sockets} --socket for {devices} --device: each device has one of its own")]
    Count {
        /// Sockets.
        sockets: usize,
        /// Devices.
        devices: usize,
    },
    /// Two devices on one socket.
    #[error("{} is the socket of two devices", path.display())]
    Twice {
        /// The socket.
        path: PathBuf,
    },
    /// Two devices on one image, and one of them writes it.
    #[error(
        "{} is the image of two devices: give each one of its own, or make both read-only",
        path.display()
    )]
    Image {
        /// The image.
        path: PathBuf,
    },
    /// A key that only a guest of Xen's has.
    #[error("device {number}: {key}= is for guests of Xen")]
    Place {
        /// Which device, from 0.
        number: usize,
        /// The key.
        key: &'static str,
    },
}

/// Why devices could not be served, or not to the end.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A device cannot be opened, or what it stands on cannot serve it.
    #[error("{} for {}", .kind, path.display())]
    Device {
        /// Its kind.
        kind: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// A socket.
    #[error(transparent)]
    Socket(#[from] ServerError),
    /// The system gives no threads or signals.
    #[error("cannot wait for the end")]
    System(#[from] io::Error),
}

/// Gives each device its socket, in their order.
///
/// # Errors
/// [`PairError`].
pub fn pair(sockets: Vec<PathBuf>, devices: Vec<DeviceArgument>) -> Result<Vec<Socket>, PairError> {
    if sockets.len() != devices.len() {
        return Err(PairError::Count {
            sockets: sockets.len(),
            devices: devices.len(),
        });
    }
    let mut before = HashSet::new();
    if let Some(path) = sockets.iter().find(|path| !before.insert(*path)) {
        let path = path.clone();
        return Err(PairError::Twice { path });
    }
    if let Some(path) = shared_image(&devices) {
        return Err(PairError::Image { path });
    }
    let pairs = sockets.into_iter().zip(devices).enumerate();
    pairs
        .map(|(number, (path, argument))| {
            let places = [
                ("mmio", argument.mmio.is_some()),
                ("irq", argument.irq.is_some()),
                ("grants", argument.grants.is_some()),
            ];
            if let Some((key, _)) = places.into_iter().find(|(_, given)| *given) {
                return Err(PairError::Place { number, key });
            }
            Ok(Socket {
                path,
                device: argument.device,
            })
        })
        .collect()
}

/// An image that the second of two disks would wait for, as for one that a
/// process of before still has.
fn shared_image(devices: &[DeviceArgument]) -> Option<PathBuf> {
    let mut seen: HashMap<FileId, bool> = HashMap::new();
    devices.iter().find_map(|argument| {
        let DeviceSpec::Blk(disk) = &argument.device else {
            return None;
        };
        let path = disk.path()?;
        let readonly = disk.readonly();
        let before = seen.insert(FileId::of(path)?, readonly)?;
        (!readonly || !before).then(|| path.to_owned())
    })
}

/// Serves all of them until SIGTERM, SIGINT or SIGHUP, or until one fails. What
/// is in flight is then finished, and the sockets are removed.
///
/// # Errors
/// [`ServeError`].
pub fn serve(sockets: Vec<Socket>) -> Result<(), ServeError> {
    raise_limit();
    let (told, mut wait) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        pipe::register(signal, told.try_clone()?)?;
    }
    // all or none: devices are opened before the first thread is started
    let mut servers = Vec::new();
    for socket in sockets {
        match open(socket, &mut wait)? {
            Some(server) => servers.push(server),
            None => return Ok(()),
        }
    }
    let stops: Vec<_> = servers
        .iter()
        .map(|(server, _)| server.stop_handle())
        .collect();
    let mut threads = Vec::new();
    for (server, span) in servers {
        let mut end = told.try_clone()?;
        threads.push(thread::Builder::new().spawn(move || {
            let _entered = span.enter();
            let result = server.run();
            if let Err(error) = &result {
                tracing::error!(
                    error = with_causes(error),
                    "the socket is not served any more"
                );
            }
            // nobody waits any more once all are stopped
            let _ = end.write(&[0]);
            result
        })?);
    }
    wait.read_exact(&mut [0])?;
    for stop in &stops {
        stop.stop();
    }
    let mut all = Ok(());
    for thread in threads {
        // each is waited for, whatever became of the others
        all = all.and(match thread.join() {
            Ok(result) => result.map_err(ServeError::from),
            Err(_) => Err(io::Error::other("a thread died").into()),
        });
    }
    all
}

/// As many descriptors as the process may have: a front end's memory takes one
/// for each of its regions, of which it may have hundreds.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::debug!(%error, files = limit.current, "the limit of open files stays as it is");
    }
}

/// Opens a device and listens for it; nothing if a byte in `end` says to leave
/// meanwhile.
fn open(
    socket: Socket,
    end: &mut UnixStream,
) -> Result<Option<(Server, tracing::Span)>, ServeError> {
    let Socket { path, device } = socket;
    let kind = device.kind().name;
    let span = tracing::info_span!("vhost-user", socket = %path.display(), device = kind);
    let server = span.in_scope(|| {
        let opened = open_device(&device, end)?;
        let Some(opened) = opened else {
            return Ok(None);
        };
        let failed = |source| ServeError::Device {
            kind,
            path: path.clone(),
            source,
        };
        let device = opened.map_err(|error| failed(error.into()))?;
        // nobody else waits for this thread
        if let Trial::Failed(why) = device.trial(Duration::MAX) {
            return Err(failed(why));
        }
        let server = Server::bind(&path, device, kind)?;
        tracing::info!("listening");
        Ok::<_, ServeError>(Some(server))
    })?;
    Ok(server.map(|server| (server, span)))
}

/// How long an image may stay locked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a device. A process that was killed holds the lock of its image until
/// the kernel has finished what it had asked for: a write of its would
/// otherwise come after one of ours. Nothing if a byte in `end` says to leave
/// meanwhile.
fn open_device(
    spec: &DeviceSpec,
    end: &mut UnixStream,
) -> io::Result<Option<Result<Box<dyn Device>, OpenError>>> {
    let start = Instant::now();
    let mut told = false;
    loop {
        match spec.clone().open() {
            Err(OpenError::Blk(error @ ImageError::InUse { .. })) if start.elapsed() < PATIENCE => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(%error, "waiting for it");
                }
                end.set_read_timeout(Some(Duration::from_millis(20)))?;
                let heard = end.read_exact(&mut [0]);
                end.set_read_timeout(None)?;
                match heard {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    heard => return heard.map(|()| None),
                }
            }
            result => return Ok(Some(result)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(sockets: &[&str], devices: &[&str]) -> Result<Vec<Socket>, PairError> {
        pair(
            sockets.iter().map(PathBuf::from).collect(),
            devices.iter().map(|text| text.parse().unwrap()).collect(),
        )
    }

    #[test]
    fn sockets_and_devices_go_together_in_their_order() {
        let found = pairs(&["/a", "/b"], &["rng", "blk,path=/disk"]).unwrap();

        let found: Vec<_> = found
            .iter()
            .map(|socket| (socket.path.to_str().unwrap(), socket.device.kind().name))
            .collect();
        assert_eq!(found, [("/a", "rng"), ("/b", "blk")]);
    }

    #[test]
    fn a_device_without_a_socket_is_refused() {
        let error = pairs(&["/a"], &["rng", "rng"]).unwrap_err();

        assert_eq!(
            error,
            PairError::Count {
                sockets: 1,
                devices: 2
            }
        );
    }

    #[test]
    fn two_devices_on_one_socket_are_refused() {
        let error = pairs(&["/a", "/b", "/a"], &["rng", "rng", "rng"]).unwrap_err();

        assert_eq!(error, PairError::Twice { path: "/a".into() });
    }

    #[test]
    fn an_image_that_two_devices_would_write_is_refused_whatever_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, [0; 4096]).unwrap();
        let other = dir.path().join("other.img");
        std::os::unix::fs::symlink(&image, &other).unwrap();
        let [one, two] = [&image, &other].map(|path| format!("blk,path={}", path.display()));
        let readonly = |disk: &str| format!("{disk},readonly");

        let both = pairs(&["/a", "/b"], &[&one, &two]);
        let first = pairs(&["/a", "/b"], &[&readonly(&one), &two]);
        let second = pairs(&["/a", "/b"], &[&one, &readonly(&two)]);
        let neither = pairs(&["/a", "/b"], &[&readonly(&one), &readonly(&two)]);

        let refused = Err(PairError::Image { path: other });
        assert_eq!([&both, &first, &second], [&refused; 3]);
        assert_eq!(neither.unwrap().len(), 2);
    }

    #[test]
    fn who_waits_for_a_locked_image_hears_that_it_is_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, [0; 4096]).unwrap();
        let text = format!("blk,path={}", image.display());
        let DeviceArgument { device, .. } = text.parse().unwrap();
        let _user = device.clone().open().unwrap();
        let (mut told, mut end) = UnixStream::pair().unwrap();
        told.write_all(&[0]).unwrap();

        let opened = open_device(&device, &mut end).unwrap();

        assert!(opened.is_none());
    }

    #[test]
    fn keys_of_a_place_in_a_guest_are_refused() {
        let error = pairs(&["/a"], &["rng,irq=40"]).unwrap_err();

        assert!(error.to_string().contains("irq="), "{error}");
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_told_with_its_socket() {
        let sockets = pairs(&["/nonexistent/a.sock"], &["blk,path=/nonexistent/disk"]).unwrap();

        let error = with_causes(&serve(sockets).unwrap_err());

        assert!(
            error.contains("/nonexistent/a.sock") && error.contains("/nonexistent/disk"),
            "{error}"
        );
    }
}
