//! How a device's data was reached.

use serde::{Deserialize, Serialize};
use swiotlb::{CountersSnapshot, GrantClass, GrantMode, GrantPolicySnapshot};

/// A device's data path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dma {
    /// Ranges reached where they are, by plain address.
    pub direct: u64,
    /// Ranges reached by mapping their grants.
    pub granted: u64,
    /// Ranges that had to be bounced, for whatever reason.
    pub bounced: u64,
    /// Of these: their pages cannot be pinned.
    pub bounced_pinned: u64,
    /// Of these: not contiguous.
    pub bounced_straddles: u64,
    /// Of these: not aligned.
    pub bounced_misaligned: u64,
    /// Of these: above a limit.
    pub bounced_limit: u64,
    /// Of these: because everything is.
    pub bounced_forced: u64,
    /// Of these: granted, and a copy is cheaper than a mapping.
    pub bounced_cheaper: u64,
    /// Bytes copied into bounce buffers.
    pub bounced_bytes_in: u64,
    /// Bytes copied out of bounce buffers.
    pub bounced_bytes_out: u64,
    /// Times that a request had to wait for room in the pool.
    pub pool_full: u64,
    /// Requests refused because a range could not be reached.
    pub rejected: u64,
    /// Ranges that were looked up.
    pub lookups: u64,
    /// Segments made.
    pub segments: u64,
    /// Small copies.
    pub transfers: u64,
    /// Grant copies among them.
    pub grant_copies: u64,
    /// Batches of grants mapped in one call.
    pub loans: u64,
    /// Batches that were mapped again one by one.
    pub loans_split: u64,
    /// Batches that the host did not take back cleanly.
    pub loans_lost: u64,
}

/// How granted data is reached that need not be bounced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedData {
    /// What it was set to: `adaptive`, `map`, `copy`, `copy-up-to:BYTES`.
    pub mode: String,
    /// Up to how many bytes it is copied; nothing: always.
    pub copies_up_to: Option<u64>,
    /// Why.
    pub reason: String,
    /// What was measured, by size; sizes that were never seen are left out.
    pub sizes: Vec<GrantedSize>,
}

/// Granted data of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedSize {
    /// Up to how many bytes, and more than half of that.
    pub bytes: u64,
    /// Requests whose copies were measured.
    pub copies: u64,
    /// Nanoseconds that a request's copy has cost of late.
    pub copy_nanoseconds: u64,
    /// Requests whose mapping was measured.
    pub maps: u64,
    /// Nanoseconds that a request's mapping and unmapping has cost of late.
    pub map_nanoseconds: u64,
    /// Whether such data is copied.
    pub copied: bool,
}

impl From<&GrantPolicySnapshot> for GrantedData {
    fn from(policy: &GrantPolicySnapshot) -> Self {
        let up_to = policy.copies_up_to();
        let sizes: Vec<_> = policy
            .classes
            .iter()
            .filter(|class| class.copies + class.maps > 0)
            .map(|class| GrantedSize {
                bytes: class.bytes,
                copies: class.copies,
                copy_nanoseconds: class.copy_nanoseconds,
                maps: class.maps,
                map_nanoseconds: class.map_nanoseconds,
                copied: class.copied,
            })
            .collect();
        let known = policy.classes.iter().filter(|class| class.is_known());
        let reason = match policy.mode {
            GrantMode::Adaptive if known.clone().next().is_none() => {
                "nothing is known yet: both ways are being tried".to_owned()
            }
            GrantMode::Adaptive => {
                let costs: Vec<String> = known.map(cost).collect();
                format!("learned: {}", costs.join("; "))
            }
            GrantMode::Map | GrantMode::Copy | GrantMode::CopyUpTo(_) => {
                "set in the configuration".to_owned()
            }
        };
        GrantedData {
            mode: policy.mode.to_string(),
            copies_up_to: (up_to != u64::MAX).then_some(up_to),
            reason,
            sizes,
        }
    }
}

/// What the two ways cost at a size, for people.
fn cost(class: &GrantClass) -> String {
    let GrantClass {
        bytes,
        copy_nanoseconds,
        map_nanoseconds,
        ..
    } = *class;
    let microseconds =
        |nanoseconds: u64| format!("{}.{}", nanoseconds / 1000, nanoseconds / 100 % 10);
    format!(
        "at {bytes} bytes a copy takes {} µs and a mapping {}",
        microseconds(copy_nanoseconds),
        microseconds(map_nanoseconds)
    )
}

impl From<&CountersSnapshot> for Dma {
    fn from(counters: &CountersSnapshot) -> Self {
        Dma {
            direct: counters.direct,
            granted: counters.granted,
            bounced: counters.bounced,
            bounced_pinned: counters.bounced_pinned,
            bounced_straddles: counters.bounced_straddles,
            bounced_misaligned: counters.bounced_misaligned,
            bounced_limit: counters.bounced_limit,
            bounced_forced: counters.bounced_forced,
            bounced_cheaper: counters.bounced_cheaper,
            bounced_bytes_in: counters.bounced_bytes_in,
            bounced_bytes_out: counters.bounced_bytes_out,
            pool_full: counters.pool_full,
            rejected: counters.rejected,
            lookups: counters.lookups,
            segments: counters.segments,
            transfers: counters.transfers,
            grant_copies: counters.grant_copies,
            loans: counters.loans,
            loans_split: counters.loans_split,
            loans_lost: counters.loans_lost,
        }
    }
}
