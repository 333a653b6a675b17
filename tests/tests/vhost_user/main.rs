//! xen-dm as a vhost-user back end: the program itself, with front ends that
//! share no code with it.
//!
//! | front end | tests |
//! |---|---|
//! | the crate `vhost`'s messages, with a [driver](guest) of these tests on memory files | [`serving`], [`inflight`], [`dirty_log`], [`nonsense`] |
//! | the crate `blkio` (the authors of libblkio) | [`blkio`] |
//! | QEMU with a Linux guest | `tests/vhost-user/qemu` |

mod blkio;
mod dirty_log;
mod guest;
mod inflight;
mod net;
mod nonsense;
mod program;
mod serving;
mod vsock;
