//! The ioctls of taps, and of interfaces.
//!
//! The one file of this device with `unsafe`. Its functions are safe: each
//! hands the kernel a reference or a plain number.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_uint, c_ulong};
use vmm_sys_util::ioctl::{
    _IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};

// Linux include/uapi/linux/if_tun.h
const TUNSETIFF: c_ulong = write_ioctl(202);
const TUNSETOFFLOAD: c_ulong = write_ioctl(208);
const TUNSETVNETHDRSZ: c_ulong = write_ioctl(216);
const TUNSETQUEUE: c_ulong = write_ioctl(217);
const TUNGETIFF: c_ulong = ioctl_expr(_IOC_READ, 0x54, 210, 4);
// Linux include/uapi/linux/sockios.h
const SIOCGIFFLAGS: c_ulong = 0x8913;

/// All of them are encoded with an int.
const fn write_ioctl(number: c_uint) -> c_ulong {
    ioctl_expr(_IOC_WRITE, 0x54, number, 4)
}

/// Connects a descriptor of `/dev/net/tun` to the tap `name`, as one of several
/// queues if `multi_queue`; frames have virtio's header in front. A tap that
/// does not exist is made.
///
/// # Errors
/// What the host said: EPERM, EBUSY for one that is in use, EINVAL for one that
/// is of another make.
pub(super) fn attach(tun: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<()> {
    let multi_queue = match multi_queue {
        true => libc::IFF_MULTI_QUEUE,
        false => 0,
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue;
    let mut request = request(name)?;
    // the kernel takes the flags as an unsigned short
    let bits = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_flags = bits.cast_signed();
    // SAFETY: TUNSETIFF reads and writes an ifreq
    check(unsafe { ioctl_with_ref(&Raw(tun), TUNSETIFF, &request) })
}

/// Takes a queue of a tap out of use, or into use again.
///
/// # Errors
/// What the host said.
pub(super) fn use_queue(queue: BorrowedFd<'_>, used: bool) -> io::Result<()> {
    let flags = match used {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    };
    let mut request = request("")?;
    let bits = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_flags = bits.cast_signed();
    // SAFETY: TUNSETQUEUE reads an ifreq
    check(unsafe { ioctl_with_ref(&Raw(queue), TUNSETQUEUE, &request) })
}

/// The name of a tap's interface.
///
/// # Errors
/// EBADFD if it was removed.
pub(super) fn name(tap: BorrowedFd<'_>) -> io::Result<String> {
    let mut request = request("")?;
    // SAFETY: TUNGETIFF writes an ifreq
    check(unsafe { ioctl_with_mut_ref(&Raw(tap), TUNGETIFF, &mut request) })?;
    let bytes = request.ifr_name.iter().map(|byte| byte.to_ne_bytes()[0]);
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    // names are whatever bytes an administrator likes
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Whether an interface of the namespace of `socket` is up, and so is its
/// carrier. Linux netdevice(7)
///
/// # Errors
/// ENODEV if there is none of this name.
pub(super) fn is_running(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFFLAGS reads and writes an ifreq
    check(unsafe { ioctl_with_mut_ref(&Raw(socket), SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: it has written the flags, and every value of them is one
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(c_int::from(flags) & wanted == wanted)
}

/// Says how many bytes stand in front of each frame.
///
/// # Errors
/// What the host said.
pub(super) fn set_header_len(tap: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int
    check(unsafe { ioctl_with_ref(&Raw(tap), TUNSETVNETHDRSZ, &len) })
}

/// Says what may be left open in frames that are read: bits of
/// [`super::tap::offloads`].
///
/// # Errors
/// EINVAL if the kernel does not know one of them.
pub(super) fn set_offload(tap: BorrowedFd<'_>, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number
    check(unsafe { ioctl_with_val(&Raw(tap), TUNSETOFFLOAD, offloads.into()) })
}

/// An ifreq with a name and zeroes.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: it is plain data, for which zeroes are a value
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // a zero stays at the end
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// vmm-sys-util's calls want the older of the two traits.
struct Raw<'a>(BorrowedFd<'a>);

impl AsRawFd for Raw<'_> {
    fn as_raw_fd(&self) -> c_int {
        self.0.as_raw_fd()
    }
}

fn check(result: c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
