//! The first words: who the back end is, and whether it can take its place.

use std::collections::BTreeMap;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::config::{ConfigWrites, Memory};
use super::connection::Connection;
use super::error::SessionError;
use super::features;
use super::foreign::{Direct, can_map};
use super::peer::{CONFIG_MAX, PROTOCOL_FEATURES, Peer, until};
use super::pool::Pool;
use super::semantics::has_word_of_loss;
use super::shared::{Known, Shared};
use crate::unix::connect_to;
use crate::virtio::features::VERSION_1;

/// What is asked for of a back end's protocol, as far as it has it. In-flight
/// tracking is not: which requests it has, its front end knows by the shadow
/// rings. Nor are memory slots: a table is given whole.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::CONFIG)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::BACKEND_REQ);

/// What is asked for besides where the back end has the guest's memory and rings.
const FOREIGN: Protocol = FOREIGN_UNTRACKED.union(Protocol::INFLIGHT_SHMFD);
const FOREIGN_UNTRACKED: Protocol = Protocol::XEN_MMAP;

/// Connects and finds out what the back end is.
pub(super) fn connect(shared: &Shared) -> Result<Connection<'_>, SessionError> {
    let spec = &shared.spec;
    let socket = connect_to(spec.socket()).map_err(SessionError::NotThere)?;
    let end = until(&shared.quit);
    let mut peer = Peer::new(socket, spec.answer_timeout);
    let features = peer.features(&end)?;
    if features & VERSION_1 == 0 {
        return Err(SessionError::Legacy { features });
    }
    if features & PROTOCOL_FEATURES != 0 {
        let wanted = match spec.memory {
            Memory::Bounce => PROTOCOL,
            // what is told of a loss is told in a request that a record would have in
            // flight for ever
            Memory::Foreign if has_word_of_loss(spec.device_type) => {
                PROTOCOL.union(FOREIGN_UNTRACKED)
            }
            Memory::Foreign => PROTOCOL.union(FOREIGN),
        };
        peer.negotiate(wanted, &end)?;
    }
    if !can_map(shared.guest_memory.get(), peer.protocol) {
        return Err(SessionError::NoXenMmap);
    }
    peer.set_owner(&end)?;
    // without MQ it has as many as its type has by rule
    if let Some(offered) = peer.queues(&end)?
        && offered < spec.queues.into()
    {
        let wanted = spec.queues;
        return Err(SessionError::Queues { offered, wanted });
    }
    peer.open_requests(&end)?;
    let known = Known {
        features,
        config: read_config(shared, &peer)?,
        writable: peer.protocol.contains(Protocol::CONFIG),
        protocol: peer.protocol,
    };
    let pool = match spec.memory {
        Memory::Bounce => Some(Pool::new(spec)?),
        Memory::Foreign => None,
    };
    let mut state = shared.state();
    if !can_map(shared.guest_memory.get(), peer.protocol) {
        // it has been put behind registers meanwhile
        return Err(SessionError::NoXenMmap);
    }
    if state.is_up() {
        for guest in state.guest_rings.features() {
            let missing = features::missing_foreign(features, guest);
            if missing != 0 {
                let offered = features;
                return Err(SessionError::Features { offered, missing });
            }
        }
        for wish in state.wishes.values() {
            let missing = features::missing(features, wish.features);
            if missing != 0 {
                let offered = features;
                return Err(SessionError::Features { offered, missing });
            }
        }
        if let Some(before) = &state.known
            && spec.config_writes == ConfigWrites::Changed
        {
            compare(&before.config, &known.config, &state.written)?;
        }
    }
    let (resets, violations) = (state.resets, state.violations);
    // what the driver has written to its predecessor it has to hear of, too
    let writes = state
        .writes
        .wrapping_sub(u64::from(!state.written.is_empty()));
    state.passed = writes;
    state.unsent = state.written.clone();
    state.known = Some(known.clone());
    drop(state);
    Ok(Connection {
        shared,
        peer,
        pool,
        direct: Direct::default(),
        known,
        rings: BTreeMap::new(),
        lanes: BTreeMap::new(),
        leaving: false,
        features: None,
        has_memory: false,
        resets,
        writes,
        violations,
    })
}

/// Whether a configuration space is still what it was, but for what the driver
/// has written to it.
fn compare(before: &[u8], now: &[u8], written: &BTreeMap<u8, u8>) -> Result<(), SessionError> {
    let longest = before.len().max(now.len());
    let is_written = |at: usize| u8::try_from(at).is_ok_and(|at| written.contains_key(&at));
    let differs = |at: &usize| before.get(*at) != now.get(*at) && !is_written(*at);
    match (0..longest).find(differs) {
        Some(at) => Err(SessionError::Config { at }),
        None => Ok(()),
    }
}

/// The configuration space: the file's word, or the back end's.
pub(super) fn read_config(shared: &Shared, peer: &Peer) -> Result<Vec<u8>, SessionError> {
    let spec = &shared.spec;
    if let Some(config) = &spec.config_space {
        return Ok(config.clone());
    }
    let config = match peer.protocol.contains(Protocol::CONFIG) {
        true => ask_config(shared, peer)?,
        false => Vec::new(),
    };
    match spec.config_size {
        Some(wanted) if config.len() != wanted => {
            let len = config.len();
            Err(SessionError::ConfigSize { len, wanted })
        }
        _ => Ok(config),
    }
}

/// All that the back end gives of its configuration space. Some give as much as
/// one asks for, with zeroes at the end; others refuse what is longer than they
/// have, and are asked for less until they do not.
fn ask_config(shared: &Shared, peer: &Peer) -> Result<Vec<u8>, SessionError> {
    let end = until(&shared.quit);
    let most = match shared.spec.config_size {
        Some(size) => u32::try_from(size).unwrap_or(CONFIG_MAX),
        None => CONFIG_MAX,
    };
    if let Some(config) = peer.config(0, most, &end)? {
        return Ok(config);
    }
    let mut longest = Vec::new();
    let (mut given, mut refused) = (0, most);
    while refused - given > 1 {
        let len = given + (refused - given) / 2;
        match peer.config(0, len, &end)? {
            Some(config) => {
                longest = config;
                given = len;
            }
            None => refused = len,
        }
    }
    Ok(longest)
}
