//! The nodes: their values, order, permissions, generations, snapshots.
//!
//! Changed by the server thread for its clients and by [`super::Store`]'s own
//! methods, under one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::DomId;
use crate::xenstore::{Access, Errno, Permission, path};

/// The domain that may do everything.
pub(super) const PRIVILEGED: DomId = DomId(0);
/// Most bytes of value, names of children and name that a node made by an
/// unprivileged domain may have (xenstored's default `node-size` quota).
pub(super) const NODE_SIZE_MAX: usize = 2048;

/// All nodes of one moment. A copy is cheap until either is changed.
pub(super) type Nodes = Arc<BTreeMap<String, Arc<Node>>>;

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    /// Names, in the order of their creation.
    pub(super) children: Vec<String>,
    pub(super) permissions: Vec<Permission>,
    /// Moves on with each change of the three above.
    pub(super) generation: u64,
}

/// What a request needs to be allowed.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Need {
    Read,
    Write,
    /// Changing the permissions.
    Own,
}

/// Whether `who` may do what it needs under these permissions.
pub(super) fn allows(permissions: &[Permission], who: DomId, need: Need) -> bool {
    let Some((owner, others)) = permissions.split_first() else {
        return who == PRIVILEGED;
    };
    if who == PRIVILEGED || who == owner.domain {
        return true;
    }
    let access = others
        .iter()
        .find(|entry| entry.domain == who)
        .unwrap_or(owner)
        .access;
    match need {
        Need::Read => access.reads(),
        Need::Write => access.writes(),
        Need::Own => false,
    }
}

/// Something that watches are told of.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: String,
    /// Only a watch on this very path is told: its node went with one above
    /// it. Watches above hear of that one.
    pub(super) exact: bool,
    /// The permissions before, of a node that had any.
    pub(super) before: Option<Vec<Permission>>,
}

/// What a transaction has touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) accessed: BTreeSet<String>,
    pub(super) written: BTreeSet<String>,
}

/// The nodes as one domain works on them, in or outside of a transaction.
pub(super) struct View<'a> {
    pub(super) who: DomId,
    pub(super) nodes: &'a mut Nodes,
    pub(super) generation: &'a mut u64,
    pub(super) changes: &'a mut Vec<Change>,
    /// Present in a transaction.
    pub(super) touched: Option<&'a mut Touched>,
}

