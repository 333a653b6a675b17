//! The nodes of a disk with `specification=virtio` (`device_disk_add`,
//! `tools/libs/light/libxl_disk.c`).

use std::path::PathBuf;

use xen::DomId;
use xen::xenstore::{Error as XenstoreError, Node};

use super::NodeError;
use crate::guest::MmioWindow;

/// Its directory under `backend`.
pub(super) const KIND: &str = "virtio_disk";
/// The least number of an interrupt that a device can have
/// (`NR_LOCAL_IRQS`, `xen/include/public/arch-arm.h`: SPIs start there).
const FIRST_SPI: u32 = 32;

/// A disk as xenstore describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskNode {
    /// `params`: the image.
    pub image: PathBuf,
    /// `mode` without `w`, or `device-type` `cdrom`.
    pub readonly: bool,
    /// `discard-enable`.
    pub discard: bool,
    /// `dev`: the name in the guest's configuration, such as `xvda`.
    pub name: Option<String>,
    /// `base`: guest-physical address of the registers.
    pub base: u64,
    /// `irq`: an SPI.
    pub irq: u32,
    /// `grant_usage`: the guest is to use grants.
    pub grants: bool,
}

impl DiskNode {
    /// Reads a disk of guest `domid`.
    ///
    /// # Errors
    /// [`NodeError`] about the first node that is wrong.
    pub(super) fn read(node: &Node<'_>, domid: DomId) -> Result<DiskNode, NodeError> {
        one_of(node, "frontend-id", &[&domid.to_string()])?;
        one_of(node, "specification", &["virtio"])?;
        one_of(node, "transport", &["mmio"])?;
        let image: String = read(node, "params")?;
        if !image.starts_with('/') {
            return Err(unserved(
                node,
                "params",
                image,
                "the absolute path of an image",
            ));
        }
        let mode = one_of(node, "mode", &["w", "r"])?;
        let device_type = one_of(node, "device-type", &["disk", "cdrom"])?;
        Ok(DiskNode {
            image: PathBuf::from(image),
            readonly: mode == "r" || device_type == "cdrom",
            discard: node
                .read_optional("discard-enable")
                .map_err(NodeError::Node)?
                .unwrap_or(false),
            name: node.read_optional("dev").map_err(NodeError::Node)?,
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

fn read<T: xen::xenstore::NodeValue>(node: &Node<'_>, key: &str) -> Result<T, NodeError> {
    node.read(key).map_err(NodeError::Node)
}

/// Reads a key that has to hold one of `known`.
fn one_of<'a>(node: &Node<'_>, key: &str, known: &[&'a str]) -> Result<&'a str, NodeError> {
    let value: String = read(node, key)?;
    known
        .iter()
        .find(|word| **word == value)
        .copied()
        .ok_or_else(|| unserved(node, key, value, known.join(" or ")))
}

fn unserved(
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

impl From<XenstoreError> for NodeError {
    fn from(error: XenstoreError) -> Self {
        NodeError::Node(error)
    }
}
