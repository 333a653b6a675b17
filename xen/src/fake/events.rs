//! Event channels between dom0 and the domains' Xen-consumed ports, and the
//! kernel's way of handing them to the files of `/dev/xen/evtchn`.
//!
//! A port that fires is masked until its file writes it back (Linux's late
//! EOI); what comes meanwhile stays pending. Rules of
//! `xen/common/event_channel.c` and `drivers/xen/evtchn.c`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::errno::Errno;
use super::state::{DomainState, World};
use crate::DomId;

/// First of a domain's ports that is free: 1 and 2 are xenstore's and the
/// console's, made by the toolstack.
const FIRST_XEN_PORT: u32 = 3;
/// First of dom0's ports that is free: its kernel uses those below.
const FIRST_LOCAL_PORT: u32 = 20;
/// `xen_evtchn_nr_channels` of the FIFO ABI.
pub(super) const MAX_PORTS: u32 = 1 << 17;
/// Entries of a file's first ring.
const FIRST_RING: usize = 64;

/// A domain's port that Xen itself uses to speak for a vCPU.
pub(super) struct XenPort {
    /// The vCPU that a notification wakes.
    vcpu: u32,
    /// dom0's port, once bound.
    peer: Option<u32>,
}

/// One of dom0's ports, bound through a file.
pub(super) struct LocalPort {
    /// The domain it was bound to.
    pub(super) origin: DomId,
    /// The other end; gone when its domain closed it.
    remote: Option<(DomId, u32)>,
    /// The file that owns it.
    file: u64,
    pending: bool,
    masked: bool,
}

/// An open file of `/dev/xen/evtchn`.
pub(super) struct Ring {
    entries: VecDeque<u32>,
    size: usize,
    overflow: bool,
    pub(super) restricted: Option<DomId>,
    /// Readable at its other end while the file is.
    wake: UnixStream,
    drain: UnixStream,
    readable: bool,
}

/// dom0's ports and the files that own them.
#[derive(Default)]
pub(super) struct LocalPorts {
    pub(super) ports: BTreeMap<u32, LocalPort>,
    pub(super) rings: BTreeMap<u64, Ring>,
}

impl Ring {
    /// A file's ring; `drain` is the end that is polled.
    pub(super) fn new(wake: UnixStream, drain: UnixStream) -> Ring {
        Ring {
            entries: VecDeque::new(),
            size: 0,
            overflow: false,
            restricted: None,
            wake,
            drain,
            readable: false,
        }
    }

    // evtchn_interrupt
    fn push(&mut self, port: u32) {
        if self.entries.len() < self.size {
            self.entries.push_back(port);
        } else {
            self.overflow = true;
        }
        self.refresh();
    }

    /// `evtchn_read`, without waiting.
    pub(super) fn pop(&mut self, ports: &mut [u32]) -> Result<usize, Errno> {
        if ports.is_empty() {
            return Ok(0);
        }
        if self.overflow {
            return Err(Errno(libc::EFBIG));
        }
        let mut count = 0;
        for port in ports {
            let Some(next) = self.entries.pop_front() else {
                break;
            };
            *port = next;
            count += 1;
        }
        self.refresh();
        if count == 0 {
            return Err(Errno(libc::EAGAIN));
        }
        Ok(count)
    }

    /// `IOCTL_EVTCHN_RESET`: forgets entries and the overflow.
    pub(super) fn reset(&mut self) {
        self.entries.clear();
        self.overflow = false;
        self.refresh();
    }

    // evtchn_resize_ring: room for every port once, no more.
    fn grow(&mut self, ports: usize) {
        while self.size < ports {
            self.size = if self.size == 0 {
                FIRST_RING
            } else {
                self.size * 2
            };
        }
    }

    fn refresh(&mut self) {
        let readable = self.overflow || !self.entries.is_empty();
        if readable == self.readable {
            return;
        }
        self.readable = readable;
        // One byte goes in and out in turns under the world's lock, so
        // neither side can block or come up short.
        let done = if readable {
            self.wake.write_all(&[1])
        } else {
            self.drain.read_exact(&mut [0])
        };
        debug_assert!(done.is_ok());
    }
}

impl DomainState {
    /// A new port for dom0 to bind, that speaks for `vcpu`
    /// (`alloc_unbound_xen_event_channel`).
    pub(super) fn new_xen_port(&mut self, vcpu: u32) -> u32 {
        let port = lowest_free(&self.ports, FIRST_XEN_PORT);
        self.ports.insert(port, XenPort { vcpu, peer: None });
        port
    }
}

impl World {
    /// `EVTCHNOP_bind_interdomain` and `evtchn_bind_to_user`.
    pub(super) fn bind(&mut self, file: u64, dom: DomId, remote: u32) -> Result<u32, Errno> {
        let ring = self.ring(file)?;
        if ring.restricted.is_some_and(|only| only != dom) {
            return Err(Errno(libc::EACCES));
        }
        let local = lowest_free(&self.local.ports, FIRST_LOCAL_PORT);
        let domain = self.domain(dom)?;
        let port = domain
            .ports
            .get_mut(&remote)
            .filter(|port| port.peer.is_none())
            .ok_or(Errno(libc::EINVAL))?;
        port.peer = Some(local);
        self.local.ports.insert(
            local,
            LocalPort {
                origin: dom,
                remote: Some((dom, remote)),
                file,
                pending: false,
                masked: false,
            },
        );
        let owned = self.ports_of(file).count();
        self.ring(file)?.grow(owned);
        // A notification may have been lost while the remote was unbound, so
        // Xen sets the port pending.
        self.set_pending(local);
        Ok(local)
    }

