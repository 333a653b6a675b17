//! A vCPU's accesses to emulated memory: `ioreq_send`, `wait_for_io` and
//! their callers in `xen/common/ioreq.c`.
//!
//! Runs on the thread that plays the guest. It writes the request into the
//! vCPU's slot, sends the event, and waits to be notified, for so long at
//! most as the machine allows.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use thiserror::Error;

use super::slot::{
    Request, STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESP_READY, Slot, TYPE_COPY,
    TYPE_INVALIDATE,
};
use super::state::{DomainState, Inner, World};
use crate::{DomId, Mapping};

/// Why an access did not get its answer.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum AccessFault {
    /// No server claims the whole access: a data abort, at which a real
    /// guest panics.
    #[error("access of {size} bytes at {address:#x} is claimed by no server")]
    Unclaimed {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u32,
    },
    /// No such access exists.
    #[error(
        "access of {size} bytes at {address:#x} is not 1, 2, 4 or 8 bytes in the address space"
    )]
    Malformed {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u32,
    },
    /// The device model left a state behind that Xen does not take a request
    /// in ("device model set bad IO state"): a data abort.
    #[error("slot of vCPU {vcpu} is in state {state} before a request")]
    BadState {
        /// The vCPU.
        vcpu: u32,
        /// The slot's state.
        state: u8,
    },
    /// The slot names another event channel than the vCPU's ("device model
    /// set bad event channel"), or no page was there when the server was
    /// enabled: a data abort.
    #[error("slot of vCPU {vcpu} names event channel {found:?} instead of {expected}")]
    BadPort {
        /// The vCPU.
        vcpu: u32,
        /// What the slot holds; nothing if there is no page.
        found: Option<u32>,
        /// The vCPU's port.
        expected: u32,
    },
    /// The device model did not answer in time.
    #[error("vCPU {vcpu} waits for an answer at {address:#x}, slot in state {state}")]
    Hung {
        /// The vCPU.
        vcpu: u32,
        /// Guest-physical address.
        address: u64,
        /// The slot's state.
        state: u8,
    },
    /// The domain stayed paused.
    #[error("vCPU {vcpu} was not let run: the domain is paused")]
    Paused {
        /// The vCPU.
        vcpu: u32,
    },
    /// The server was destroyed while the vCPU waited for it. Real Xen never
    /// wakes that vCPU again.
    #[error("vCPU {vcpu} waits for a server that was destroyed")]
    Stranded {
        /// The vCPU.
        vcpu: u32,
    },
    /// The slot went to a state that may not follow: Xen crashes the domain.
    #[error("slot of vCPU {vcpu} went from state {from} to {to}: domain crashed")]
    Crashed {
        /// The vCPU.
        vcpu: u32,
        /// State before.
        from: u8,
        /// State after.
        to: u8,
    },
    /// The domain has crashed, is dying or gone, or has no such vCPU.
    #[error("there is no vCPU {vcpu} that could run")]
    Gone {
        /// The vCPU.
        vcpu: u32,
    },
}

/// A vCPU of a domain, used by one thread at a time (others wait).
#[derive(Clone)]
pub struct Vcpu {
    inner: Arc<Inner>,
    dom: DomId,
    number: u32,
}

