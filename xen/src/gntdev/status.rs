//! Xen's verdict on one grant operation.

use thiserror::Error;

/// A `GNTST_*` value other than okay (`xen/include/public/grant_table.h`).
#[derive(Copy, Clone, Debug, Eq, PartialEq, Error)]
pub enum GrantStatus {
    /// `GNTST_general_error`.
    #[error("general error")]
    General,
    /// `GNTST_bad_domain`.
    #[error("unrecognised domain id")]
    BadDomain,
    /// `GNTST_bad_gntref`.
    #[error("unrecognised or inappropriate grant reference")]
    BadReference,
    /// `GNTST_bad_handle`.
    #[error("unrecognised or inappropriate handle")]
    BadHandle,
    /// `GNTST_bad_virt_addr`.
    #[error("inappropriate virtual address to map at")]
    BadVirtualAddress,
    /// `GNTST_bad_dev_addr`.
    #[error("inappropriate device address to unmap")]
    BadDeviceAddress,
    /// `GNTST_no_device_space`.
    #[error("out of space in the I/O MMU")]
    NoDeviceSpace,
    /// `GNTST_permission_denied`.
    #[error("not enough privilege for the operation, or the grant is read-only")]
    PermissionDenied,
    /// `GNTST_bad_page`.
    #[error("specified page was invalid for the operation")]
    BadPage,
    /// `GNTST_bad_copy_arg`.
    #[error("copy crosses a page boundary")]
    BadCopyArgument,
    /// `GNTST_address_too_big`.
    #[error("transferred page is too large an address")]
    AddressTooBig,
    /// `GNTST_eagain`.
    #[error("page is paged out, to be tried again")]
    Again,
    /// `GNTST_no_space`.
    #[error("out of space for handles")]
    NoSpace,
    /// No copy has been run for the segment.
    #[error("the copy was not run")]
    NotRun,
    /// A value that Xen's headers do not name.
    #[error("status {0}")]
    Unknown(i16),
}

impl GrantStatus {
    /// `GNTST_okay`.
    pub const OKAY: i16 = 0;
    /// `GNTST_eagain` as a number.
    pub const AGAIN: i16 = -12;
    /// `GNTST_bad_gntref` as a number.
    pub const BAD_REFERENCE: i16 = -3;
    /// `GNTST_general_error` as a number.
    pub const GENERAL: i16 = -1;

    /// Reads a `GNTST_*` value.
    ///
    /// # Errors
    /// Every value but `GNTST_okay`.
    pub fn from_raw(status: i16) -> Result<(), GrantStatus> {
        Err(match status {
            Self::OKAY => return Ok(()),
            Self::GENERAL => Self::General,
            -2 => Self::BadDomain,
            Self::BAD_REFERENCE => Self::BadReference,
            -4 => Self::BadHandle,
            -5 => Self::BadVirtualAddress,
            -6 => Self::BadDeviceAddress,
            -7 => Self::NoDeviceSpace,
            -8 => Self::PermissionDenied,
            -9 => Self::BadPage,
            -10 => Self::BadCopyArgument,
            -11 => Self::AddressTooBig,
            Self::AGAIN => Self::Again,
            -13 => Self::NoSpace,
            super::CopySegment::NOT_RUN => Self::NotRun,
            other => Self::Unknown(other),
        })
    }
}
