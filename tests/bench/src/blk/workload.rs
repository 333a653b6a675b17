//! What is asked of the disks.

use serde::Serialize;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    Write,
}

/// Where on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Random,
    Sequential,
}

/// What is behind the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// An image.
    File,
    /// Nothing.
    Null,
}

/// Requests of one kind, and how many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    pub medium: Medium,
    pub bytes: usize,
    pub access: Access,
    pub order: Order,
    pub depth: usize,
}

impl Workload {
    const fn file(bytes: usize, access: Access, order: Order, depth: usize) -> Self {
        Workload {
            medium: Medium::File,
            bytes,
            access,
            order,
            depth,
        }
    }

    const fn null(access: Access) -> Self {
        Workload {
            medium: Medium::Null,
            bytes: 4096,
            access,
            order: Order::Random,
            depth: 32,
        }
    }
}

/// All of them, in the table's order.
pub const WORKLOADS: [Workload; 8] = [
    Workload::null(Access::Read),
    Workload::null(Access::Write),
    Workload::file(4096, Access::Read, Order::Random, 32),
    Workload::file(4096, Access::Write, Order::Random, 32),
    Workload::file(4096, Access::Read, Order::Random, 1),
    Workload::file(4096, Access::Write, Order::Random, 1),
    Workload::file(131_072, Access::Read, Order::Sequential, 8),
    Workload::file(131_072, Access::Write, Order::Sequential, 8),
];

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let medium = match self.medium {
            Medium::File => "file",
            Medium::Null => "null",
        };
        let access = match self.access {
            Access::Read => "read",
            Access::Write => "write",
        };
        let order = match self.order {
            Order::Random => "random",
            Order::Sequential => "sequential",
        };
        let (kib, depth) = (self.bytes / 1024, self.depth);
        write!(f, "{medium}, {kib} KiB {order} {access}, {depth} at a time")
    }
}
