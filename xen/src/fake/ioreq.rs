//! IOREQ servers of a domain: the rules of `xen/common/ioreq.c` on Arm.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::Errno;
use super::ram::PAGE;
use super::rangeset::Rangeset;
use super::slot::Slot;
use super::state::{DomainState, World};
use crate::abi::PAGE_SIZE;
use crate::{DomId, Mapping};

/// Range kinds: port, memory, PCI (`NR_IO_RANGE_TYPES`).
const RANGE_KINDS: usize = 3;
/// `XEN_DMOP_IO_RANGE_MEMORY`.
const RANGE_MEMORY: usize = 1;
/// `XENMEM_resource_ioreq_server_frame_bufioreq`.
const FRAME_BUFIOREQ: u64 = 0;
/// `XENMEM_resource_ioreq_server_frame_ioreq(0)`.
const FRAME_IOREQ: u64 = 1;

/// One IOREQ server.
pub(super) struct Server {
    /// Tells this server from a later one with the same id.
    pub(super) uid: u64,
    ranges: [Rangeset; RANGE_KINDS],
    pub(super) enabled: bool,
    /// The ioreq page, once somebody asked for it.
    pub(super) page: Option<Page>,
    /// The domain's end of each vCPU's event channel.
    pub(super) ports: Vec<u32>,
}

/// A page of Xen's own in a domain's memfd.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) offset: u64,
    /// Xen's own mapping of it.
    pub(super) mapping: Arc<Mapping>,
}

impl Server {
    /// Whether the server claims all of `first..=last` of guest memory.
    pub(super) fn claims(&self, first: u64, last: u64) -> bool {
        self.ranges
            .get(RANGE_MEMORY)
            .is_some_and(|ranges| ranges.contains(first, last))
    }

    fn ranges(&mut self, kind: u32) -> Result<&mut Rangeset, Errno> {
        usize::try_from(kind)
            .ok()
            .and_then(|kind| self.ranges.get_mut(kind))
            .ok_or(Errno(libc::EINVAL))
    }

    // ioreq_server_enable: the ports are written here, and only when the
    // page is there already.
    fn enable(&mut self) {
        if self.enabled {
            return;
        }
        self.enabled = true;
        let Some(page) = &self.page else { return };
        for (vcpu, port) in (0..).zip(&self.ports) {
            if let Some(slot) = Slot::of(&page.mapping, vcpu) {
                slot.set_event_port(*port);
            }
        }
    }
}

impl World {
    /// `ioreq_server_create`.
    pub(super) fn create_server(&mut self, dom: DomId, bufioreq: u8) -> Result<u16, Errno> {
        let uid = self.fresh_id();
        let domain = self.remote(dom)?;
        // Only x86 has buffered requests.
        if bufioreq != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let id = (0u16..)
            .zip(&domain.servers)
            .find_map(|(id, server)| server.is_none().then_some(id))
            .ok_or(Errno(libc::ENOSPC))?;
        // A dying domain gives out no event channels (get_free_port).
        if domain.dying {
            return Err(Errno(libc::EINVAL));
        }
        let ports = (0..domain.config.vcpus)
            .map(|vcpu| domain.new_xen_port(vcpu))
            .collect();
        let place = domain
            .servers
            .get_mut(usize::from(id))
            .ok_or(Errno(libc::ENOSPC))?;
        *place = Some(Server {
            uid,
            ranges: Default::default(),
            enabled: false,
            page: None,
            ports,
        });
        Ok(id)
    }

    /// `ioreq_server_destroy`.
    pub(super) fn destroy_server(&mut self, dom: DomId, id: u16) -> Result<(), Errno> {
        let domain = self.remote(dom)?;
        let server = domain
            .servers
            .get_mut(usize::from(id))
            .and_then(Option::take)
            .ok_or(Errno(libc::ENOENT))?;
        for port in server.ports {
            self.close_xen_port(dom, port);
        }
        // Whoever waits for an answer looks again and finds the server gone.
        if let Some(domain) = self.domains.get(&dom) {
            domain.wake_all();
        }
        Ok(())
    }

