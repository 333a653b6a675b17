//! ioctls of `/dev/xen/{privcmd,gntdev,evtchn}` and the structures of the
//! few hypercalls this crate makes.
//!
//! Linux `include/uapi/xen/{privcmd,gntdev,evtchn}.h`; Xen
//! `xen/include/public/{xen,version,memory,grant_table}.h`. Fields named
//! `*_ptr` hold addresses in the caller's address space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::assert_layout;

/// `__HYPERVISOR_memory_op`.
pub const HYPERVISOR_MEMORY_OP: u64 = 12;
/// `__HYPERVISOR_xen_version`.
pub const HYPERVISOR_XEN_VERSION: u64 = 17;
/// `XENVER_version`: major in the upper, minor in the lower 16 bits.
pub const XENVER_VERSION: u64 = 0;
/// `XENVER_get_features`, with [`FeatureInfo`].
pub const XENVER_GET_FEATURES: u64 = 6;
/// `XENMEM_current_reservation`, with a domain id.
pub const XENMEM_CURRENT_RESERVATION: u64 = 3;
/// `XENMEM_maximum_reservation`, with a domain id.
pub const XENMEM_MAXIMUM_RESERVATION: u64 = 4;
/// `XENMEM_maximum_gpfn`, with a domain id.
pub const XENMEM_MAXIMUM_GPFN: u64 = 14;

/// `IOCTL_PRIVCMD_HYPERCALL`, with [`PrivcmdHypercall`].
pub const PRIVCMD_HYPERCALL: u64 = 0x0030_5000;
/// `IOCTL_PRIVCMD_MMAPBATCH_V2`, with [`PrivcmdMmapbatchV2`].
pub const PRIVCMD_MMAPBATCH_V2: u64 = 0x0020_5004;
/// `IOCTL_PRIVCMD_DM_OP`, with [`PrivcmdDmOp`].
pub const PRIVCMD_DM_OP: u64 = 0x0010_5005;
/// `IOCTL_PRIVCMD_RESTRICT`, with a domain id.
pub const PRIVCMD_RESTRICT: u64 = 0x0002_5006;
/// `IOCTL_PRIVCMD_MMAP_RESOURCE`, with [`PrivcmdMmapResource`].
pub const PRIVCMD_MMAP_RESOURCE: u64 = 0x0020_5007;
/// `IOCTL_PRIVCMD_IRQFD`, with [`PrivcmdIrqfd`].
pub const PRIVCMD_IRQFD: u64 = 0x4018_5008;
/// `IOCTL_PRIVCMD_IOEVENTFD`, with [`PrivcmdIoeventfd`].
pub const PRIVCMD_IOEVENTFD: u64 = 0x4030_5009;
/// `PRIVCMD_IRQFD_FLAG_DEASSIGN`.
pub const IRQFD_DEASSIGN: u32 = 1;
/// `PRIVCMD_IOEVENTFD_FLAG_DEASSIGN`.
pub const IOEVENTFD_DEASSIGN: u32 = 1;

/// `IOCTL_GNTDEV_MAP_GRANT_REF`, with [`GntdevMap`] and its [`GntdevRef`]s.
/// The number counts the header and one reference.
pub const GNTDEV_MAP_GRANT_REF: u64 = 0x0018_4700;
/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`, with [`GntdevUnmap`].
pub const GNTDEV_UNMAP_GRANT_REF: u64 = 0x0010_4701;
/// `IOCTL_GNTDEV_GRANT_COPY`, with [`GntdevGrantCopy`].
pub const GNTDEV_GRANT_COPY: u64 = 0x0010_4708;
/// `GNTCOPY_source_gref`.
pub const COPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`.
pub const COPY_DEST_GREF: u16 = 2;