    /// `IOCTL_EVTCHN_UNBIND`.
    pub(super) fn unbind(&mut self, file: u64, port: u32) -> Result<(), Errno> {
        if port >= MAX_PORTS {
            return Err(Errno(libc::EINVAL));
        }
        self.owned(file, port)?;
        self.close_local(port);
        Ok(())
    }

    /// `IOCTL_EVTCHN_NOTIFY`.
    pub(super) fn notify_from(&mut self, file: u64, port: u32) -> Result<(), Errno> {
        self.owned(file, port)?;
        self.notify_remote(port);
        Ok(())
    }

    /// A port written back: it may fire again.
    pub(super) fn unmask(&mut self, file: u64, port: u32) {
        if let Ok(local) = self.owned(file, port) {
            local.masked = false;
            self.deliver(port);
        }
    }

    /// `EVTCHNOP_send` on dom0's side: wakes the vCPU at the other end, or
    /// is dropped when the other end is gone.
    pub(super) fn notify_remote(&mut self, port: u32) {
        let Some((dom, remote)) = self.local.ports.get(&port).and_then(|port| port.remote) else {
            return;
        };
        let Some(domain) = self.domains.get_mut(&dom) else {
            return;
        };
        let Some(vcpu) = domain.ports.get(&remote).map(|port| port.vcpu) else {
            return;
        };
        if let Some(vcpu) = domain.vcpu(vcpu) {
            vcpu.wakeups += 1;
            vcpu.woken.notify_all();
        }
    }

    /// `notify_via_xen_event_channel`: dropped while dom0 has not bound it.
    pub(super) fn notify_local(&mut self, dom: DomId, port: u32) {
        let peer = self
            .domains
            .get(&dom)
            .and_then(|domain| domain.ports.get(&port))
            .and_then(|port| port.peer);
        if let Some(peer) = peer {
            self.set_pending(peer);
        }
    }

    /// `free_xen_event_channel`: dom0's end stays, leading nowhere.
    pub(super) fn close_xen_port(&mut self, dom: DomId, port: u32) {
        let Some(domain) = self.domains.get_mut(&dom) else {
            return;
        };
        let peer = domain.ports.remove(&port).and_then(|port| port.peer);
        if let Some(local) = peer.and_then(|peer| self.local.ports.get_mut(&peer)) {
            local.remote = None;
        }
    }

    /// Closes everything that a file has bound, and the file.
    pub(super) fn close_file(&mut self, file: u64) {
        let ports: Vec<u32> = self.ports_of(file).collect();
        for port in ports {
            self.close_local(port);
        }
        self.local.rings.remove(&file);
    }

    /// A file's ring.
    pub(super) fn ring(&mut self, file: u64) -> Result<&mut Ring, Errno> {
        self.local.rings.get_mut(&file).ok_or(Errno(libc::EBADF))
    }

    // evtchn_close: the domain's end can be bound again.
    fn close_local(&mut self, port: u32) {
        let Some(local) = self.local.ports.remove(&port) else {
            return;
        };
        self.drop_handlers(port);
        if let Some((dom, remote)) = local.remote {
            let far = self
                .domains
                .get_mut(&dom)
                .and_then(|domain| domain.ports.get_mut(&remote));
            if let Some(far) = far {
                far.peer = None;
            }
        }
    }

    fn set_pending(&mut self, port: u32) {
        if let Some(local) = self.local.ports.get_mut(&port) {
            local.pending = true;
            self.deliver(port);
        }
    }

    // The kernel's interrupt handlers of a port, in the order they were
    // requested: the file's, then ioeventfd's.
    fn deliver(&mut self, port: u32) {
        let Some(local) = self.local.ports.get_mut(&port) else {
            return;
        };
        if !local.pending || local.masked {
            return;
        }
        local.pending = false;
        local.masked = true;
        let file = local.file;
        if let Ok(ring) = self.ring(file) {
            ring.push(port);
        }
        self.run_ioeventfds(port);
    }

    fn owned(&mut self, file: u64, port: u32) -> Result<&mut LocalPort, Errno> {
        self.local
            .ports
            .get_mut(&port)
            .filter(|local| local.file == file)
            .ok_or(Errno(libc::ENOTCONN))
    }

    fn ports_of(&self, file: u64) -> impl Iterator<Item = u32> + '_ {
        self.local
            .ports
            .iter()
            .filter(move |(_, local)| local.file == file)
            .map(|(port, _)| *port)
    }
}

fn lowest_free<T>(ports: &BTreeMap<u32, T>, first: u32) -> u32 {
    let mut free = first;
    for (port, _) in ports.range(first..) {
        if *port != free {
            break;
        }
        free += 1;
    }
    free
}
