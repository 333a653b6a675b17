//! The hypervisor's side of DM_OP, with the checks of
//! `xen/arch/arm/dm.c` and `xen/common/ioreq.c` in their order.
//!
//! Offsets are read from the public header
//! (`xen/include/public/hvm/dm_op.h`) a second time, independently of
//! [`crate::abi`].

use super::errno::Errno;
use super::state::World;
use crate::DomId;

/// Bytes before the union.
const HEADER: usize = 8;
/// First shared peripheral interrupt (`NR_LOCAL_IRQS`).
const FIRST_SPI: u32 = 32;
/// `XEN_DMOP_no_gfns`.
const NO_GFNS: u16 = 1;
/// Buffers that one hypercall takes (`struct dmop_args`).
const XEN_BUFFERS: usize = 2;
/// Buffers and bytes of each that Linux lets through (`privcmd.c`).
const LINUX_BUFFERS: usize = 16;
const LINUX_BUFFER_BYTES: usize = 4096;

/// What Linux checks of the buffers before the hypercall.
///
/// # Errors
/// `E2BIG`: too many, or one too large.
pub(super) fn check_buffers(buffers: &[&mut [u8]]) -> Result<(), Errno> {
    if buffers.len() > LINUX_BUFFERS
        || buffers
            .iter()
            .any(|buffer| buffer.len() > LINUX_BUFFER_BYTES)
        || buffers.len() > XEN_BUFFERS
    {
        return Err(Errno(libc::E2BIG));
    }
    Ok(())
}

impl World {
    /// One operation; `op` is buffer 0, whose union is written back where
    /// the operation has results.
    pub(super) fn dm_op(&mut self, dom: DomId, op: &mut [u8]) -> Result<(), Errno> {
        if !self.config.ioreq_server {
            return Err(Errno(libc::ENOSYS));
        }
        self.remote(dom)?;
        let number = get32(op, 0)?;
        let pad = get32(op, 4)?;
        let size = payload_bytes(number)?;
        let payload = op
            .get_mut(HEADER..HEADER + size)
            .ok_or(Errno(libc::EFAULT))?;
        if pad != 0 {
            return Err(Errno(libc::EINVAL));
        }
        match number {
            1 => self.op_create(dom, payload),
            2 => self.op_get_info(dom, payload),
            3 | 4 => self.op_range(dom, number == 3, payload),
            5 => self.op_set_state(dom, payload),
            6 => {
                zero(payload, 2..4)?;
                self.destroy_server(dom, get16(payload, 0)?)
            }
            19 => self.op_set_irq_level(dom, payload),
            20 => {
                let vcpus = self.remote(dom)?.config.vcpus;
                put(payload, 0, &vcpus.to_le_bytes())
            }
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    fn op_create(&mut self, dom: DomId, payload: &mut [u8]) -> Result<(), Errno> {
        zero(payload, 1..4)?;
        let id = self.create_server(dom, get8(payload, 0)?)?;
        put(payload, 4, &id.to_le_bytes())
    }

    fn op_get_info(&mut self, dom: DomId, payload: &mut [u8]) -> Result<(), Errno> {
        let flags = get16(payload, 2)?;
        if flags & !NO_GFNS != 0 {
            return Err(Errno(libc::EINVAL));
        }
        self.remote(dom)?.server(get16(payload, 0)?)?;
        // Pages cannot be placed in the guest on Arm
        // (arch_ioreq_server_map_pages); with the flag there is nothing to
        // report, as there are no buffered requests.
        if flags & NO_GFNS == 0 {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        Ok(())
    }

    fn op_range(&mut self, dom: DomId, map: bool, payload: &mut [u8]) -> Result<(), Errno> {
        zero(payload, 2..4)?;
        let id = get16(payload, 0)?;
        let kind = get32(payload, 4)?;
        let range = (get64(payload, 8)?, get64(payload, 16)?);
        if map {
            self.map_range(dom, id, kind, range)
        } else {
            self.unmap_range(dom, id, kind, range)
        }
    }

    fn op_set_state(&mut self, dom: DomId, payload: &mut [u8]) -> Result<(), Errno> {
        zero(payload, 3..4)?;
        let enabled = get8(payload, 2)? != 0;
        self.set_server_state(dom, get16(payload, 0)?, enabled)
    }

    fn op_set_irq_level(&mut self, dom: DomId, payload: &mut [u8]) -> Result<(), Errno> {
        let irq = get32(payload, 0)?;
        let level = get8(payload, 4)?;
        let domain = self.remote(dom)?;
        if irq < FIRST_SPI || irq >= domain.config.irqs || level > 1 {
            return Err(Errno(libc::EINVAL));
        }
        zero(payload, 5..8)?;
        if domain.config.xen_irqs.contains(&irq) {
            return Err(Errno(libc::EINVAL));
        }
        // A falling edge means nothing to an edge-triggered line (vgic.c).
        if level == 1 && !domain.dying {
            domain.interrupts.raise(irq);
        }
        Ok(())
    }
}

// The sizes of the structures that Arm knows (op_size, xen/arch/arm/dm.c).
fn payload_bytes(number: u32) -> Result<usize, Errno> {
    match number {
        1 => Ok(6),
        2..=4 => Ok(24),
        5 | 6 | 20 => Ok(4),
        19 => Ok(8),
        0 | 7..=18 => Ok(0),
        _ => Err(Errno(libc::EOPNOTSUPP)),
    }
}

fn zero(payload: &[u8], range: std::ops::Range<usize>) -> Result<(), Errno> {
    let padding = payload.get(range).ok_or(Errno(libc::EFAULT))?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Errno(libc::EINVAL));
    }
    Ok(())
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Result<[u8; N], Errno> {
    from.get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or(Errno(libc::EFAULT))
}

fn get8(from: &[u8], at: usize) -> Result<u8, Errno> {
    bytes(from, at).map(u8::from_le_bytes)
}

fn get16(from: &[u8], at: usize) -> Result<u16, Errno> {
    bytes(from, at).map(u16::from_le_bytes)
}

fn get32(from: &[u8], at: usize) -> Result<u32, Errno> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn get64(from: &[u8], at: usize) -> Result<u64, Errno> {
    bytes(from, at).map(u64::from_le_bytes)
}

fn put(into: &mut [u8], at: usize, value: &[u8]) -> Result<(), Errno> {
    into.get_mut(at..at + value.len())
        .ok_or(Errno(libc::EFAULT))?
        .copy_from_slice(value);
    Ok(())
}
