//! Back ends as processes of their own: started, waited for, their processor
//! time, and their end.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::processors::{self, Layout};

/// How long a back end may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that is measured, while it runs; it ends with this.
pub struct Backend {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Backend {
    /// Starts a program and waits until it listens on `socket`. What it says goes
    /// to a file beside the socket. The calling thread is the client's.
    ///
    /// # Errors
    /// A program that is missing, or that ends; with what it said.
    pub fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        socket: &Path,
        layout: Layout,
    ) -> anyhow::Result<Self> {
        let name = program.display().to_string();
        let log = socket.with_extension("log");
        let out = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(out.try_clone()?).stderr(out);
        // what is started inherits the processors
        processors::keep_to(&processors::of_backends(layout)?)?;
        let child = command.spawn().with_context(|| format!("starting {name}"));
        match layout {
            Layout::Anywhere => {}
            Layout::Together | Layout::Apart => processors::pin(processors::of_client()?)?,
        }
        let mut backend = Backend {
            name,
            child: child?,
            log,
        };
        backend.await_socket(socket)?;
        Ok(backend)
    }

    fn await_socket(&mut self, socket: &Path) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        // to connect would be to be served
        while !socket.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.said());
            }
            if Instant::now() > end {
                bail!("{} does not listen:\n{}", self.name, self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What it has written to its standard output and error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that its threads have had.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        processor_time(self.pid())
            .with_context(|| format!("{} is gone:\n{}", self.name, self.said()))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processor time of a process's threads, the kernel's for io_uring
/// included. Linux Documentation/scheduler/sched-stats.rst, schedstat
fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let figures = match std::fs::read_to_string(thread?.path().join("schedstat")) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        let own = figures.split(' ').next().and_then(|text| text.parse().ok());
        nanos += own.unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// xen-dm, as it was built beside this program.
///
/// # Errors
/// Where it was not.
pub fn xen_dm() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let path = own.with_file_name("xen-dm");
    anyhow::ensure!(path.exists(), "{} is not built", path.display());
    Ok(path)
}

/// The first line that a program says when it is asked for its version; `None`
/// if there is no such program.
pub fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.lines().next().map(str::to_owned)
}
