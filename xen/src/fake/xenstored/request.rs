//! What each request does and is answered.
//!
//! Runs on the server thread, under the lock on [`State`].

use crate::DomId;
use crate::xenstore::wire::{self, Kind, Message, PAYLOAD_MAX};
use crate::xenstore::{Errno, Permission, path};

use super::state::{Registration, State};
use super::tree::{Change, Need, PRIVILEGED, Transaction, View};

/// What goes back to the client.
pub(super) struct Answer {
    pub(super) payload: Vec<u8>,
    /// The first event of a new watch, which follows the reply.
    pub(super) first_event: Option<Registration>,
}

impl Answer {
    fn of(payload: impl Into<Vec<u8>>) -> Result<Self, Errno> {
        let payload = payload.into();
        if payload.len() > PAYLOAD_MAX {
            return Err(Errno::TooBig);
        }
        Ok(Self {
            payload,
            first_event: None,
        })
    }

    fn done() -> Result<Self, Errno> {
        Self::of(*b"OK\0")
    }
}

/// Carries out one request of client `id`, whose domain is `who`.
pub(super) fn handle(
    state: &mut State,
    id: u64,
    who: DomId,
    message: &Message,
) -> Result<Answer, Errno> {
    let kind = Kind::from_wire(message.kind).ok_or(Errno::NotImplemented)?;
    let payload = message.payload.as_slice();
    match kind {
        Kind::Watch => watch(state, id, who, payload),
        Kind::Unwatch => unwatch(state, id, who, payload),
        Kind::ResetWatches => {
            let peer = state.peer(id)?;
            peer.watches.clear();
            peer.transactions.clear();
            Answer::done()
        }
        Kind::TransactionStart => start_transaction(state, id, message.tx_id),
        Kind::TransactionEnd => end_transaction(state, id, message.tx_id, payload),
        Kind::Introduce | Kind::Release | Kind::Resume => manage_domain(state, who, kind, payload),
        Kind::GetDomainPath => {
            let domain = domain_argument(&arguments(payload)?)?;
            Answer::of(format!("/local/domain/{domain}\0"))
        }
        Kind::IsDomainIntroduced => {
            let domain = domain_argument(&arguments(payload)?)?;
            Answer::of(if state.introduced.contains(&domain) {
                *b"T\0"
            } else {
                *b"F\0"
            })
        }
        _ => on_nodes(state, id, who, kind, message.tx_id, payload),
    }
}

/// The requests that work on nodes, in or outside of a transaction.
fn on_nodes(
    state: &mut State,
    id: u64,
    who: DomId,
    kind: Kind,
    tx_id: u32,
    payload: &[u8],
) -> Result<Answer, Errno> {
    let State {
        nodes,
        generation,
        peers,
        ..
    } = state;
    let mut changes = Vec::new();
    let mut view = if tx_id == 0 {
        View {
            who,
            nodes,
            generation,
            changes: &mut changes,
            touched: None,
        }
    } else {
        let peer = peers.get_mut(&id).ok_or(Errno::Io)?;
        let transaction = peer.transactions.get_mut(&tx_id).ok_or(Errno::NotFound)?;
        transaction.view(who, generation)
    };
    let answer = match kind {
        Kind::Directory => directory(&mut view, payload),
        Kind::DirectoryPart => directory_part(&mut view, payload),
        Kind::Read => {
            let path = canonical(only(payload)?, who)?;
            Answer::of(view.get(&path, Need::Read)?.value.clone())
        }
        Kind::GetPerms => {
            let path = canonical_or_special(only(payload)?, who)?;
            let permissions = &view.get(&path, Need::Read)?.permissions;
            Answer::of(
                permissions
                    .iter()
                    .map(|entry| format!("{entry}\0"))
                    .collect::<String>(),
            )
        }
        Kind::SetPerms => set_permissions(&mut view, payload),
        Kind::Write => {
            // The value is whatever follows the path's NUL.
            let end = payload
                .iter()
                .position(|&byte| byte == 0)
                .ok_or(Errno::Invalid)?;
            let (path, value) = payload.split_at(end);
            let path = canonical(text(path)?, who)?;
            view.write(&path, value.get(1..).unwrap_or_default())?;
            Answer::done()
        }
        Kind::Mkdir => {
            view.mkdir(&canonical(only(payload)?, who)?)?;
            Answer::done()
        }
        Kind::Rm => {
            view.rm(&canonical(only(payload)?, who)?)?;
            Answer::done()
        }
        _ => Err(Errno::NotImplemented),
    };
    // The events go out before the reply, as xenstored sends them.
    state.fire(&changes);
    answer
}

fn directory(view: &mut View<'_>, payload: &[u8]) -> Result<Answer, Errno> {
    let path = canonical(only(payload)?, view.who)?;
    Answer::of(name_list(&view.get(&path, Need::Read)?.children))
}

/// As much of the list from an offset on as fits, in whole names; an empty
/// name after the last (`docs/misc/xenstore.txt`).
fn directory_part(view: &mut View<'_>, payload: &[u8]) -> Result<Answer, Errno> {
    let (path, offset) = match arguments(payload)?.as_slice() {
        [path, offset] => (*path, offset.parse::<usize>().map_err(|_| Errno::Invalid)?),
        _ => return Err(Errno::Invalid),
    };
    let path = canonical(path, view.who)?;
    let node = view.get(&path, Need::Read)?;
    let mut reply = format!("{}\0", node.generation).into_bytes();
    let list = name_list(&node.children);
    let mut rest = list.get(offset..).unwrap_or_default();
    while let Some(end) = rest.iter().position(|&byte| byte == 0) {
        let (name, after) = rest.split_at(end.saturating_add(1));
        // One byte is kept for the end of the list.
        if reply.len().saturating_add(name.len()) >= PAYLOAD_MAX {
            return Answer::of(reply);
        }
        reply.extend_from_slice(name);
        rest = after;
    }
    reply.push(0);
    Answer::of(reply)
}

