//! The program under test, as a child process.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tempfile::TempDir;
use tests::qcow2;

/// Bounds every wait; no test is about time.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A directory with a disk, and `xen-dm vhost-user` serving out of it.
pub struct Program {
    directory: TempDir,
    devices: Vec<(PathBuf, String)>,
    child: Option<Child>,
}

impl Program {
    /// Serves `devices`, each on the socket of its number; `DISK` in them
    /// stands for an image of `bytes`.
    pub fn serve(devices: &[&str], bytes: u64) -> Program {
        Program::on(devices, |disk| {
            File::create_new(disk).unwrap().set_len(bytes).unwrap();
        })
    }

    /// The same on a qcow2 image, which is one by the name of `format=qcow2`.
    pub fn serve_qcow2(device: &str, bytes: u64) -> Program {
        Program::on(&[device], |disk| qcow2::create(disk, bytes, None))
    }

    fn on(devices: &[&str], make: impl FnOnce(&Path)) -> Program {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        make(&disk);
        let devices = devices.iter().enumerate().map(|(number, device)| {
            let socket = directory.path().join(format!("{number}.sock"));
            (socket, device.replace("DISK", disk.to_str().unwrap()))
        });
        let mut program = Program {
            devices: devices.collect(),
            directory,
            child: None,
        };
        program.start();
        program
    }

    /// Starts it (again) and waits until it listens.
    pub fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        // few open files for a start: it is to ask for as many as it may have
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -S -n 64 && exec \"$0\" \"$@\""]);
        command.arg(env!("CARGO_BIN_EXE_served"));
        command.arg("vhost-user").stdin(Stdio::null()).stderr(log);
        command.env("XEN_DM_LOG", "debug");
        for (socket, device) in &self.devices {
            command.arg("--socket").arg(socket);
            command.arg("--device").arg(device);
        }
        let listening = self.count("listening") + self.devices.len();
        self.child = Some(command.spawn().unwrap());
        self.wait_for("listening", listening);
    }

    /// Kills it as it stands.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to leave and waits for that.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// How many open files it may have, and how many it could ask for.
    pub fn files(&self) -> Rlimit {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.id())).unwrap();
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let mut numbers = line
            .unwrap()
            .split_whitespace()
            .map(|word| word.parse().ok());
        Rlimit {
            current: numbers.next().unwrap(),
            maximum: numbers.next().unwrap(),
        }
    }

    /// Leaves it no descriptors but `count`, until it may have all again.
    pub fn leave_files(&self, count: Option<usize>) {
        let Rlimit { maximum, .. } = self.files();
        let open = |number: &u64| Path::new(&format!("/proc/{}/fd/{number}", self.id())).exists();
        let current = match count {
            Some(count) => (0..).filter(|number| !open(number)).nth(count),
            None => maximum,
        };
        let pid = Pid::from_child(self.child.as_ref().unwrap());
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }).unwrap();
    }

    fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The socket of a device.
    pub fn socket(&self, number: usize) -> &Path {
        &self.devices[number].0
    }

    /// A connection to the socket of a device.
    pub fn connect(&self, number: usize) -> UnixStream {
        UnixStream::connect(self.socket(number)).unwrap()
    }

    /// The image.
    pub fn image(&self) -> Vec<u8> {
        fs::read(self.directory.path().join("disk")).unwrap()
    }

    /// The disk in the image, which is in the format qcow2.
    pub fn qcow2_image(&self) -> Vec<u8> {
        qcow2::disk(&self.directory.path().join("disk"))
    }

    /// How many lines of the log have `text`.
    pub fn count(&self, text: &str) -> usize {
        self.lines(text).len()
    }

    /// The lines of the log that have `text`.
    pub fn lines(&self, text: &str) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }

    /// Waits until `count` lines of the log have `text`.
    pub fn wait_for(&self, text: &str, count: usize) {
        eventually(&format!("{count} lines with {text:?} in the log"), || {
            self.count(text) >= count
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("its log:\n{}", self.lines("").join("\n"));
        }
    }
}

/// Waits until `holds`.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "there is no {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
