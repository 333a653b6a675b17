//! Feature words of guests in xenstore: the toolstack's and the guest's own.
//!
//! Xen tells a word to its own domain only, so somebody has to write it down.
//! A word is hexadecimal text, as in the domain's own
//! `/sys/hypervisor/properties/features`. What the two are worth,
//! [`Mapping`](crate::guest::Mapping) says.

use xen::DomId;
use xen::features::FeatureWord;
use xen::xenstore::{Error, Tree, Xenstore};

use super::is_refused;

/// The node that a toolstack may write: below what libxl keeps of a domain,
/// where the domain can neither write nor read, and which goes with it.
#[must_use]
pub fn toolstack_word_node(domid: DomId) -> String {
    format!("/libxl/{domid}/xen-dm/features")
}

/// The node that a guest may write, below the one directory of its own that it
/// may write to (`data`, `libxl__domain_make`,
/// `tools/libs/light/libxl_create.c`).
#[must_use]
pub fn guest_word_node(domid: DomId) -> String {
    format!("/local/domain/{domid}/data/xen-dm/features")
}

/// The word in a node; none if there is no such node, or this domain may not
/// read it.
///
/// # Errors
/// xenstore's. [`Error::Value`] names the node and what it holds.
pub fn read_word(store: &Xenstore, node: &str) -> Result<Option<FeatureWord>, Error> {
    match store.at(node).read_optional("") {
        // outside dom0 it may be closed to us
        Err(error) if is_refused(&error) => Ok(None),
        other => other,
    }
}
