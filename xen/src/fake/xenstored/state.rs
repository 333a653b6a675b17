//! The daemon's state: nodes, clients, domains.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::DomId;
use crate::xenstore::wire::{self, Decoder, Kind, Message};
use crate::xenstore::{Errno, path};

use super::request::{self, special};
use super::tree::{self, Change, Need, Nodes, Transaction, View, allows};

/// Bytes read from a client at a time.
const READ_SIZE: usize = 4096;

/// A watch of a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Registration {
    /// Absolute, or a special watch's name.
    pub(super) path: String,
    pub(super) token: String,
    /// Bytes at the front of paths that the client does not see, because the
    /// watch was registered with a relative one.
    pub(super) hidden: usize,
}

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
    domain: DomId,
    decoder: Decoder,
    /// What could not be sent yet.
    out: Vec<u8>,
    /// Whether epoll tells when more can be sent.
    waits_to_send: bool,
    /// Gone, or to be cut off.
    dead: bool,
    pub(super) watches: Vec<Registration>,
    pub(super) transactions: BTreeMap<u32, Transaction>,
    pub(super) last_transaction: u32,
}

impl Peer {
    fn send(&mut self, kind: Kind, req_id: u32, tx_id: u32, payload: &[u8]) {
        // xenstored drops events that are too long as well; replies have been
        // checked.
        if let Some(message) = wire::encode(kind.number(), req_id, tx_id, &[payload]) {
            self.out.extend_from_slice(&message);
        }
    }

    fn send_event(&mut self, registration: &Registration, path: &str) {
        let path = path.get(registration.hidden..).unwrap_or(path);
        let payload = format!("{path}\0{}\0", registration.token);
        self.send(Kind::WatchEvent, 0, 0, payload.as_bytes());
    }

    /// Reads what is there; the whole messages in it.
    fn receive(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut buffer = [0; READ_SIZE];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.dead = true,
            Ok(count) => self.decoder.feed(buffer.get(..count).unwrap_or_default()),
            Err(error) if is_passing(&error) => {}
            Err(_) => self.dead = true,
        }
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return messages,
                Err(_) => {
                    // "its xenstored connection will be immediately killed"
                    self.dead = true;
                    return messages;
                }
            }
        }
    }

    fn flush(&mut self, id: u64, epoll: &Epoll) {
        while !self.out.is_empty() && !self.dead {
            match self.stream.write(&self.out) {
                Ok(0) => self.dead = true,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.dead = true,
            }
        }
        let waits = !self.out.is_empty() && !self.dead;
        if waits != self.waits_to_send {
            let events = if waits {
                EventSet::IN | EventSet::OUT
            } else {
                EventSet::IN
            };
            let event = EpollEvent::new(events, id);
            match epoll.ctl(ControlOperation::Modify, self.stream.as_raw_fd(), event) {
                Ok(()) => self.waits_to_send = waits,
                Err(_) => self.dead = true,
            }
        }
    }
}

