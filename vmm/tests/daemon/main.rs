//! The daemon as a whole on a fake Xen, towards a toolstack that does what
//! libxl does and guests that access their registers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod changes;
mod errors;
mod leaving;
mod life;
mod mapping;
mod reload;
mod run;
mod status;
mod trial;
mod virtio;
