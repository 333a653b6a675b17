//! The nodes of a disk with `specification=virtio` (`device_disk_add`,
//! `tools/libs/light/libxl_disk.c`).

use std::path::PathBuf;

use xen::xenstore::Node;

use super::NodeError;
use super::node::{Announced, one_of, read, unserved};

/// Its directory under `backend`.
pub(super) const KIND: &str = "virtio_disk";

/// What xenstore says of a disk.
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
}

/// Reads what only disks have.
///
/// # Errors
/// [`NodeError`] about the first node that is wrong.
pub(super) fn read_disk(node: &Node<'_>) -> Result<Announced, NodeError> {
    one_of(node, "specification", &["virtio"])?;
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
    Ok(Announced::Disk(DiskNode {
        image: PathBuf::from(image),
        readonly: mode == "r" || device_type == "cdrom",
        discard: node
            .read_optional("discard-enable")
            .map_err(NodeError::Node)?
            .unwrap_or(false),
        name: node.read_optional("dev").map_err(NodeError::Node)?,
    }))
}
