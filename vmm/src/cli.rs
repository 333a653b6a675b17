//! The command line: what is asked for, and how the process ends.
//!
//! The binary calls [`main`] and nothing else.

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Parser, Subcommand};
use xen::{DomId, Host};

use crate::check;
use crate::config::{Config, LogLevel};
use crate::daemon::{self, Daemon, Options, Scope, StartError};
use crate::logs::{self, report};
use crate::run::{self, DeviceArgument, Places, vhost_user};
use crate::state::StateError;
use crate::status::{self, ClientError};

/// What `--help` says of exit codes.
const EXIT_CODES: &str = "\
Exit codes:
  0  done: left as asked, the guest of `run` is over, demonstration passed
  1  failed: no such guest, a device refused, a socket or an image in use, or an error while running
  2  wrong command line
  3  configuration refused; nothing was touched
  4  this host cannot be served: no Xen, no permission, no IOREQ server, no xenstored
  5  another xen-dm daemon runs already, or serves the guest of `run`
  6  no daemon to ask (`status`)

Kinds of devices: blk (a disk), net, console, rng, vsock, and vhost-user, which is
what its back end is. Their keys stand in the annotated configuration that comes
with the sources, resources/xen-dm.toml.

The environment's XEN_DM_LOG (error, warn, info, debug, trace, or a filter such as
info,vmm::discovery=trace) goes before the configuration's log level.";

/// How the process ends; `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    /// What clap ends with, too.
    Usage = 2,
    Configuration = 3,
    Host = 4,
    Running = 5,
    Absent = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Configuration => 3,
            Exit::Host => 4,
            Exit::Running => 5,
            Exit::Absent => 6,
        })
    }
}

/// A device model for Xen guests: their virtio devices, without QEMU.
#[derive(Debug, Parser)]
#[command(name = "xen-dm", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the virtio devices of all guests: disks with
    /// `specification=virtio, backendtype=standalone`, and `virtio = [ ... ]`.
    ///
    /// Start it before the guests: `xl create` waits ten seconds for it. On
    /// SIGTERM it leaves when no guest is attached, else it says which are
    /// and stays until they are gone. On SIGHUP it reads its configuration
    /// anew, for guests and devices to come; one that is wrong is logged, and
    /// the old one stays in force.
    Daemon(ServeArgs),
    /// Serve one guest, in the foreground, until it is over.
    ///
    /// Without --disk and --device, the guest's devices are those that
    /// xenstore announces. With them, they are served whether or not a
    /// toolstack knows of them: for guests that Xen has made at its start, and
    /// other toolstacks. Once the guest is served, `running` is written to
    /// device-model/N/state in this domain's xenstore directory. Signals are
    /// those of `daemon`.
    Run(RunArgs),
    /// Serve devices to any VMM, each as a vhost-user back end on a socket of
    /// its own, until SIGTERM, SIGINT or SIGHUP. Needs no Xen. An image that is
    /// locked is waited for, ten seconds.
    ///
    /// One front end at a time is served on a socket; when it goes away, its
    /// device is reset and the next one may connect. A front end that has this
    /// process restarted under it and hands the in-flight region back loses no
    /// request. Its rings must not be longer than the device's `queue-size`.
    VhostUser(VhostUserArgs),
    /// Tell what this host offers and lacks for serving guests, with the
    /// remedy for each. Changes nothing and needs no privileges.
    ///
    /// Ends with 0 if guests can be served by this user, else with 4.
    /// With --config a configuration file is looked at and nothing else, as
    /// before a reload: it ends with 0 if the daemon takes it, else with 3.
    Check(CheckArgs),
    /// Tell what the running daemon serves, and what it has counted.
    ///
    /// It is asked over its control socket, as its own user, root as a rule.
    /// Ends with 6 if there is no daemon.
    Status(StatusArgs),
    /// Show the whole way of a disk request in this process, on a fake Xen:
    /// no privileges, no hypervisor.
    Demo,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    format: FormatArgs,
    /// The configuration file (TOML) to look at, in place of the host.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The configuration file (TOML); without it, the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave at SIGTERM even while guests are attached. What happens to them:
    /// requests in flight are finished and flushed, then their disks are gone.
    /// Nobody answers their accesses any more, so that a guest that touches a
    /// disk faults and most likely panics; a daemon started again serves the
    /// disk anew, but only to a driver that starts anew.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct FormatArgs {
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    format: FormatArgs,
    /// The daemon's configuration file, which may say where its socket is.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["config", "domid"])]
    socket: Option<PathBuf>,
    /// Ask the `xen-dm run` of this guest in place of the daemon.
    #[arg(long, value_name = "N")]
    domid: Option<u16>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("devices").args(["disk", "device"]).multiple(true))]
