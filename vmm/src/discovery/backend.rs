//! A device's directory: read as a whole, and what is written into it.

use xen::DomId;
use xen::xenstore::{Error, Node, Transaction, Tree, XenbusState, Xenstore, path};

use super::node::DeviceNode;
use super::place::{Place, Root, decimal};
use super::{KINDS, NodeError, is_about_nodes, is_refused};
use crate::guest::DeviceKey;

/// Longest error text that is written, characters.
const ERROR_MAX: usize = 1024;

/// What the toolstack wants of a device; read often, so at little cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is none.
    Gone,
    /// It has just been written: `state` 1.
    New,
    /// It is to be served.
    Wanted,
    /// It is to be closed: `state` 5, or `online` 0.
    Closing,
    /// It is closed: `state` 6.
    Closed,
}

/// A device's nodes as a whole.
#[derive(Debug)]
pub enum Seen {
    /// There are none.
    Gone,
    /// A device to be served.
    Device(Backend),
    /// It should be one, and its nodes are wrong.
    Malformed(NodeError),
}

/// A device to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// `state`.
    pub state: XenbusState,
    /// The rest.
    pub node: DeviceNode,
}

/// Every device that xenstore has for this domain.
///
/// # Errors
/// xenstore's.
pub fn list(store: &Xenstore, root: &Root) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    for kind in KINDS {
        let kind_path = root.kind(kind.name);
        for domid in children(store, &kind_path)?
            .iter()
            .filter_map(|name| decimal(name))
        {
            for devid in children(store, &format!("{kind_path}/{domid}"))? {
                match decimal(&devid) {
                    Some(devid) => places.push(Place {
                        domid: DomId(domid),
                        key: DeviceKey::new(kind.name, devid),
                    }),
                    None => tracing::warn!(
                        "xenstore {kind_path}/{domid} has {devid:?}, which is no device number"
                    ),
                }
            }
        }
    }
    Ok(places)
}

fn children(store: &Xenstore, path: &str) -> Result<Vec<String>, Error> {
    match store.directory(path) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => other,
    }
}

/// What is wanted of a device. Nothing else of it need be right.
///
/// # Errors
/// xenstore's.
pub fn read_life(store: &Xenstore, root: &Root, place: &Place) -> Result<Life, Error> {
    let node = store.at(root.device(place));
    let state = match node.read_optional::<XenbusState>("state") {
        Ok(Some(state)) => Some(state),
        Ok(None) if !node.exists("")? => return Ok(Life::Gone),
        Err(error) if !is_about_nodes(&error) => return Err(error),
        Ok(None) | Err(_) => None,
    };
    match state {
        Some(XenbusState::Closed) => return Ok(Life::Closed),
        Some(XenbusState::Closing) => return Ok(Life::Closing),
        _ => {}
    }
    match node.read_optional::<bool>("online") {
        Ok(Some(false)) => Ok(Life::Closing),
        Err(error) if !is_about_nodes(&error) => Err(error),
        _ if state == Some(XenbusState::Initialising) => Ok(Life::New),
        _ => Ok(Life::Wanted),
    }
}

/// Reads a device's nodes in one transaction.
///
/// # Errors
/// xenstore's; what is wrong with the nodes themselves is [`Seen::Malformed`].
pub fn read_backend(store: &Xenstore, root: &Root, place: &Place) -> Result<Seen, Error> {
    let path = root.device(place);
    store.transaction(|tx| {
        if !tx.exists(&path)? {
            return Ok(Seen::Gone);
        }
        match read_device(&tx.at(path.as_str()), place) {
            Ok(device) => Ok(Seen::Device(device)),
            Err(NodeError::Node(error)) if !is_about_nodes(&error) => Err(error),
            Err(error) => Ok(Seen::Malformed(error)),
        }
    })
}

fn read_device(node: &Node<'_>, place: &Place) -> Result<Backend, NodeError> {
    let state = node.read::<XenbusState>("state")?;
    node.read_optional::<bool>("online")?;
    let kind = KINDS.iter().find(|kind| kind.name == place.key.kind);
    let kind = kind.ok_or_else(|| NodeError::Kind(place.key.kind.clone()))?;
    let node = DeviceNode::read(node, kind, place.domid)?;
    Ok(Backend { state, node })
}

/// Writes a device's state, unless its directory is gone, or the device is to
/// be closed and `state` does not close it. Returns whether it was written.
///
/// # Errors
/// xenstore's.
pub fn write_state(
    store: &Xenstore,
    root: &Root,
    place: &Place,
    state: XenbusState,
) -> Result<bool, Error> {
    store.transaction(|tx| {
        let node = tx.at(root.device(place));
        let found = node.read_optional::<String>("state")?;
        let Some(found) = found else { return Ok(false) };
        let closes = state == XenbusState::Closed;
        let is_closing = [XenbusState::Closing, XenbusState::Closed]
            .iter()
            .any(|closing| found == closing.to_string());
        if found == state.to_string() || (is_closing && !closes) {
            return Ok(false);
        }
        node.write("state", state)?;
        Ok(true)
    })
}

/// Tells the toolstack what is wrong with a device: in the place where Linux'
/// xenbus puts errors, and in the device's directory if it is there. The text
/// starts with the error's number, as there.
///
/// # Errors
/// xenstore's.
pub fn report_error(
    store: &Xenstore,
    root: &Root,
    place: &Place,
    errno: i32,
    message: &str,
) -> Result<(), Error> {
    let text: String = format!("{errno} {message}")
        .chars()
        .take(ERROR_MAX)
        .collect();
    store.transaction(|tx| {
        let node = tx.at(root.device(place));
        if node.exists("")? {
            node.write("error", &text)?;
        }
        match tx.write(&root.error(place), &text) {
            // a domain need not own all of its own directory
            Err(error) if is_refused(&error) => Ok(()),
            other => other,
        }
    })
}

/// Takes back what [`report_error`] told.
///
/// # Errors
/// xenstore's.
pub fn clear_error(store: &Xenstore, root: &Root, place: &Place) -> Result<(), Error> {
    store.transaction(|tx| {
        let in_device = path::join(&root.device(place), "error");
        if tx.exists(&in_device)? {
            tx.rm(&in_device)?;
        }
        remove_error(tx, &root.error(place))
    })
}

/// Removes an error node, the device's directory around it, and the guest's
/// around that if no other device has an error.
fn remove_error(tx: &Transaction<'_>, error: &str) -> Result<(), Error> {
    let Some(device) = path::parent(error) else {
        return Ok(());
    };
    if !tx.exists(device)? {
        return Ok(());
    }
    tx.rm(device)?;
    match path::parent(device) {
        Some(guest) if tx.directory(guest)?.is_empty() => tx.rm(guest),
        _ => Ok(()),
    }
}
