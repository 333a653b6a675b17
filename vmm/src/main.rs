//! xen-dm.
fn main() {}