struct RunArgs {
    /// The guest's number.
    #[arg(long, value_name = "N")]
    domid: u16,
    /// A disk: an image, and keys as of --device blk. May be repeated; disks
    /// come before other devices.
    #[arg(long, value_name = "PATH[,KEY=VALUE...]", value_parser = run::parse_disk)]
    disk: Vec<DeviceArgument>,
    /// A device: its kind, and keys as in the configuration file, such as
    /// `blk,path=/disk.img,readonly`; a key alone is true. Lists and tables are
    /// written as there, and a text with a comma in quotation marks:
    /// `console,port=[{name="agent",backend="socket",path="/run/agent"}]`. Every
    /// kind has mmio=ADDRESS, irq=N and grants=BOOL, too. May be repeated.
    #[arg(long, value_name = "KIND[,KEY=VALUE...]")]
    device: Vec<DeviceArgument>,
    /// Where the first device without mmio= has its registers; each further
    /// one follows at 0x200 bytes.
    #[arg(long, value_name = "ADDRESS", default_value = "0x2000000",
          value_parser = run::parse_mmio, requires = "devices")]
    mmio: u64,
    /// The interrupt of the first device without irq=, an SPI's number in the
    /// interrupt controller (from 32); each further one has the next.
    #[arg(long, value_name = "N", default_value = "33", value_parser = run::parse_irq,
          requires = "devices")]
    irq: u32,
    /// Devices without grants= have the guest use grants.
    #[arg(long, requires = "devices")]
    grants: bool,
    /// Whether the guest is mapped 1:1, as Xen makes it with `direct-map` in
    /// its device tree. Without it, what the configuration says counts, then
    /// the toolstack's word in /libxl/N/xen-dm/features, else that it is not.
    #[arg(long, value_name = "BOOL", require_equals = true, num_args = 0..=1,
          default_missing_value = "true")]
    direct_mapped: Option<bool>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Args)]
struct VhostUserArgs {
    /// Where to listen for the front end of the device at the same place in
    /// the order of --device. A socket that nobody listens on is replaced.
    #[arg(long, value_name = "PATH", required = true)]
    socket: Vec<PathBuf>,
    /// A device, as of `run`. May be repeated, with its socket.
    #[arg(long, value_name = "KIND[,KEY=VALUE...]", required = true)]
    device: Vec<DeviceArgument>,
}

/// Runs the command line of the process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Daemon(args) => serve(args, Scope::All),
        Command::Run(args) => run_one(args),
        Command::VhostUser(args) => serve_sockets(args),
        Command::Check(args) => check(&args),
        Command::Status(args) => status(args),
        Command::Demo => demo(),
    }
    .into()
}

/// Says on standard error why it ends; logs may not be there.
fn complain(error: &dyn std::error::Error, exit: Exit) -> Exit {
    eprintln!("xen-dm: {}", report(error));
    exit
}

fn run_one(args: RunArgs) -> Exit {
    let places = Places {
        mmio: args.mmio,
        irq: args.irq,
        grants: args.grants,
    };
    let devices = args.disk.into_iter().chain(args.device).collect();
    match run::scope(DomId(args.domid), devices, places, args.direct_mapped) {
        Ok(scope) => serve(args.serve, scope),
        Err(error) => complain(&error, Exit::Usage),
    }
}

