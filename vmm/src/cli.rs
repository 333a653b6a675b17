//! The command line: what is asked for, and how the process ends.
//!
//! The binary calls [`main`] and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use xen::Host;

use crate::config::{Config, LogLevel};
use crate::daemon::{self, Daemon, Options, StartError};
use crate::logs::{self, report};
use crate::state::StateError;

/// What `--help` says of exit codes.
const EXIT_CODES: &str = "\
Exit codes:
  0  done: left as asked, demonstration passed
  1  failed while running
  2  wrong command line
  3  configuration refused; nothing was touched
  4  this host cannot be served: no Xen, no permission, no IOREQ server, no xenstored
  5  another xen-dm daemon runs already

The environment's XEN_DM_LOG (error, warn, info, debug, trace, or a filter such as
info,vmm::discovery=trace) goes before the configuration's log level.";

/// How the process ends; `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    // 2 is clap's
    Configuration = 3,
    Host = 4,
    Running = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Configuration => 3,
            Exit::Host => 4,
            Exit::Running => 5,
        })
    }
}

/// A device model for Xen guests: their virtio disks, without QEMU.
#[derive(Debug, Parser)]
#[command(name = "xen-dm", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the virtio disks of all guests whose configuration has
    /// `specification=virtio, backendtype=standalone`.
    ///
    /// Start it before the guests: `xl create` waits ten seconds for it. On
    /// SIGTERM it leaves when no guest is attached, else it says which are
    /// and stays until they are gone.
    Daemon(DaemonArgs),
    /// Show the whole way of a disk request in this process, on a fake Xen:
    /// no privileges, no hypervisor.
    Demo,
}

#[derive(Debug, Args)]
struct DaemonArgs {
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

/// Runs the command line of the process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Daemon(args) => daemon(&args),
        Command::Demo => demo(),
    }
    .into()
}

/// Says on standard error why it ends; logs may not be there.
fn complain(error: &dyn std::error::Error, exit: Exit) -> Exit {
    eprintln!("xen-dm: {}", report(error));
    exit
}

fn daemon(args: &DaemonArgs) -> Exit {
    let config = match args.config.as_deref().map(Config::load).transpose() {
        Ok(config) => config.unwrap_or_default(),
        Err(error) => return complain(&error, Exit::Configuration),
    };
    if let Err(error) = logs::init(config.log) {
        return complain(&error, Exit::Configuration);
    }
    let options = Options {
        config,
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
            let exit = exit_of(&error);
            complain(&error, exit)
        }
    }
}

fn exit_of(error: &StartError) -> Exit {
    match error {
        StartError::Host(_)
        | StartError::NoIoreqServer
        | StartError::Xenstore(_)
        | StartError::OwnDomain(_) => Exit::Host,
        StartError::State(StateError::Running { .. }) => Exit::Running,
        StartError::State(_) | StartError::System { .. } => Exit::Failed,
    }
}

fn demo() -> Exit {
    if let Err(error) = logs::init(LogLevel::Warn) {
        return complain(&error, Exit::Configuration);
    }
    match crate::demo::run(&mut std::io::stdout()) {
        Ok(()) => Exit::Done,
        Err(error) => {
            eprintln!("xen-dm: {error:#}");
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_daemon_takes_a_file_and_force() {
        let cli = Cli::try_parse_from(["xen-dm", "daemon", "--config", "/f", "--force"]).unwrap();

        let Command::Daemon(args) = cli.command else {
            panic!("{:?}", cli.command)
        };
        assert_eq!(args.config.as_deref(), Some("/f".as_ref()));
        assert!(args.force);
    }

    #[test]
    fn help_on_force_says_what_happens_to_guests() {
        let mut command = Cli::command();
        let daemon = command.find_subcommand_mut("daemon").unwrap();

        let help = daemon.render_long_help().to_string();

        assert!(help.contains("their disks are gone"));
    }

    #[test]
    fn every_failure_to_start_has_its_exit_code() {
        let running = StateError::Running {
            lock: "/l".into(),
            pid: None,
        };

        assert_eq!(exit_of(&StartError::NoIoreqServer), Exit::Host);
        assert_eq!(exit_of(&StartError::State(running)), Exit::Running);
    }
}
