//! Layouts against bytes, and ioctl numbers against their structures.

use zerocopy::{FromBytes, IntoBytes};

use super::*;

/// Size field of an ioctl number (`_IOC_SIZE`).
fn size_of_ioctl(request: u64) -> usize {
    usize::try_from(request >> 16 & 0x3fff).unwrap()
}

#[test]
fn ioctl_numbers_carry_the_size_of_their_structure() {
    let pairs = [
        (
            ioctl::PRIVCMD_HYPERCALL,
            size_of::<ioctl::PrivcmdHypercall>(),
        ),
        (
            ioctl::PRIVCMD_MMAPBATCH_V2,
            size_of::<ioctl::PrivcmdMmapbatchV2>(),
        ),
        (ioctl::PRIVCMD_DM_OP, size_of::<ioctl::PrivcmdDmOp>()),
        (ioctl::PRIVCMD_RESTRICT, size_of::<u16>()),
        (
            ioctl::PRIVCMD_MMAP_RESOURCE,
            size_of::<ioctl::PrivcmdMmapResource>(),
        ),
        (ioctl::PRIVCMD_IRQFD, size_of::<ioctl::PrivcmdIrqfd>()),
        (
            ioctl::PRIVCMD_IOEVENTFD,
            size_of::<ioctl::PrivcmdIoeventfd>(),
        ),
        (
            ioctl::GNTDEV_MAP_GRANT_REF,
            size_of::<ioctl::GntdevMap>() + size_of::<ioctl::GntdevRef>(),
        ),
        (
            ioctl::GNTDEV_UNMAP_GRANT_REF,
            size_of::<ioctl::GntdevUnmap>(),
        ),
        (
            ioctl::GNTDEV_GRANT_COPY,
            size_of::<ioctl::GntdevGrantCopy>(),
        ),
        (
            ioctl::EVTCHN_BIND_INTERDOMAIN,
            size_of::<ioctl::EvtchnBindInterdomain>(),
        ),
        (ioctl::EVTCHN_UNBIND, size_of::<u32>()),
        (ioctl::EVTCHN_NOTIFY, size_of::<u32>()),
        (ioctl::EVTCHN_RESET, 0),
        (ioctl::EVTCHN_RESTRICT_DOMID, size_of::<u16>()),
    ];

    let wrong: Vec<_> = pairs
        .iter()
        .filter(|(request, size)| size_of_ioctl(*request) != *size)
        .collect();

    assert!(wrong.is_empty(), "{wrong:x?}");
}

#[test]
fn a_slot_of_the_ioreq_page_is_read_by_its_bytes() {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&[0x70, 0, 0, 2, 0, 0, 0, 0]);
    bytes[8] = 0x0f;
    bytes[16] = 1;
    bytes[20] = 4;
    bytes[24] = 9;
    // READY, a read.
    bytes[30] = 0x21;
    bytes[31] = 1;

    let slot = ioreq::Ioreq::read_from_bytes(&bytes).unwrap();

    assert_eq!(slot.addr, 0x0200_0070);
    assert_eq!((slot.data, slot.count, slot.size), (0x0f, 1, 4));
    assert_eq!(slot.vp_eport, 9);
    assert_eq!(slot.bits & ioreq::BITS_STATE, ioreq::STATE_READY);
    assert_eq!(slot.bits & ioreq::BITS_DIR, ioreq::BITS_DIR);
    assert_eq!(slot.kind, ioreq::TYPE_COPY);
}

#[test]
fn the_granted_side_of_a_copy_has_the_bytes_of_the_union() {
    let side = ioctl::GntdevCopySegment::foreign(0x0102_0304, 0x0506, 0x0708);

    assert_eq!(side.as_bytes(), [4, 3, 2, 1, 6, 5, 8, 7]);
}

#[test]
fn announced_references_are_domain_and_reference() {
    let one = ioctl::GntdevRef {
        domid: 5,
        gref: 0x0a0b,
    };

    assert_eq!(one.as_bytes(), [5, 0, 0, 0, 0x0b, 0x0a, 0, 0]);
}

#[test]
fn a_pci_function_packs_into_its_fields() {
    assert_eq!(dm_op::sbdf(0xffff, 0xff, 0xff, 0xff), 0xffff_ffff);
    assert_eq!(dm_op::sbdf(1, 2, 3, 4), 0x0001_021c);
}
