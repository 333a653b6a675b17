//! Serves the control queue, on the worker thread that owns it: commands of the
//! guest, each answered with one byte. virtio 1.3 §5.1.6.5

use std::sync::Arc;

use swiotlb::{Range, Transfer};
use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::features as net;
use super::filter::Filter;
use super::mac::Mac;
use super::port::Port;
use crate::virtio::counters::add;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Most bytes of a command; tables of more addresses are refused.
const COMMAND_MAX: u64 = 16 << 10;
/// Commands taken at once.
const BATCH: usize = 16;

/// Answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// What is wrong with a command.
type Refusal = &'static str;

/// See the module.
#[derive(Debug)]
pub(super) struct Control {
    pub port: Arc<Port>,
    /// As negotiated.
    pub features: u64,
}

/// A chain with a command.
struct Command {
    head: Head,
    readable: DescriptorRanges,
    answer: Range,
    len: usize,
}

impl Control {
    /// Carries a command out.
    fn obey(&self, command: &[u8]) -> Result<(), Refusal> {
        let Some(([class, number], data)) = command.split_first_chunk::<2>() else {
            return Err("it has no number");
        };
        let has = |bit| match self.features & bit {
            0 => Err("its feature was not negotiated"),
            _ => Ok(()),
        };
        let filter = |change: &mut dyn FnMut(&mut Filter)| {
            self.port.change_filter(change);
            Ok(())
        };
        match (class, number) {
            // virtio 1.3 §5.1.6.5.1: receive modes
            (0, 0..=1) => {
                has(net::CTRL_RX)?;
                let on = flag(data)?;
                filter(&mut |filter| match number {
                    0 => filter.promiscuous = on,
                    _ => filter.all_multicast = on,
                })
            }
            (0, 2..=5) => {
                has(net::CTRL_RX_EXTRA)?;
                let on = flag(data)?;
                filter(&mut |filter| match number {
                    2 => filter.all_unicast = on,
                    3 => filter.no_multicast = on,
                    4 => filter.no_unicast = on,
                    _ => filter.no_broadcast = on,
                })
            }
            // §5.1.6.5.2: addresses
            (1, 0) => {
                has(net::CTRL_RX)?;
                let (unicast, rest) = table(data)?;
                let (multicast, _) = table(rest)?;
                filter(&mut |filter| filter.set_addresses(macs(unicast), macs(multicast)))
            }
            (1, 1) => {
                has(net::CTRL_MAC_ADDR)?;
                let mac = Mac(read(data)?);
                match mac.is_card() {
                    true => filter(&mut |filter| filter.mac = mac),
                    false => Err("it is no address of a card"),
                }
            }
            // §5.1.6.5.3: VLANs
            (2, 0..=1) => {
                has(net::CTRL_VLAN)?;
                let vlan = read::<U16>(data)?.get();
                let set = self
                    .port
                    .change_filter(|filter| filter.set_vlan(vlan, *number == 0));
                set.then_some(()).ok_or("there is no such VLAN")
            }
            // §5.1.6.5.4: the guest has announced itself
            (3, 0) => {
                has(net::GUEST_ANNOUNCE)?;
                self.port.announced();
                Ok(())
            }
            // §5.1.6.5.5: pairs of queues
            (4, 0) => {
                has(net::MQ)?;
                let pairs = read::<U16>(data)?.get();
                match (1..=self.port.spec.pairs).contains(&pairs) {
                    true => self.port.set_pairs(pairs),
                    false => return Err("there are not so many pairs of queues"),
                }
                Ok(())
            }
            // §5.1.6.5, offloads state configuration
            (5, 0) => {
                has(net::CTRL_GUEST_OFFLOADS)?;
                let offloads = read::<U64>(data)?.get();
                match offloads & !self.features {
                    0 => self.port.set_offload(offloads),
                    _ => return Err("an offload was not negotiated"),
                }
                Ok(())
            }
            _ => Err("there is no such command"),
        }
    }

    /// Finds the parts of chains; those without room for an answer are given
    /// back.
    fn commands(
        &self,
        queue: &mut ActiveQueue,
        chains: Vec<Chain>,
    ) -> Result<Vec<Command>, QueueError> {
        let mut commands = Vec::with_capacity(chains.len());
        for chain in chains {
            let len = chain.readable.iter().map(|range| u64::from(range.len()));
            // what is too long is not read, and refused
            let len = Some(len.sum()).filter(|len| *len <= COMMAND_MAX);
            match chain.writable.first().and_then(|range| range.part(0, 1)) {
                Some(answer) => commands.push(Command {
                    head: chain.head,
                    readable: chain.readable,
                    answer,
                    len: usize::try_from(len.unwrap_or(0)).unwrap_or(0),
                }),
                None => {
                    add(&self.port.stats.counters.bad_requests, 1);
                    queue.push_copied(chain.head, 0)?;
                }
            }
        }
        Ok(commands)
    }
}

impl QueueHandler for Control {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for command in self.commands(queue, chains)? {
            let mut bytes = vec![0; command.len];
            let head = command.head.index();
            let broken = |fault: &swiotlb::Fault| QueueError::Request {
                head,
                why: format!("it cannot be reached: {}", with_causes(fault)),
            };
            let mut fetch = [Transfer::from_guest(command.readable, &mut bytes)];
            queue.dma().transfer(&mut fetch);
            let [fetch] = fetch;
            fetch.result.map_err(|fault| broken(&fault))?;
            let counters = &self.port.stats.counters;
            let answer = match self.obey(&bytes) {
                Ok(()) => {
                    add(&counters.commands, 1);
                    [OK]
                }
                Err(why) => {
                    add(&counters.bad_commands, 1);
                    // a guest can send such commands as fast as it likes
                    tracing::debug!(why, "a command is refused");
                    [ERR]
                }
            };
            let mut tell = [Transfer::to_guest([command.answer], &answer)];
            queue.dma().transfer(&mut tell);
            let [tell] = tell;
            tell.result.map_err(|fault| broken(&fault))?;
            queue.push_copied(command.head, 1)?;
        }
        Ok(())
    }

    fn room(&self) -> usize {
        BATCH
    }
}

fn flag(data: &[u8]) -> Result<bool, Refusal> {
    Ok(read::<u8>(data)? != 0)
}

fn read<T: FromBytes>(data: &[u8]) -> Result<T, Refusal> {
    T::read_from_prefix(data)
        .map(|(value, _)| value)
        .map_err(|_| "it is too short")
}

/// The addresses of a table, and what stands behind it.
fn table(data: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let count = read::<U32>(data)?.get();
    let rest = data.get(4..).unwrap_or_default();
    let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(6));
    bytes
        .and_then(|bytes| rest.split_at_checked(bytes))
        .ok_or("its table is cut off")
}

fn macs(table: &[u8]) -> impl ExactSizeIterator<Item = Mac> + '_ {
    let (macs, _) = table.as_chunks::<6>();
    macs.iter().map(|mac| Mac(*mac))
}