/// A request that was sent and not answered yet.
struct Sent {
    server: usize,
    uid: u64,
    page: Arc<Mapping>,
    address: u64,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("dom", &self.dom)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Vcpu {
    pub(super) fn new(inner: &Arc<Inner>, dom: DomId, number: u32) -> Vcpu {
        Vcpu {
            inner: Arc::clone(inner),
            dom,
            number,
        }
    }

    /// Reads `size` bytes at a guest-physical address.
    ///
    /// # Errors
    /// See [`AccessFault`].
    pub fn read(&self, address: u64, size: u32) -> Result<u64, AccessFault> {
        self.access(address, size, None)
    }

    /// Writes the low `size` bytes of `value` at a guest-physical address.
    ///
    /// # Errors
    /// See [`AccessFault`].
    pub fn write(&self, address: u64, size: u32, value: u64) -> Result<(), AccessFault> {
        self.access(address, size, Some(value)).map(|_| ())
    }

    /// Gives frames of RAM back to Xen; every enabled server hears INVALIDATE
    /// before the vCPU goes on. The number of frames that were there.
    ///
    /// # Errors
    /// See [`AccessFault`].
    pub fn balloon_out(&self, first_gfn: u64, frames: u64) -> Result<u64, AccessFault> {
        self.give_up(first_gfn, frames, false)
    }

    /// Has frames get new, zeroed pages in place of those they had: as
    /// [`Vcpu::balloon_out`], but nobody finds them without one.
    /// XENMEM_exchange, xen/include/public/memory.h
    ///
    /// # Errors
    /// As [`Vcpu::balloon_out`].
    pub fn exchange(&self, first_gfn: u64, frames: u64) -> Result<u64, AccessFault> {
        self.give_up(first_gfn, frames, true)
    }

    fn give_up(&self, first_gfn: u64, frames: u64, renewed: bool) -> Result<u64, AccessFault> {
        let busy = self.busy()?;
        let _turn = busy.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = self.deadline();
        self.runnable(deadline)?;
        let released = {
            let mut world = self.inner.lock();
            let domain = self.domain(&mut world)?;
            let mut released = 0;
            for gfn in first_gfn..first_gfn.saturating_add(frames) {
                let is_released = domain.ram.release(gfn);
                released += u64::from(is_released);
                if is_released && renewed {
                    // it was RAM, and has no page now
                    let _ = domain.ram.populate(gfn);
                }
            }
            if let Some(vcpu) = domain.vcpu(self.number) {
                vcpu.invalidate |= released > 0;
            }
            released
        };
        self.invalidate(deadline)?;
        Ok(released)
    }

    fn access(&self, address: u64, size: u32, write: Option<u64>) -> Result<u64, AccessFault> {
        let mask = match size {
            1 | 2 | 4 => (1u64 << (8 * size)) - 1,
            8 => u64::MAX,
            _ => return Err(AccessFault::Malformed { address, size }),
        };
        let last = address
            .checked_add(u64::from(size) - 1)
            .ok_or(AccessFault::Malformed { address, size })?;
        let busy = self.busy()?;
        let _turn = busy.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = self.deadline();
        self.runnable(deadline)?;
        self.invalidate(deadline)?;
        let request = Request {
            address,
            data: write.unwrap_or(0) & mask,
            size,
            read: write.is_none(),
            kind: TYPE_COPY,
        };
        let mut world = self.inner.lock();
        let seen = self.wakeups(&mut world)?;
        let server = self
            .domain(&mut world)?
            .select_server(address, last)
            .map(|server| server.uid)
            .ok_or(AccessFault::Unclaimed { address, size })?;
        let sent = self.send(&mut world, server, request)?;
        self.inner.finish(world);
        let data = self.wait(&[sent], seen, deadline)?;
        Ok(data & mask)
    }

    // Waits until the domain may run, and has its first activity start with
    // the INVALIDATE that a guest's early ballooning causes.
    fn runnable(&self, deadline: Instant) -> Result<(), AccessFault> {
        let mut world = self.inner.lock();
        loop {
            let number = self.number;
            let domain = self.domain(&mut world)?;
            if domain.pauses == 0 {
                if !std::mem::replace(&mut domain.started, true)
                    && let Some(vcpu) = domain.vcpu(number)
                {
                    vcpu.invalidate = true;
                }
                return Ok(());
            }
            let changed = Arc::clone(&domain.changed);
            world =
                wait_on(&changed, world, deadline).ok_or(AccessFault::Paused { vcpu: number })?;
        }
    }

    // ioreq_signal_mapcache_invalidate: a server that cannot be told is
    // logged and left out.
    fn invalidate(&self, deadline: Instant) -> Result<(), AccessFault> {
        let mut world = self.inner.lock();
        let seen = self.wakeups(&mut world)?;
        let domain = self.domain(&mut world)?;
        let due = domain
            .vcpu(self.number)
            .is_some_and(|vcpu| std::mem::take(&mut vcpu.invalidate));
        if !due {
            return Ok(());
        }
        let servers: Vec<u64> = domain
            .servers
            .iter()
            .rev()
            .flatten()
            .filter(|server| server.enabled)
            .map(|server| server.uid)
            .collect();
        let request = Request {
            address: 0,
            data: u64::MAX,
            size: 4,
            read: false,
            kind: TYPE_INVALIDATE,
        };
        let mut sent = Vec::new();
        for uid in servers {
            match self.send(&mut world, uid, request) {
                Ok(one) => sent.push(one),
                Err(fault) => tracing::error!(domain = %self.dom, %fault, "map-cache invalidate"),
            }
        }
        self.inner.finish(world);
        if !sent.is_empty() {
            self.wait(&sent, seen, deadline)?;
        }
        Ok(())
    }

    // ioreq_send
    fn send(&self, world: &mut World, uid: u64, request: Request) -> Result<Sent, AccessFault> {
        let vcpu = self.number;
        let gone = AccessFault::Gone { vcpu };
        let domain = self.domain(world)?;
        let (index, server) = domain
            .servers
            .iter()
            .enumerate()
            .filter_map(|(index, server)| Some((index, server.as_ref()?)))
            .find(|(_, server)| server.uid == uid)
            .ok_or(AccessFault::Stranded { vcpu })?;
        let place = usize::try_from(vcpu).ok();
        let expected = place
            .and_then(|place| server.ports.get(place))
            .copied()
            .ok_or(gone)?;
        let bad_port = |found| AccessFault::BadPort {
            vcpu,
            found,
            expected,
        };
        let page = server
            .page
            .as_ref()
            .map(|page| Arc::clone(&page.mapping))
            .ok_or(bad_port(None))?;
        let slot = Slot::of(&page, vcpu).ok_or(bad_port(None))?;
        let state = slot.state();
        if state != STATE_NONE {
            return Err(AccessFault::BadState { vcpu, state });
        }
        let found = slot.event_port();
        if found != expected {
            return Err(bad_port(Some(found)));
        }
        slot.send(request, expected);
        world.notify_local(self.dom, expected);
        Ok(Sent {
            server: index,
            uid,
            page,
            address: request.address,
        })
    }

    // wait_for_io for every request that is out, in their order.
    fn wait(&self, sent: &[Sent], seen: u64, deadline: Instant) -> Result<u64, AccessFault> {
        let mut data = u64::MAX;
        let mut world = self.inner.lock();
        // Since the request was made the vCPU is blocked until an event
        // comes, whatever the slot says.
        if let Some(first) = sent.first() {
            world = self.block(world, seen, deadline, first)?;
        }
        for one in sent {
            let mut before = STATE_NONE;
            loop {
                self.alive(&mut world, one)?;
                let seen = self.wakeups(&mut world)?;
                let Some(slot) = Slot::of(&one.page, self.number) else {
                    break;
                };
                let state = slot.state();
                if state == STATE_NONE {
                    break;
                }
                if state < before || state > STATE_RESP_READY {
                    return Err(self.crash(&mut world, before, state));
                }
                before = state;
                if state == STATE_RESP_READY {
                    data = slot.data();
                    slot.set_state(STATE_NONE);
                    break;
                }
                debug_assert!(matches!(state, STATE_READY | STATE_INPROCESS));
                if slot.state() == state {
                    world = self.block(world, seen, deadline, one)?;
                }
            }
        }
        Ok(data)
    }

    // wait_on_xen_event_channel
    fn block<'a>(
        &self,
        mut world: MutexGuard<'a, World>,
        seen: u64,
        deadline: Instant,
        one: &Sent,
    ) -> Result<MutexGuard<'a, World>, AccessFault> {
        loop {
            self.alive(&mut world, one)?;
            if self.wakeups(&mut world)? > seen {
                return Ok(world);
            }
            let gone = AccessFault::Gone { vcpu: self.number };
            let vcpu = self.domain(&mut world)?.vcpu(self.number).ok_or(gone)?;
            let woken = Arc::clone(&vcpu.woken);
            let Some(guard) = wait_on(&woken, world, deadline) else {
                let state = Slot::of(&one.page, self.number).map_or(0, |slot| slot.state());
                return Err(AccessFault::Hung {
                    vcpu: self.number,
                    address: one.address,
                    state,
                });
            };
            world = guard;
        }
    }

    fn alive(&self, world: &mut World, one: &Sent) -> Result<(), AccessFault> {
        let server = self
            .domain(world)?
            .servers
            .get(one.server)
            .and_then(Option::as_ref);
        if server.is_some_and(|server| server.uid == one.uid) {
            return Ok(());
        }
        Err(AccessFault::Stranded { vcpu: self.number })
    }

    fn crash(&self, world: &mut World, from: u8, to: u8) -> AccessFault {
        if let Some(domain) = world.domains.get_mut(&self.dom) {
            domain.crashed = true;
            domain.wake_all();
        }
        AccessFault::Crashed {
            vcpu: self.number,
            from,
            to,
        }
    }

    fn wakeups(&self, world: &mut World) -> Result<u64, AccessFault> {
        let gone = AccessFault::Gone { vcpu: self.number };
        let vcpu = self.domain(world)?.vcpu(self.number).ok_or(gone)?;
        Ok(vcpu.wakeups)
    }

    fn busy(&self) -> Result<Arc<Mutex<()>>, AccessFault> {
        let gone = AccessFault::Gone { vcpu: self.number };
        let mut world = self.inner.lock();
        let vcpu = self.domain(&mut world)?.vcpu(self.number).ok_or(gone)?;
        Ok(Arc::clone(&vcpu.busy))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.inner.with(|world| world.config.access_timeout)
    }

    fn domain<'w>(&self, world: &'w mut World) -> Result<&'w mut DomainState, AccessFault> {
        world
            .domains
            .get_mut(&self.dom)
            .filter(|domain| !domain.dying && !domain.crashed)
            .ok_or(AccessFault::Gone { vcpu: self.number })
    }
}

/// Waits on a condition; `None` once the deadline has passed.
fn wait_on<'a>(
    condition: &Condvar,
    world: MutexGuard<'a, World>,
    deadline: Instant,
) -> Option<MutexGuard<'a, World>> {
    let left = deadline.checked_duration_since(Instant::now())?;
    let (world, _) = condition
        .wait_timeout(world, left)
        .unwrap_or_else(PoisonError::into_inner);
    Some(world)
}