impl View<'_> {
    /// The node at a canonical path, if `who` may do what it needs.
    pub(super) fn get(&mut self, path: &str, need: Need) -> Result<Arc<Node>, Errno> {
        let errno = match self.look_up(path) {
            Some(node) if allows(&node.permissions, self.who, need) => return Ok(node),
            Some(_) => Errno::Access,
            None => Errno::NotFound,
        };
        // Whoever may not do this to the node above learns nothing about it.
        let mut above = path::parent(path);
        while let Some(parent) = above {
            if let Some(node) = self.look_up(parent) {
                let told = allows(&node.permissions, self.who, need);
                return Err(if told { errno } else { Errno::Access });
            }
            above = path::parent(parent);
        }
        Err(errno)
    }

    /// Sets a value, making the node and those above it where needed.
    pub(super) fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let before = match self.get(path, Need::Write) {
            Ok(node) => {
                let before = node.permissions.clone();
                self.put(
                    path,
                    Node {
                        value: value.to_vec(),
                        ..(*node).clone()
                    },
                )?;
                Some(before)
            }
            Err(Errno::NotFound) => {
                self.create(path, value)?;
                None
            }
            Err(errno) => return Err(errno),
        };
        self.changed(path, false, before);
        Ok(())
    }

    /// Makes a node and those above it where needed.
    pub(super) fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        match self.get(path, Need::Write) {
            Ok(_) => Ok(()),
            Err(Errno::NotFound) => {
                self.create(path, b"")?;
                self.changed(path, false, None);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Removes a node and everything under it.
    pub(super) fn rm(&mut self, path: &str) -> Result<(), Errno> {
        let node = match self.get(path, Need::Write) {
            Ok(node) => node,
            Err(Errno::NotFound) => {
                let parent = path::parent(path).ok_or(Errno::Invalid)?;
                return self.look_up(parent).map(drop).ok_or(Errno::NotFound);
            }
            Err(errno) => return Err(errno),
        };
        let Some(parent_path) = path::parent(path) else {
            return Err(Errno::Invalid);
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        let parent = self.look_up(parent_path).ok_or(Errno::Invalid)?;
        let below = path::join(path, "x");
        let below = below.strip_suffix('x').unwrap_or_default();
        let under: Vec<(String, Arc<Node>)> = self
            .nodes
            .range(below.to_owned()..)
            .take_while(|(path, _)| path.starts_with(below))
            .map(|(path, node)| (path.clone(), Arc::clone(node)))
            .collect();
        // Deepest first, as xenstored walks the tree.
        for (path, node) in under.into_iter().rev() {
            self.delete(&path);
            self.changed(&path, true, Some(node.permissions.clone()));
        }
        self.delete(path);
        let children = parent
            .children
            .iter()
            .filter(|child| *child != name)
            .cloned()
            .collect();
        self.put_unlimited(
            parent_path,
            Node {
                children,
                ..(*parent).clone()
            },
        );
        self.changed(path, false, Some(node.permissions.clone()));
        Ok(())
    }

    /// Sets a node's permissions.
    pub(super) fn set_permissions(
        &mut self,
        path: &str,
        permissions: Vec<Permission>,
    ) -> Result<(), Errno> {
        let owner = permissions.first().ok_or(Errno::Invalid)?.domain;
        let node = self.get(path, Need::Own)?;
        let before = node.permissions.clone();
        if self.who != PRIVILEGED && before.first().map(|entry| entry.domain) != Some(owner) {
            return Err(Errno::NotPermitted);
        }
        self.put(
            path,
            Node {
                permissions,
                ..(*node).clone()
            },
        )?;
        self.changed(path, false, Some(before));
        Ok(())
    }

    /// Makes a node that is not there, and those above it that are not.
    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let parent_path = path::parent(path).ok_or(Errno::Invalid)?;
        let name = path.rsplit('/').next().unwrap_or_default();
        // Before the nodes above are made: a refusal leaves nothing behind.
        self.check_size(path, value, &[])?;
        if self.look_up(parent_path).is_none() {
            self.create(parent_path, b"")?;
        }
        let parent = self.look_up(parent_path).ok_or(Errno::Io)?;
        // Permissions are inherited; a domain owns what it makes.
        let mut permissions = parent.permissions.clone();
        if self.who != PRIVILEGED
            && let Some(owner) = permissions.first_mut()
        {
            owner.domain = self.who;
        }
        let mut grown = (*parent).clone();
        grown.children.push(name.to_owned());
        let node = Node {
            value: value.to_vec(),
            children: Vec::new(),
            permissions,
            generation: 0,
        };
        self.put(parent_path, grown)?;
        self.put_unlimited(path, node);
        Ok(())
    }

    fn look_up(&mut self, path: &str) -> Option<Arc<Node>> {
        if let Some(touched) = &mut self.touched {
            touched.accessed.insert(path.to_owned());
        }
        self.nodes.get(path).cloned()
    }

    fn put(&mut self, path: &str, node: Node) -> Result<(), Errno> {
        self.check_size(path, &node.value, &node.children)?;
        self.put_unlimited(path, node);
        Ok(())
    }

    fn put_unlimited(&mut self, path: &str, mut node: Node) {
        *self.generation = self.generation.saturating_add(1);
        node.generation = *self.generation;
        Arc::make_mut(self.nodes).insert(path.to_owned(), Arc::new(node));
        self.wrote(path);
    }

    fn delete(&mut self, path: &str) {
        Arc::make_mut(self.nodes).remove(path);
        self.wrote(path);
    }

    fn wrote(&mut self, path: &str) {
        if let Some(touched) = &mut self.touched {
            touched.accessed.insert(path.to_owned());
            touched.written.insert(path.to_owned());
        }
    }

    fn check_size(&self, path: &str, value: &[u8], children: &[String]) -> Result<(), Errno> {
        let names: usize = children
            .iter()
            .map(|name| name.len().saturating_add(1))
            .sum();
        let size = path.len().saturating_add(value.len()).saturating_add(names);
        if self.who != PRIVILEGED && size > NODE_SIZE_MAX {
            return Err(Errno::NoSpace);
        }
        Ok(())
    }

    /// Notes a change for the watches; in a transaction once for each node,
    /// and a change for all watches outdoes an exact one.
    fn changed(&mut self, path: &str, exact: bool, before: Option<Vec<Permission>>) {
        if self.touched.is_some()
            && let Some(known) = self.changes.iter_mut().find(|change| change.path == path)
        {
            known.exact &= exact;
            return;
        }
        self.changes.push(Change {
            path: path.to_owned(),
            exact,
            before,
        });
    }
}

/// An open transaction: a snapshot, and what was done to it.
///
/// It commits if none of the nodes it touched has changed since it was
/// started. The real daemon compares with the first touch instead, so here a
/// transaction conflicts somewhat more often, never less.
#[derive(Debug)]
pub(super) struct Transaction {
    base: Nodes,
    view: Nodes,
    touched: Touched,
    changes: Vec<Change>,
}

impl Transaction {
    pub(super) fn start(nodes: &Nodes) -> Self {
        Self {
            base: Arc::clone(nodes),
            view: Arc::clone(nodes),
            touched: Touched::default(),
            changes: Vec::new(),
        }
    }

    /// The snapshot, as `who` works on it.
    pub(super) fn view<'a>(&'a mut self, who: DomId, generation: &'a mut u64) -> View<'a> {
        View {
            who,
            nodes: &mut self.view,
            generation,
            changes: &mut self.changes,
            touched: Some(&mut self.touched),
        }
    }

    /// Makes the changes everybody's, and returns what watches are to be told.
    pub(super) fn commit(
        self,
        nodes: &mut Nodes,
        generation: &mut u64,
    ) -> Result<Vec<Change>, Errno> {
        let seen = |nodes: &Nodes, path: &str| nodes.get(path).map(|node| node.generation);
        if self
            .touched
            .accessed
            .iter()
            .any(|path| seen(&self.base, path) != seen(nodes, path))
        {
            return Err(Errno::Again);
        }
        let nodes = Arc::make_mut(nodes);
        for path in self.touched.written {
            match self.view.get(&path) {
                Some(node) => {
                    *generation = generation.saturating_add(1);
                    let node = Node {
                        generation: *generation,
                        ..(**node).clone()
                    };
                    nodes.insert(path, Arc::new(node));
                }
                None => {
                    nodes.remove(&path);
                }
            }
        }
        Ok(self.changes)
    }
}

/// The nodes a fresh xenstored on a fresh dom0 has.
pub(super) fn initial() -> Nodes {
    let private = vec![Permission::new(PRIVILEGED, Access::None)];
    let empty = Node {
        value: Vec::new(),
        children: Vec::new(),
        permissions: private,
        generation: 0,
    };
    let mut nodes = BTreeMap::new();
    // The special ones are nodes for their permissions only.
    for path in ["/", "@introduceDomain", "@releaseDomain"] {
        nodes.insert(path.to_owned(), Arc::new(empty.clone()));
    }
    Arc::new(nodes)
}