    /// `ioreq_server_map_io_range`.
    pub(super) fn map_range(
        &mut self,
        dom: DomId,
        id: u16,
        kind: u32,
        (start, end): (u64, u64),
    ) -> Result<(), Errno> {
        let domain = self.remote(dom)?;
        if start > end {
            return Err(Errno(libc::EINVAL));
        }
        let ranges = domain.server(id)?.ranges(kind)?;
        if ranges.overlaps(start, end) {
            return Err(Errno(libc::EEXIST));
        }
        ranges.add(start, end)
    }

    /// `ioreq_server_unmap_io_range`.
    pub(super) fn unmap_range(
        &mut self,
        dom: DomId,
        id: u16,
        kind: u32,
        (start, end): (u64, u64),
    ) -> Result<(), Errno> {
        let domain = self.remote(dom)?;
        if start > end {
            return Err(Errno(libc::EINVAL));
        }
        let ranges = domain.server(id)?.ranges(kind)?;
        if !ranges.contains(start, end) {
            return Err(Errno(libc::ENOENT));
        }
        ranges.remove(start, end)
    }

    /// `ioreq_server_set_state`.
    pub(super) fn set_server_state(
        &mut self,
        dom: DomId,
        id: u16,
        enabled: bool,
    ) -> Result<(), Errno> {
        let server = self.remote(dom)?.server(id)?;
        if enabled {
            server.enable();
        } else {
            server.enabled = false;
        }
        Ok(())
    }

    /// `acquire_resource` of an IOREQ server: the pages of `count` frames
    /// from `frame` on.
    pub(super) fn server_frames(
        &mut self,
        dom: DomId,
        id: u32,
        frame: u32,
        count: u64,
    ) -> Result<Vec<Page>, Errno> {
        let ioreq_server = self.config.ioreq_server;
        let domain = self.remote(dom)?;
        let id = u16::try_from(id).map_err(|_| Errno(libc::EINVAL))?;
        // Without IOREQ servers the resource has no frames at all.
        if !ioreq_server || count == 0 {
            return Err(Errno(libc::EINVAL));
        }
        (0..count)
            .map(|index| domain.server_frame(id, u64::from(frame) + index))
            .collect()
    }
}

impl DomainState {
    // ioreq_server_get_frame
    fn server_frame(&mut self, id: u16, frame: u64) -> Result<Page, Errno> {
        self.server(id)?;
        match frame {
            FRAME_BUFIOREQ => Err(Errno(libc::ENOENT)),
            FRAME_IOREQ => self.ioreq_page(id),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    fn ioreq_page(&mut self, id: u16) -> Result<Page, Errno> {
        if let Some(page) = &self.server(id)?.page {
            return Ok(page.clone());
        }
        let no_memory = |_| Errno(libc::ENOMEM);
        let offset = self.ram.extra_page().map_err(no_memory)?;
        let file = self.ram.file();
        debug_assert_eq!(offset % PAGE, 0);
        let mapping = Mapping::of_file(file.as_fd(), offset, PAGE_SIZE, true).map_err(no_memory)?;
        let page = Page {
            offset,
            mapping: Arc::new(mapping),
        };
        self.server(id)?.page = Some(page.clone());
        Ok(page)
    }

    /// The server that answers an access to `first..=last`: later ids first
    /// (`ioreq_server_select`).
    pub(super) fn select_server(&self, first: u64, last: u64) -> Option<&Server> {
        self.servers
            .iter()
            .rev()
            .flatten()
            .find(|server| server.enabled && server.claims(first, last))
    }

    /// Has every waiter look at the domain again.
    pub(super) fn wake_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.woken.notify_all();
        }
        self.changed.notify_all();
    }
}
