// The crate's own files, compiled once more: here `crate::sync` is this
// folder's, whose locks and atomics belong to a model checker. What knows
// nothing of threads stays away. Included by the root of each test program,
// because the files say `crate::`.

#[path = "../../src/allocator/mod.rs"]
mod allocator;
#[path = "../../src/constraints.rs"]
mod constraints;
#[path = "../../src/contiguity.rs"]
mod contiguity;
#[path = "../../src/counters.rs"]
mod counters;
#[path = "../../src/device/mod.rs"]
mod device;
#[path = "../../src/direction.rs"]
mod direction;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/fault.rs"]
mod fault;
#[path = "../../src/features.rs"]
mod features;
#[path = "../../src/foreign.rs"]
mod foreign;
#[path = "../../src/memory.rs"]
mod memory;
#[path = "../../src/options.rs"]
mod options;
#[path = "../../src/originals.rs"]
mod originals;
#[path = "../../src/pool/mod.rs"]
mod pool;
#[path = "../../src/range.rs"]
mod range;
#[path = "../../src/reason.rs"]
mod reason;
#[path = "../../src/sizing.rs"]
mod sizing;
#[path = "../../src/space.rs"]
mod space;

use constraints::DeviceConstraints;
