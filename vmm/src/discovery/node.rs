//! A device's nodes: what all kinds have, and the means to read the rest.

use xen::DomId;
use xen::xenstore::{Node, NodeValue};

use super::disk::DiskNode;
use super::virtio::VirtioType;
use super::{Kind, NodeError};
use crate::guest::MmioWindow;

/// The least number of an interrupt that a device can have
/// (`NR_LOCAL_IRQS`, `xen/include/public/arch-arm.h`: SPIs start there).
const FIRST_SPI: u32 = 32;

/// A device as xenstore describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// `base`: guest-physical address of the registers.
    pub base: u64,
    /// `irq`: an SPI.
    pub irq: u32,
    /// `grant_usage`: the guest is to use grants.
    pub grants: bool,
    /// What kind of device it is to be.
    pub announced: Announced,
}

/// What only devices of a kind have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced {
    /// A disk, and what is on it.
    Disk(DiskNode),
    /// A device of a type; what is behind it xenstore does not say.
    Virtio(VirtioType),
}

impl DeviceNode {
    /// Reads a device of guest `domid`.
    ///
    /// # Errors
    /// [`NodeError`] about the first node that is wrong.
    pub(super) fn read(
        node: &Node<'_>,
        kind: &Kind,
        domid: DomId,
    ) -> Result<DeviceNode, NodeError> {
        one_of(node, "frontend-id", &[&domid.to_string()])?;
        one_of(node, "transport", &["mmio"])?;
        Ok(DeviceNode {
            announced: (kind.read)(node)?,
            base: base(node)?,
            irq: irq(node)?,
            grants: read(node, "grant_usage")?,
        })
    }
}

fn base(node: &Node<'_>) -> Result<u64, NodeError> {
    let base: u64 = read(node, "base")?;
    let window = MmioWindow::ARM;
    match window.has_slot(base) {
        true => Ok(base),
        false => {
            let expected = format!("the address of a register window within {window}");
            Err(unserved(node, "base", format!("{base:#x}"), expected))
        }
    }
}

fn irq(node: &Node<'_>) -> Result<u32, NodeError> {
    let irq: u32 = read(node, "irq")?;
    match irq >= FIRST_SPI {
        true => Ok(irq),
        false => {
            let expected = format!("a shared interrupt, from {FIRST_SPI} on");
            Err(unserved(node, "irq", irq.to_string(), expected))
        }
    }
}

/// Reads a key that has to be there.
pub(super) fn read<T: NodeValue>(node: &Node<'_>, key: &str) -> Result<T, NodeError> {
    node.read(key).map_err(NodeError::Node)
}

/// Reads a key that has to hold one of `known`.
pub(super) fn one_of<'a>(
    node: &Node<'_>,
    key: &str,
    known: &[&'a str],
) -> Result<&'a str, NodeError> {
    let value: String = read(node, key)?;
    known
        .iter()
        .find(|word| **word == value)
        .copied()
        .ok_or_else(|| unserved(node, key, value, known.join(" or ")))
}

/// A key holds what is not served.
pub(super) fn unserved(
    node: &Node<'_>,
    key: &str,
    value: impl Into<String>,
    expected: impl Into<String>,
) -> NodeError {
    NodeError::Unserved {
        path: node.child(key).path().to_owned(),
        value: value.into(),
        expected: expected.into(),
    }
}