/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`, with [`EvtchnBindInterdomain`].
pub const EVTCHN_BIND_INTERDOMAIN: u64 = 0x0008_4501;
/// `IOCTL_EVTCHN_UNBIND`, with a port.
pub const EVTCHN_UNBIND: u64 = 0x0004_4503;
/// `IOCTL_EVTCHN_NOTIFY`, with a port.
pub const EVTCHN_NOTIFY: u64 = 0x0004_4504;
/// `IOCTL_EVTCHN_RESET`, without argument.
pub const EVTCHN_RESET: u64 = 0x0000_4505;
/// `IOCTL_EVTCHN_RESTRICT_DOMID`, with a domain id.
pub const EVTCHN_RESTRICT_DOMID: u64 = 0x0002_4506;

macro_rules! structures {
    ($(
        $(#[$meta:meta])*
        $name:ident, $size:literal { $( $(#[$fmeta:meta])* $field:ident @ $offset:literal : $type:ty ),* $(,)? }
    )*) => { $(
        $(#[$meta])*
        #[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $type, )* }
        assert_layout!($name, $size, $($field @ $offset),*);
    )* };
}

structures! {
    /// `struct xen_feature_info`.
    FeatureInfo, 8 {
        /// In: which 32 bits.
        submap_idx @ 0: u32,
        /// Out: the bits.
        submap @ 4: u32,
    }
    /// `struct privcmd_hypercall`.
    PrivcmdHypercall, 48 {
        /// `__HYPERVISOR_*`.
        op @ 0: u64,
        /// Its arguments.
        args @ 8: [u64; 5],
    }
    /// `struct privcmd_dm_op`.
    PrivcmdDmOp, 16 {
        /// The domain.
        dom @ 0: u16,
        /// Number of buffers.
        num @ 2: u16,
        /// Unused.
        pad @ 4: u32,
        /// Array of [`PrivcmdDmOpBuf`].
        bufs_ptr @ 8: u64,
    }
    /// `struct privcmd_dm_op_buf`.
    PrivcmdDmOpBuf, 16 {
        /// The buffer.
        data_ptr @ 0: u64,
        /// Its bytes.
        size @ 8: u64,
    }
    /// `struct privcmd_mmap_resource`.
    PrivcmdMmapResource, 32 {
        /// The domain.
        dom @ 0: u16,
        /// Unused.
        pad @ 2: u16,
        /// `XENMEM_resource_*`.
        kind @ 4: u32,
        /// Id within the kind.
        id @ 8: u32,
        /// First frame.
        idx @ 12: u32,
        /// Frames.
        num @ 16: u64,
        /// Where a mapping of the file begins.
        addr @ 24: u64,
    }
    /// `struct privcmd_mmapbatch_v2`.
    PrivcmdMmapbatchV2, 32 {
        /// Frames.
        num @ 0: u32,
        /// The domain.
        dom @ 4: u16,
        /// Unused.
        pad @ 6: u16,
        /// Where a mapping of the file begins.
        addr @ 8: u64,
        /// Array of frame numbers (u64).
        gfns_ptr @ 16: u64,
        /// Array of negative errno values (i32), filled in.
        errors_ptr @ 24: u64,
    }
    /// `struct privcmd_irqfd`.
    PrivcmdIrqfd, 24 {
        /// The operation to perform when the descriptor fires.
        dm_op_ptr @ 0: u64,
        /// Its bytes.
        size @ 8: u32,
        /// The eventfd.
        fd @ 12: u32,
        /// 0 or [`IRQFD_DEASSIGN`].
        flags @ 16: u32,
        /// The domain.
        dom @ 20: u16,
        /// Unused.
        pad @ 22: [u8; 2],
    }
    /// `struct privcmd_ioeventfd`.
    PrivcmdIoeventfd, 48 {
        /// The mapped ioreq page.
        ioreq_ptr @ 0: u64,
        /// Array of the vCPUs' local event channels (u32).
        ports_ptr @ 8: u64,
        /// Guest address of the device's registers.
        addr @ 16: u64,
        /// Bytes of the write to match; 4 for virtio-mmio.
        addr_len @ 24: u32,
        /// The eventfd.
        event_fd @ 28: u32,
        /// Entries of the array of ports.
        vcpus @ 32: u32,
        /// Queue number the write must carry.
        vq @ 36: u32,
        /// 0 or [`IOEVENTFD_DEASSIGN`].
        flags @ 40: u32,
        /// The domain.
        dom @ 44: u16,
        /// Unused.
        pad @ 46: [u8; 2],
    }
    /// Head of `struct ioctl_gntdev_map_grant_ref`; references follow.
    GntdevMap, 16 {
        /// References.
        count @ 0: u32,
        /// Unused.
        pad @ 4: u32,
        /// Out: offset to map the file at.
        index @ 8: u64,
    }
    /// `struct ioctl_gntdev_grant_ref`.
    GntdevRef, 8 {
        /// The granting domain.
        domid @ 0: u32,
        /// The reference.
        gref @ 4: u32,
    }
    /// `struct ioctl_gntdev_unmap_grant_ref`.
    GntdevUnmap, 16 {
        /// What the map call gave.
        index @ 0: u64,
        /// References of that call.
        count @ 8: u32,
        /// Unused.
        pad @ 12: u32,
    }
    /// `struct ioctl_gntdev_grant_copy`.
    GntdevGrantCopy, 16 {
        /// Segments.
        count @ 0: u32,
        /// Unused.
        pad @ 4: u32,
        /// Array of [`GntdevCopySegment`].
        segments_ptr @ 8: u64,
    }
    /// `struct gntdev_grant_copy_segment`. A local side is an address; a
    /// granted side is reference (bits 0 to 31), offset (32 to 47) and
    /// domain (48 to 63), see [`GntdevCopySegment::foreign`].
    GntdevCopySegment, 24 {
        /// Where from.
        source @ 0: u64,
        /// Where to.
        dest @ 8: u64,
        /// Bytes.
        len @ 16: u16,
        /// [`COPY_SOURCE_GREF`] or [`COPY_DEST_GREF`].
        flags @ 18: u16,
        /// Out: a `GNTST_*` value.
        status @ 20: i16,
        /// Unused.
        pad @ 22: u16,
    }
    /// `struct ioctl_evtchn_bind_interdomain`.
    EvtchnBindInterdomain, 8 {
        /// The other domain.
        remote_domain @ 0: u32,
        /// Its port.
        remote_port @ 4: u32,
    }
}

impl GntdevCopySegment {
    /// Encodes the granted side of a copy: `{u32 ref; u16 offset; u16 domid}`,
    /// little-endian as both architectures are.
    #[must_use]
    pub const fn foreign(gref: u32, offset: u16, domid: u16) -> u64 {
        gref as u64 | (offset as u64) << 32 | (domid as u64) << 48
    }
}