fn name_list(names: &[String]) -> Vec<u8> {
    names
        .iter()
        .flat_map(|name| name.bytes().chain([0]))
        .collect()
}

fn set_permissions(view: &mut View<'_>, payload: &[u8]) -> Result<Answer, Errno> {
    let arguments = arguments(payload)?;
    let (path, list) = arguments.split_first().ok_or(Errno::Invalid)?;
    let path = canonical_or_special(path, view.who)?;
    let permissions = list
        .iter()
        .map(|entry| entry.parse::<Permission>().map_err(|_| Errno::Invalid))
        .collect::<Result<Vec<_>, _>>()?;
    view.set_permissions(&path, permissions)?;
    Answer::done()
}

fn watch(state: &mut State, id: u64, who: DomId, payload: &[u8]) -> Result<Answer, Errno> {
    let registration = registration(who, payload)?;
    let watches = &mut state.peer(id)?.watches;
    if watches.contains(&registration) {
        return Err(Errno::Exists);
    }
    watches.push(registration.clone());
    let mut answer = Answer::done()?;
    answer.first_event = Some(registration);
    Ok(answer)
}

fn unwatch(state: &mut State, id: u64, who: DomId, payload: &[u8]) -> Result<Answer, Errno> {
    let wanted = registration(who, payload)?;
    let watches = &mut state.peer(id)?.watches;
    let at = watches
        .iter()
        .position(|known| *known == wanted)
        .ok_or(Errno::NotFound)?;
    watches.remove(at);
    Answer::done()
}

/// The watch that a `WATCH` or `UNWATCH` is about.
fn registration(who: DomId, payload: &[u8]) -> Result<Registration, Errno> {
    match arguments(payload)?.as_slice() {
        [path, token] => Ok(Registration {
            path: canonical_or_special(path, who)?,
            token: (*token).to_owned(),
            hidden: if path.starts_with(['/', '@']) {
                0
            } else {
                implicit(who).len().saturating_add(1)
            },
        }),
        _ => Err(Errno::Invalid),
    }
}

fn start_transaction(state: &mut State, id: u64, tx_id: u32) -> Result<Answer, Errno> {
    if tx_id != 0 {
        return Err(Errno::Busy);
    }
    let transaction = Transaction::start(&state.nodes);
    let peer = state.peer(id)?;
    peer.last_transaction = peer.last_transaction.checked_add(1).ok_or(Errno::NoSpace)?;
    peer.transactions.insert(peer.last_transaction, transaction);
    let number = peer.last_transaction;
    Answer::of(format!("{number}\0"))
}

fn end_transaction(
    state: &mut State,
    id: u64,
    tx_id: u32,
    payload: &[u8],
) -> Result<Answer, Errno> {
    let commit = match only(payload)? {
        "T" => true,
        "F" => false,
        _ => return Err(Errno::Invalid),
    };
    let transaction = state
        .peer(id)?
        .transactions
        .remove(&tx_id)
        .ok_or(Errno::NotFound)?;
    if commit {
        let changes = transaction.commit(&mut state.nodes, &mut state.generation)?;
        state.fire(&changes);
    }
    Answer::done()
}

fn manage_domain(
    state: &mut State,
    who: DomId,
    kind: Kind,
    payload: &[u8],
) -> Result<Answer, Errno> {
    if who != PRIVILEGED {
        return Err(Errno::Access);
    }
    let domain = domain_argument(&arguments(payload)?)?;
    match kind {
        Kind::Introduce => state.introduce(domain),
        Kind::Release if !state.introduced.contains(&domain) => return Err(Errno::NotFound),
        Kind::Release => state.release(domain),
        _ => {}
    }
    Answer::done()
}

/// The event of a special watch.
pub(super) fn special(path: &str) -> Change {
    Change {
        path: path.to_owned(),
        exact: true,
        before: None,
    }
}

/// The strings of a payload.
fn arguments(payload: &[u8]) -> Result<Vec<&str>, Errno> {
    let strings = wire::strings(payload).ok_or(Errno::Invalid)?;
    strings.into_iter().map(text).collect()
}

/// The one string of a payload.
fn only(payload: &[u8]) -> Result<&str, Errno> {
    match arguments(payload)?.as_slice() {
        [argument] => Ok(argument),
        _ => Err(Errno::Invalid),
    }
}

fn text(bytes: &[u8]) -> Result<&str, Errno> {
    std::str::from_utf8(bytes).map_err(|_| Errno::Invalid)
}

fn domain_argument(arguments: &[&str]) -> Result<DomId, Errno> {
    arguments
        .first()
        .and_then(|text| text.parse().ok())
        .ok_or(Errno::Invalid)
}

/// What relative paths of a domain are under. The privileged domain comes
/// over a socket and has nothing such.
fn implicit(who: DomId) -> String {
    if who == PRIVILEGED {
        String::new()
    } else {
        format!("/local/domain/{who}")
    }
}

/// The absolute path of a node.
fn canonical(given: &str, who: DomId) -> Result<String, Errno> {
    if given.starts_with('@') {
        return Err(Errno::Invalid);
    }
    canonical_or_special(given, who)
}

/// The absolute path of a node, or a special watch's name.
fn canonical_or_special(given: &str, who: DomId) -> Result<String, Errno> {
    path::check_watch(given).map_err(|_| Errno::Invalid)?;
    if given.starts_with(['/', '@']) {
        return Ok(given.to_owned());
    }
    Ok(format!("{}/{given}", implicit(who)))
}