fn serve(args: ServeArgs, scope: Scope) -> Exit {
    let config = match args.config.as_deref().map(Config::load).transpose() {
        Ok(config) => config.unwrap_or_default(),
        Err(error) => return complain(&error, Exit::Configuration),
    };
    if let Err(error) = logs::init(config.log) {
        return complain(&error, Exit::Configuration);
    }
    let options = Options {
        config,
        config_file: args.config,
        scope,
        force: args.force,
    };
    let control = daemon::control().and_then(|(stop, control)| {
        stop.on_signals()?;
        Ok(control)
    });
    let control = match control {
        Ok(control) => control,
        Err(error) => return complain(&error, Exit::Failed),
    };
    match Daemon::start(Host::Kernel, options, control) {
        Ok(daemon) => match daemon.run() {
            Ok(()) => Exit::Done,
            Err(error) => complain(&error, Exit::Failed),
        },
        Err(error) => {
            eprintln!("xen-dm: {}", explained(&error));
            exit_of(&error)
        }
    }
}

/// What is wrong, why, and what helps.
fn explained(error: &StartError) -> String {
    match error.remedy() {
        Some(remedy) => format!("{}: {remedy}", report(error)),
        None => report(error),
    }
}

fn serve_sockets(args: VhostUserArgs) -> Exit {
    if let Err(error) = logs::init(LogLevel::Info) {
        return complain(&error, Exit::Configuration);
    }
    let sockets = match vhost_user::pair(args.socket, args.device) {
        Ok(sockets) => sockets,
        Err(error) => return complain(&error, Exit::Usage),
    };
    match vhost_user::serve(sockets) {
        Ok(()) => Exit::Done,
        Err(error) => complain(&error, Exit::Failed),
    }
}

fn exit_of(error: &StartError) -> Exit {
    match error {
        StartError::Host(_)
        | StartError::NoIoreqServer
        | StartError::Xenstore(_)
        | StartError::OwnDomain(_) => Exit::Host,
        StartError::State(StateError::Running { .. } | StateError::Served { .. }) => Exit::Running,
        StartError::State(_)
        | StartError::System { .. }
        | StartError::NoGuest(_)
        | StartError::Guest { .. }
        | StartError::Device { .. } => Exit::Failed,
    }
}

fn check(args: &CheckArgs) -> Exit {
    if let Some(file) = &args.config {
        return match Config::load(file) {
            Ok(_) => Exit::Done,
            Err(error) => complain(&error, Exit::Configuration),
        };
    }
    let report = check::run(&Host::Kernel);
    let printed = match args.format.json {
        true => print_json(&report),
        false => check::print(&report, &mut std::io::stdout().lock()),
    };
    match (read(printed), report.can_serve) {
        (Err(error), _) => complain(&error, Exit::Failed),
        (Ok(()), true) => Exit::Done,
        (Ok(()), false) => Exit::Host,
    }
}

fn status(args: StatusArgs) -> Exit {
    let config = match args.config.as_deref().map(Config::load).transpose() {
        Ok(config) => config.unwrap_or_default(),
        Err(error) => return complain(&error, Exit::Configuration),
    };
    let socket = args
        .socket
        .unwrap_or_else(|| config.control_socket(args.domid.map(DomId)));
    let status = match status::ask(&socket) {
        Ok(status) => status,
        Err(ClientError::NoDaemon { path }) => {
            let error = match args.domid {
                Some(domid) => ClientError::NoRun { domid, path },
                None => ClientError::NoDaemon { path },
            };
            let exit = complain(&error, Exit::Absent);
            if !Host::Kernel.is_on_xen() {
                eprintln!("xen-dm: none can run here: {}", check::remedy::NO_XEN);
            }
            return exit;
        }
        Err(error) => return complain(&error, Exit::Failed),
    };
    let printed = match args.format.json {
        true => print_json(&status),
        false => status::print(&status, &mut std::io::stdout().lock()),
    };
    match read(printed) {
        Ok(()) => Exit::Done,
        Err(error) => complain(&error, Exit::Failed),
    }
}

/// Whether what was printed reached its reader, who (head, a pager) may have
/// seen enough.
fn read(printed: std::io::Result<()>) -> std::io::Result<()> {
    match printed {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

fn print_json(value: &impl serde::Serialize) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

fn demo() -> Exit {
    if let Err(error) = logs::init(LogLevel::Warn) {
        return complain(&error, Exit::Configuration);
    }
    match crate::demo::run(&mut std::io::stdout()) {
        Ok(()) => Exit::Done,
        // whoever read it (head, a pager) has seen enough
        Err(error) if is_broken_pipe(&error) => Exit::Done,
        Err(error) => {
            eprintln!("xen-dm: demo: {error:#}");
            Exit::Failed
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
