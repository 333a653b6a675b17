//! A back end as a child process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::Stand;

/// The directory with the programs.
const PROGRAMS: &str = "XEN_DM_BACK_ENDS";
/// Until a back end has its socket.
const PATIENCE: Duration = Duration::from_secs(30);

/// Those that run. The thread of a test that hangs never drops its own.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Kills all that run: a test hangs, and has failed.
pub fn kill_all() {
    for process in RUNNING.lock().unwrap().drain(..) {
        let _ = kill_process(process, Signal::KILL);
    }
}

/// A back end, ended with this.
pub struct Peer {
    program: PathBuf,
    arguments: Vec<String>,
    socket: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Peer {
    /// Starts `program`, which listens on `socket`, and waits until it does.
    fn start(program: &str, socket: PathBuf, arguments: Vec<String>) -> Peer {
        let programs: OsString = std::env::var_os(PROGRAMS).unwrap_or_else(|| {
            panic!("{PROGRAMS} names no directory: run tests/vhost-user/back-ends")
        });
        let mut peer = Peer {
            program: Path::new(&programs).join(program),
            arguments,
            log: socket.with_extension("log"),
            socket,
            child: None,
        };
        peer.start_again();
        peer
    }

    /// QEMU's storage daemon with a raw image, to be written.
    pub fn storage_daemon(stand: &Stand, image: &Path) -> Peer {
        Peer::storage_daemon_named(stand, "storage", image)
    }

    /// One of several; its socket has the name.
    pub fn storage_daemon_named(stand: &Stand, name: &str, image: &Path) -> Peer {
        let socket = stand.path(&format!("{name}.sock"));
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=image,writable=on,num-queues=2,addr.type=unix,addr.path={}",
            socket.display()
        );
        let image = format!("driver=file,node-name=image,filename={}", image.display());
        let arguments = ["--blockdev", &image, "--export", &export].map(Into::into);
        Peer::start("qemu-storage-daemon", socket, arguments.into())
    }

    /// SPDK's vhost target with a raw image, to be written. It polls, as DPDK's
    /// programs do.
    pub fn spdk(stand: &Stand, image: &Path) -> Peer {
        let path = |name: &str| stand.path(name).display().to_string();
        let config = format!(
            r#"{{"subsystems": [
                {{"subsystem": "iobuf", "config": [{{"method": "iobuf_set_options",
                    "params": {{"small_pool_count": 1024, "large_pool_count": 128}}}}]}},
                {{"subsystem": "bdev", "config": [{{"method": "bdev_aio_create",
                    "params": {{"name": "image", "block_size": 512, "filename": "{}"}}}}]}},
                {{"subsystem": "vhost_blk", "config": [{{"method": "vhost_create_blk_controller",
                    "params": {{"ctrlr": "spdk.sock", "dev_name": "image"}}}}]}}
            ]}}"#,
            image.display()
        );
        fs::write(stand.path("spdk.json"), config).unwrap();
        let arguments = [
            "--no-huge".into(),
            "--mem-size=512".into(),
            "--no-pci".into(),
            "--cpumask=0x1".into(),
            // one that was killed, and another test's
            "--disable-cpumask-locks".into(),
            format!("--rpc-socket={}", path("spdk.rpc")),
            format!("-S{}", path("")),
            format!("--config={}", path("spdk.json")),
        ];
        Peer::start("spdk-vhost", stand.path("spdk.sock"), arguments.into())
    }

    /// virtiofsd with a directory, which the guest knows as `shared`.
    pub fn virtiofsd(stand: &Stand, directory: &Path) -> Peer {
        let socket = stand.path("fs.sock");
        let arguments = [
            format!("--socket-path={}", socket.display()),
            format!("--shared-dir={}", directory.display()),
            "--tag=shared".into(),
            // a mount namespace of its own is nothing that these tests are about
            "--sandbox=none".into(),
        ];
        Peer::start("virtiofsd", socket, arguments.into())
    }

    /// vhost-device-rng with the kernel's random numbers.
    pub fn rng(stand: &Stand) -> Peer {
        // it counts its sockets
        let arguments = [format!(
            "--socket-path={}",
            stand.path("rng.sock").display()
        )];
        Peer::start(
            "vhost-device-rng",
            stand.path("rng.sock0"),
            arguments.into(),
        )
    }

    /// vhost-device-vsock, whose sockets of the host begin with `path`.
    pub fn vsock(stand: &Stand, cid: u64, path: &Path) -> Peer {
        let socket = stand.path("vsock.sock");
        let arguments = [
            format!("--guest-cid={cid}"),
            format!("--socket={}", socket.display()),
            format!("--uds-path={}", path.display()),
        ];
        Peer::start("vhost-device-vsock", socket, arguments.into())
    }

    /// vhost-device-scsi with a unit for each image.
    pub fn scsi(stand: &Stand, images: &[PathBuf]) -> Peer {
        let socket = stand.path("scsi.sock");
        let mut arguments = vec![format!("--socket-path={}", socket.display())];
        arguments.extend(images.iter().map(|image| image.display().to_string()));
        Peer::start("vhost-device-scsi", socket, arguments)
    }

    /// vhost-device-sound that plays into nothing.
    pub fn sound(stand: &Stand) -> Peer {
        let socket = stand.path("sound.sock");
        let arguments = [
            format!("--socket={}", socket.display()),
            "--backend=null".into(),
        ];
        Peer::start("vhost-device-sound", socket, arguments.into())
    }

    /// vhost-device-console whose terminal is a port of this host.
    pub fn console(stand: &Stand, port: u16) -> Peer {
        let arguments = [
            format!("--socket-path={}", stand.path("console.sock").display()),
            format!("--tcp-port={port}"),
            "--backend=network".into(),
        ];
        let socket = stand.path("console.sock0");
        Peer::start("vhost-device-console", socket, arguments.into())
    }

    /// DPDK's testpmd with one port, which sends every frame back to where it
    /// came from. It polls: a processor is its own as long as it runs.
    pub fn testpmd(stand: &Stand) -> Peer {
        let socket = stand.path("net.sock");
        let arguments = [
            // a thread for commands and one that forwards, on whatever processors
            "--lcores=0@0,1@1",
            "--no-huge",
            "-m128",
            "--no-pci",
            "--no-shconf",
            "--no-telemetry",
            &format!("--vdev=net_vhost0,iface={}", socket.display()),
            "--",
            "--total-num-mbufs=4096",
            "--forward-mode=macswap",
            "--auto-start",
            // else it ends when its standard input does
            "--stats-period=3600",
        ];
        let arguments = arguments.map(Into::into).into();
        Peer::start("dpdk-testpmd", socket, arguments)
    }

    /// Starts it (again) and waits until it listens.
    pub fn start_again(&mut self) {
        // one that was killed leaves its socket, which the next has to replace
        let _ = fs::remove_file(&self.socket);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{} cannot be started: {error}", self.program.display())
        });
        RUNNING.lock().unwrap().push(Pid::from_child(&child));
        let deadline = Instant::now() + PATIENCE;
        while !self.socket.exists() {
            let ended = child.try_wait().unwrap();
            assert_eq!(ended, None, "it ended: {}", self.said());
            assert!(Instant::now() < deadline, "no socket: {}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
    }

    /// Kills it as it stands.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let process = Pid::from_child(&child);
            RUNNING.lock().unwrap().retain(|other| *other != process);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{} said:\n{}", self.program.display(), self.said());
        }
    }
}
