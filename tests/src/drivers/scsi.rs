//! A SCSI host: disks behind it are found, sized, read and written.
//! virtio 1.3 §5.6, SPC-4 and SBC-3 for the commands.

use super::Port;
use crate::stand::{Place, Stand};

/// The device's type.
const SCSI_HOST: u32 = 8;
/// Control, events, requests.
const QUEUES: u16 = 3;
const REQUESTS: u16 = 2;

/// Bytes of a command. virtio 1.3 §5.6.4
const CDB: usize = 32;
/// Bytes of what is told of a failure.
const SENSE: usize = 96;
/// Bytes of a response before the sense data.
const RESPONSE: usize = 12;

const TEST_UNIT_READY: u8 = 0x00;
const INQUIRY: u8 = 0x12;
const READ_CAPACITY_10: u8 = 0x25;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;

/// How a command ended that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The transport's view. virtio 1.3 §5.6.6.1
    pub response: u8,
    /// The target's.
    pub status: u8,
    /// Sense key, additional sense code and its qualifier.
    pub sense: [u8; 3],
}

/// The driver.
pub struct Scsi {
    port: Port,
    next: u64,
}

impl Scsi {
    /// Brings it up at a place, on this thread.
    pub fn new(stand: &Stand, place: &Place) -> Self {
        let mut port = Port::new(stand, place, SCSI_HOST, QUEUES);
        // as Linux does, whatever they are already
        port.set_config(20, SENSE as u32);
        port.set_config(24, CDB as u32);
        Scsi { port, next: 1 }
    }

    /// The highest target that the device has.
    pub fn max_target(&self) -> u16 {
        self.port.config(30)
    }

    /// Whether there is a unit that is ready.
    pub fn is_ready(&mut self, lun: u8) -> bool {
        self.command(lun, &[TEST_UNIT_READY, 0, 0, 0, 0, 0], &[], &mut [])
            .is_ok()
    }

    /// The first 36 bytes of what a unit says it is.
    pub fn inquire(&mut self, lun: u8) -> Result<[u8; 36], Failure> {
        let mut data = [0; 36];
        self.command(lun, &[INQUIRY, 0, 0, 0, 36, 0], &[], &mut data)?;
        Ok(data)
    }

    /// Blocks, and bytes of each.
    pub fn capacity(&mut self, lun: u8) -> Result<(u32, u32), Failure> {
        let mut data = [0; 8];
        self.command(
            lun,
            &[READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[],
            &mut data,
        )?;
        let [a, b, c, d, e, f, g, h] = data;
        let last = u32::from_be_bytes([a, b, c, d]);
        Ok((last + 1, u32::from_be_bytes([e, f, g, h])))
    }

    /// Reads as many blocks from `block` on as the data has.
    pub fn read(
        &mut self,
        lun: u8,
        block: u32,
        blocks: u16,
        data: &mut [u8],
    ) -> Result<(), Failure> {
        self.command(lun, &extent(READ_10, block, blocks), &[], data)
    }

    /// Writes blocks.
    pub fn write(&mut self, lun: u8, block: u32, blocks: u16, data: &[u8]) -> Result<(), Failure> {
        self.command(lun, &extent(WRITE_10, block, blocks), data, &mut [])
    }

    fn command(
        &mut self,
        lun: u8,
        cdb: &[u8],
        output: &[u8],
        input: &mut [u8],
    ) -> Result<(), Failure> {
        let header = header(lun, self.next, cdb);
        self.next += 1;
        let mut response = [0; RESPONSE + SENSE];
        let request = [header.as_slice(), output];
        let mut answer = [response.as_mut_slice(), input];
        // buffers of no bytes are left out
        let request = &request[..1 + usize::from(!output.is_empty())];
        let inputs = 1 + usize::from(!answer[1].is_empty());
        self.port.ask(REQUESTS, request, &mut answer[..inputs]);
        verdict(&response)
    }
}

/// The command of an extent.
fn extent(operation: u8, block: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = block.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [operation, 0, a, b, c, d, 0, e, f, 0]
}

/// What precedes the data: unit `lun` of target 0, simple task attribute.
/// virtio 1.3 §5.6.6.1
fn header(lun: u8, id: u64, cdb: &[u8]) -> Vec<u8> {
    let mut header = vec![1, 0, 0x40, lun, 0, 0, 0, 0];
    header.extend(id.to_le_bytes());
    header.extend([0, 0, 0]);
    header.extend(cdb);
    header.resize(19 + CDB, 0);
    header
}

fn verdict(response: &[u8; RESPONSE + SENSE]) -> Result<(), Failure> {
    let (status, transport) = (response[10], response[11]);
    let sense = &response[RESPONSE..];
    match (status, transport) {
        (0, 0) => Ok(()),
        _ => Err(Failure {
            response: transport,
            status,
            sense: [sense[2] & 0xf, sense[12], sense[13]],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_unit_and_command() {
        let header = header(3, 0x0102, &extent(READ_10, 0x0a0b_0c0d, 0x0e0f));

        assert_eq!(header.len(), 51);
        assert_eq!(header[..10], [1, 0, 0x40, 3, 0, 0, 0, 0, 2, 1]);
        assert_eq!(
            header[19..30],
            [0x28, 0, 0xa, 0xb, 0xc, 0xd, 0, 0xe, 0xf, 0, 0]
        );
    }

    #[test]
    fn a_check_condition_is_told_with_its_sense() {
        let mut response = [0; RESPONSE + SENSE];
        response[10] = 2;
        response[RESPONSE..][2] = 0x75;
        response[RESPONSE..][12] = 0x24;

        let verdict = verdict(&response);

        let told = Failure {
            response: 0,
            status: 2,
            sense: [5, 0x24, 0],
        };
        assert_eq!(verdict, Err(told));
    }
}
