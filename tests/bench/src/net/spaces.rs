//! Two network namespaces of this bench's own, which end with it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The namespaces.
pub struct Spaces {
    names: [String; 2],
}

/// One of the two ways from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A pair of veth.
    Veth,
    /// Taps, cards, and a guest between them.
    Cards,
}

impl Way {
    /// The interface, the same in both namespaces.
    pub fn interface(self) -> &'static str {
        match self {
            Way::Veth => "veth",
            Way::Cards => "tap",
        }
    }

    /// The address of an end.
    pub fn address(self, end: usize) -> String {
        let net = match self {
            Way::Veth => 1,
            Way::Cards => 2,
        };
        format!("10.77.{net}.{}", end + 1)
    }
}

impl Spaces {
    /// Makes them, connected by a pair of veth.
    ///
    /// # Errors
    /// No permission.
    pub fn new() -> anyhow::Result<Self> {
        let id = std::process::id();
        let spaces = Spaces {
            names: ["a", "b"].map(|end| format!("xen-dm-bench-{id}-{end}")),
        };
        for name in &spaces.names {
            ip(&["netns", "add", name]).context("network namespaces need root")?;
        }
        let [a, b] = &spaces.names;
        let veth = Way::Veth.interface();
        let peer = ["peer", "name", veth, "netns", b];
        ip(&[&["-n", a, "link", "add", veth, "type", "veth"], &peer[..]].concat())?;
        (0..2).try_for_each(|end| spaces.bring_up(end, Way::Veth))?;
        Ok(spaces)
    }

    /// Gives an end's interface its address.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn bring_up(&self, end: usize, way: Way) -> anyhow::Result<()> {
        let name = self.name(end)?;
        let (interface, address) = (way.interface(), way.address(end) + "/24");
        ip(&["-n", name, "addr", "add", &address, "dev", interface])?;
        ip(&["-n", name, "link", "set", interface, "up"])
    }

    /// A command that runs `program` in a namespace.
    ///
    /// # Errors
    /// There are but two.
    pub fn arguments(&self, end: usize, program: &Path) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let words = ["netns", "exec", self.name(end)?].map(str::to_owned);
        let mut words = words.to_vec();
        words.push(program.display().to_string());
        Ok((PathBuf::from("ip"), words))
    }

    /// Moves the calling thread into a namespace, for good.
    ///
    /// # Errors
    /// No permission.
    pub fn enter(&self, end: usize) -> anyhow::Result<()> {
        let file = File::open(Path::new("/run/netns").join(self.name(end)?))?;
        Ok(move_into_link_name_space(
            file.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    fn name(&self, end: usize) -> anyhow::Result<&str> {
        let name = self.names.get(end).context("there are two ends")?;
        Ok(name)
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for name in &self.names {
            // with all that is in it
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