/// Everything, under one lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) nodes: Nodes,
    pub(super) generation: u64,
    pub(super) peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    pub(super) introduced: BTreeSet<DomId>,
    /// Whether new clients are let in.
    pub(super) accepting: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            nodes: tree::initial(),
            generation: 0,
            peers: BTreeMap::new(),
            // 0 stands for the wake-up descriptor.
            next_peer: 1,
            introduced: BTreeSet::from([tree::PRIVILEGED]),
            accepting: true,
        }
    }

    /// Writes the nodes of a fresh dom0.
    pub(super) fn furnish(&mut self) -> Result<(), Errno> {
        let fresh = [
            ("/tool/xenstored", ""),
            ("/local/domain/0/domid", "0"),
            ("/local/domain/0/name", "Domain-0"),
        ];
        self.privileged(|view| {
            fresh
                .iter()
                .try_for_each(|(path, value)| view.write(path, value.as_bytes()))
        })
    }

    /// Cuts all clients off, and is as at the start.
    pub(super) fn begin_anew(&mut self) -> Result<(), Errno> {
        self.disconnect_all();
        self.nodes = tree::initial();
        self.introduced = BTreeSet::from([tree::PRIVILEGED]);
        self.furnish()
    }

    pub(super) fn peer(&mut self, id: u64) -> Result<&mut Peer, Errno> {
        self.peers.get_mut(&id).ok_or(Errno::Io)
    }

    /// A new client; the other end of its stream.
    pub(super) fn connect(&mut self, domain: DomId, epoll: &Epoll) -> io::Result<UnixStream> {
        if !self.accepting {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        let id = self.next_peer;
        self.next_peer = self.next_peer.saturating_add(1);
        let event = EpollEvent::new(EventSet::IN, id);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        let peer = Peer {
            stream,
            domain,
            decoder: Decoder::default(),
            out: Vec::new(),
            waits_to_send: false,
            dead: false,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
        };
        self.peers.insert(id, peer);
        Ok(theirs)
    }

    /// Serves a client whose descriptor is ready.
    pub(super) fn serve(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let domain = peer.domain;
        for message in peer.receive() {
            let answer = request::handle(self, id, domain, &message);
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            match answer {
                Ok(answer) => {
                    // Known, or it would not have been answered.
                    let kind = Kind::from_wire(message.kind).unwrap_or(Kind::Error);
                    peer.send(kind, message.req_id, message.tx_id, &answer.payload);
                    if let Some(registration) = answer.first_event {
                        peer.send_event(&registration, &registration.path);
                    }
                }
                Err(errno) => {
                    let name = format!("{errno}\0");
                    peer.send(Kind::Error, message.req_id, message.tx_id, name.as_bytes());
                }
            }
        }
    }

    /// Sends what waits and parts with the clients that are gone.
    pub(super) fn flush(&mut self, epoll: &Epoll) {
        for (id, peer) in &mut self.peers {
            peer.flush(*id, epoll);
        }
        // Closing the descriptor takes it out of the epoll instance.
        self.peers.retain(|_, peer| !peer.dead);
    }

    /// Cuts all clients off.
    pub(super) fn disconnect_all(&mut self) {
        self.peers.clear();
    }

    /// Tells the watches of changes.
    pub(super) fn fire(&mut self, changes: &[Change]) {
        for change in changes {
            for peer in self.peers.values_mut() {
                if !may_hear(&self.nodes, peer.domain, change) {
                    continue;
                }
                let matching: Vec<Registration> = peer
                    .watches
                    .iter()
                    .filter(|watch| {
                        if change.exact {
                            change.path == watch.path
                        } else {
                            path::is_within(&change.path, &watch.path)
                        }
                    })
                    .cloned()
                    .collect();
                for registration in matching {
                    peer.send_event(&registration, &change.path);
                }
            }
        }
    }

    /// Works on the nodes as the privileged domain.
    pub(super) fn privileged<T>(&mut self, work: impl FnOnce(&mut View<'_>) -> T) -> T {
        let mut changes = Vec::new();
        let done = work(&mut View {
            who: tree::PRIVILEGED,
            nodes: &mut self.nodes,
            generation: &mut self.generation,
            changes: &mut changes,
            touched: None,
        });
        self.fire(&changes);
        done
    }

    pub(super) fn introduce(&mut self, domain: DomId) {
        self.introduced.insert(domain);
        self.fire(&[special("@introduceDomain")]);
    }

    /// Parts with a domain and its own connections.
    pub(super) fn release(&mut self, domain: DomId) {
        self.introduced.remove(&domain);
        if domain != tree::PRIVILEGED {
            self.peers.retain(|_, peer| peer.domain != domain);
        }
        self.fire(&[special("@releaseDomain")]);
    }
}

/// Whether a domain may be told of a change: it may read the node, could
/// before, or may read the node above.
fn may_hear(nodes: &Nodes, who: DomId, change: &Change) -> bool {
    let readable = |path: &str| {
        nodes
            .get(path)
            .is_some_and(|node| allows(&node.permissions, who, Need::Read))
    };
    if who == tree::PRIVILEGED
        || change
            .before
            .as_deref()
            .is_some_and(|before| allows(before, who, Need::Read))
    {
        return true;
    }
    nodes.contains_key(&change.path)
        && (readable(&change.path) || path::parent(&change.path).is_some_and(readable))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
