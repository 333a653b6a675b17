//! Who serves the disks: this project, qemu-storage-daemon with each of its
//! engines, and the raw file.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::client::Client;
use super::workload::Medium;
use crate::backend::{self, Backend};
use crate::processors::Layout;

/// The peer's program.
pub const PEER: &str = "qemu-storage-daemon";
/// How the peer comes onto a machine.
pub const PEER_REMEDY: &str = "sudo apt-get install --no-install-recommends qemu-system-common (where Debian is newer than 12: qemu-utils)";

/// Who serves a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Contender {
    /// This project.
    XenDm,
    /// Nobody: the client reads and writes the image itself.
    Raw,
    /// qemu-storage-daemon on nothing.
    NullCo,
    /// qemu-storage-daemon with a pool of threads.
    Threads,
    /// qemu-storage-daemon with the kernel's AIO, past the page cache.
    Native,
    /// qemu-storage-daemon with io_uring.
    IoUring,
}

impl Contender {
    /// Those that serve a medium, this project's first.
    pub fn of(medium: Medium) -> &'static [Contender] {
        match medium {
            Medium::File => &[
                Contender::XenDm,
                Contender::Raw,
                Contender::Threads,
                Contender::Native,
                Contender::IoUring,
            ],
            Medium::Null => &[Contender::XenDm, Contender::NullCo],
        }
    }

    pub fn is_peer(self) -> bool {
        !matches!(self, Contender::XenDm | Contender::Raw)
    }

    pub fn name(self) -> &'static str {
        match self {
            Contender::XenDm => "xen-dm",
            Contender::Raw => "raw file, io_uring",
            Contender::NullCo => "qemu-storage-daemon null-co",
            Contender::Threads => "qemu-storage-daemon threads",
            Contender::Native => "qemu-storage-daemon native",
            Contender::IoUring => "qemu-storage-daemon io_uring",
        }
    }
}

/// A contender at work.
pub struct Running {
    pub contender: Contender,
    // the client goes before the back end that it is connected to
    pub client: Client,
    pub backend: Option<Backend>,
}

/// Where disks are.
pub struct Place<'a> {
    pub directory: &'a Path,
    pub image: &'a Path,
    pub bytes: u64,
    pub layout: Layout,
}

impl Running {
    /// Starts a contender and connects to it. The image is everybody's: nobody
    /// may lock it against the others.
    ///
    /// # Errors
    /// What does not start, or refuses the client.
    pub fn start(contender: Contender, medium: Medium, place: &Place<'_>) -> anyhow::Result<Self> {
        let start = || {
            let word = format!("{contender:?}-{medium:?}").to_lowercase();
            let socket = place.directory.join(word).with_extension("sock");
            let backend = match contender {
                Contender::Raw => None,
                Contender::XenDm => Some(xen_dm(medium, place, &socket)?),
                peer => Some(peer_process(peer, place, &socket)?),
            };
            let client = match backend {
                Some(_) => Client::of_socket(&socket)?,
                None => Client::of_file(place.image)?,
            };
            anyhow::Ok(Running {
                contender,
                client,
                backend,
            })
        };
        start().with_context(|| contender.name())
    }
}

fn xen_dm(medium: Medium, place: &Place<'_>, socket: &Path) -> anyhow::Result<Backend> {
    let device = match medium {
        Medium::File => format!("blk,path={}", place.image.display()),
        Medium::Null => format!("blk,null={}", place.bytes),
    };
    let socket_text = socket.display().to_string();
    let arguments = ["vhost-user", "--socket", &socket_text, "--device", &device];
    Backend::start(&backend::xen_dm()?, arguments, socket, place.layout)
}

fn peer_process(peer: Contender, place: &Place<'_>, socket: &Path) -> anyhow::Result<Backend> {
    let image = place.image.display();
    let file = |engine: &str, cache: &str| {
        format!("file,filename={image},aio={engine},{cache},locking=off,node-name=disk")
    };
    let node = match peer {
        Contender::Threads => file("threads", "cache.direct=off"),
        // it works with O_DIRECT alone
        Contender::Native => file("native", "cache.direct=on"),
        Contender::IoUring => file("io_uring", "cache.direct=off"),
        _ => format!(
            "null-co,size={},read-zeroes=off,node-name=disk",
            place.bytes
        ),
    };
    let export = format!(
        "vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,iothread=io",
        socket.display()
    );
    let arguments = [
        "--object",
        "iothread,id=io",
        "--blockdev",
        &node,
        "--export",
        &export,
    ];
    Backend::start(&PathBuf::from(PEER), arguments, socket, place.layout)
}
