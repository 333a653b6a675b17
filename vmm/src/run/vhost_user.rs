//! Devices served to any VMM over vhost-user sockets: `xen-dm vhost-user`.
//!
//! Needs no Xen and no privileges but to the devices' own files. A thread
//! serves each socket; the calling one waits for a signal.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use devices::blk::ImageError;
use devices::registry::{DeviceSpec, OpenError};
use devices::vhost_user::backend::{Server, ServerError};
use devices::virtio::Device;
use devices::virtio::worker::with_causes;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use thiserror::Error;

use super::DeviceArgument;

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
    #[error("{sockets} times --socket and {devices} devices: each device has one socket")]
    Count {
        /// Sockets.
        sockets: usize,
        /// Devices.
        devices: usize,
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
    /// A device cannot be opened.
    #[error("{} for {}", .kind, path.display())]
    Device {
        /// Its kind.
        kind: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
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

/// Serves all of them until SIGTERM or SIGINT, or until one fails. What is in
/// flight is then finished, and the sockets are removed.
///
/// # Errors
/// [`ServeError`].
pub fn serve(sockets: Vec<Socket>) -> Result<(), ServeError> {
    let (told, mut wait) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        pipe::register(signal, told.try_clone()?)?;
    }
    // all or none: devices are opened before the first thread is started
    let servers = sockets
        .into_iter()
        .map(open)
        .collect::<Result<Vec<_>, _>>()?;
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

fn open(socket: Socket) -> Result<(Server, tracing::Span), ServeError> {
    let Socket { path, device } = socket;
    let kind = device.kind().name;
    let span = tracing::info_span!("vhost-user", socket = %path.display(), device = kind);
    let server = span.in_scope(|| {
        let device = open_device(&device).map_err(|source| ServeError::Device {
            kind,
            path: path.clone(),
            source,
        })?;
        let server = Server::bind(&path, device, kind)?;
        tracing::info!("listening");
        Ok::<_, ServeError>(server)
    })?;
    Ok((server, span))
}

/// How long an image may stay locked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a device. A process that was killed holds the lock of its image until
/// the kernel has finished what it had asked for: a write of its would
/// otherwise come after one of ours.
fn open_device(spec: &DeviceSpec) -> Result<Box<dyn Device>, OpenError> {
    let start = Instant::now();
    let mut told = false;
    loop {
        match spec.clone().open() {
            Err(OpenError::Blk(error @ ImageError::InUse { .. })) if start.elapsed() < PATIENCE => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(%error, "waiting for it");
                }
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
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
