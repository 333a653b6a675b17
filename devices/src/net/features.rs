//! Feature bits of a network card. virtio 1.3 §5.1.3

use virtio_bindings::virtio_net as net;

macro_rules! bits {
    ($($name:ident = $bit:ident,)*) => {
        $(pub(super) const $name: u64 = 1 << net::$bit;)*
    };
}

bits! {
    CSUM = VIRTIO_NET_F_CSUM,
    GUEST_CSUM = VIRTIO_NET_F_GUEST_CSUM,
    CTRL_GUEST_OFFLOADS = VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    MTU = VIRTIO_NET_F_MTU,
    MAC = VIRTIO_NET_F_MAC,
    GUEST_TSO4 = VIRTIO_NET_F_GUEST_TSO4,
    GUEST_TSO6 = VIRTIO_NET_F_GUEST_TSO6,
    GUEST_ECN = VIRTIO_NET_F_GUEST_ECN,
    HOST_TSO4 = VIRTIO_NET_F_HOST_TSO4,
    HOST_TSO6 = VIRTIO_NET_F_HOST_TSO6,
    HOST_ECN = VIRTIO_NET_F_HOST_ECN,
    MRG_RXBUF = VIRTIO_NET_F_MRG_RXBUF,
    STATUS = VIRTIO_NET_F_STATUS,
    CTRL_VQ = VIRTIO_NET_F_CTRL_VQ,
    CTRL_RX = VIRTIO_NET_F_CTRL_RX,
    CTRL_VLAN = VIRTIO_NET_F_CTRL_VLAN,
    CTRL_RX_EXTRA = VIRTIO_NET_F_CTRL_RX_EXTRA,
    GUEST_ANNOUNCE = VIRTIO_NET_F_GUEST_ANNOUNCE,
    MQ = VIRTIO_NET_F_MQ,
    CTRL_MAC_ADDR = VIRTIO_NET_F_CTRL_MAC_ADDR,
    GUEST_USO4 = VIRTIO_NET_F_GUEST_USO4,
    GUEST_USO6 = VIRTIO_NET_F_GUEST_USO6,
    HOST_USO = VIRTIO_NET_F_HOST_USO,
}

/// What a guest may leave to the host, and the host to the guest, with every
/// tap.
pub(super) const SENT: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
pub(super) const RECEIVED: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
