//! virtio-drivers' disk, with many requests under way and bounded waits.
#![allow(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use xen::fake::{AccessFault, Interrupts};

use super::hal::GuestHal;
use super::registers::Registers;

/// How long the driver waits for an interrupt.
const PATIENCE: Duration = Duration::from_secs(10);

/// What went wrong between the driver and its disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The driver's own view.
    #[error("the driver says: {0}")]
    Driver(virtio_drivers::Error),
    /// No interrupt came although requests were under way.
    #[error("{requests} requests were not completed within {PATIENCE:?}")]
    Silent {
        /// How many.
        requests: usize,
    },
    /// A register access failed.
    #[error(transparent)]
    Access(AccessFault),
    /// The device completed what was not asked for.
    #[error("the device completed request {0}, which was not under way")]
    Unasked(u16),
}

impl From<virtio_drivers::Error> for DiskError {
    fn from(error: virtio_drivers::Error) -> Self {
        DiskError::Driver(error)
    }
}

/// A completed request.
#[derive(Debug)]
pub struct Outcome {
    /// The number that [`Disk::read`] or [`Disk::write`] gave.
    pub id: u64,
    /// Whether it wrote.
    pub write: bool,
    /// First sector.
    pub sector: usize,
    /// What was read or written.
    pub data: Vec<u8>,
    /// The device's verdict.
    pub status: RespStatus,
}

/// A request under way. It owns what virtio-drivers borrows; each is boxed, so
/// that none moves.
struct Flight {
    token: u16,
    id: u64,
    write: bool,
    sector: usize,
    request: Box<BlkReq>,
    data: Vec<u8>,
    response: Box<BlkResp>,
}

/// A disk as a guest's driver has it. Made and used on a thread that has
/// [entered](super::hal::enter) the guest's memory.
pub struct Disk {
    driver: VirtIOBlk<GuestHal, Registers>,
    interrupts: Arc<Interrupts>,
    irq: u32,
    seen: u64,
    next: u64,
    flights: Vec<Flight>,
    faults: Arc<Mutex<Vec<AccessFault>>>,
}

impl Disk {
    /// Brings the disk up: reset, negotiation, its queue.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(
        registers: Registers,
        interrupts: Arc<Interrupts>,
        irq: u32,
    ) -> Result<Self, DiskError> {
        let faults = registers.faults();
        let seen = interrupts.count(irq);
        let mut driver = VirtIOBlk::new(registers)?;
        driver.enable_interrupts();
        Ok(Disk {
            driver,
            interrupts,
            irq,
            seen,
            next: 0,
            flights: Vec::new(),
            faults,
        })
    }

    /// Its size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.driver.capacity()
    }

    /// Whether it refuses writes.
    #[must_use]
    pub fn readonly(&self) -> bool {
        self.driver.readonly()
    }

    /// Has everything written so far made lasting. Nothing may be under way.
    ///
    /// # Errors
    /// What the device says.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        self.driver.flush()?;
        self.settle()
    }

    /// The disk's serial number. Nothing may be under way.
    ///
    /// # Errors
    /// What the device says.
    pub fn serial(&mut self) -> Result<String, DiskError> {
        let mut id = [0; 20];
        let len = self.driver.device_id(&mut id)?;
        self.settle()?;
        Ok(String::from_utf8_lossy(id.get(..len).unwrap_or_default()).into_owned())
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether the queue takes a further request.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.flights.len() < usize::from(self.driver.virt_queue_size())
    }

    /// Asks for sectors; `len` is a multiple of 512. Gives the request's number.
    ///
    /// # Errors
    /// A full queue.
    pub fn read(&mut self, sector: usize, len: usize) -> Result<u64, DiskError> {
        let mut request = Box::<BlkReq>::default();
        let mut response = Box::<BlkResp>::default();
        let mut data = vec![0; len];
        // SAFETY: the flight keeps all three where they are, and untouched,
        // until `complete` gets them back; a flight that is dropped before has
        // its queue reset first (`Drop`).
        let token = unsafe {
            self.driver
                .read_blocks_nb(sector, &mut request, &mut data, &mut response)
        }?;
        Ok(self.take_off(token, false, sector, request, data, response))
    }

    /// Has sectors written; the data is a multiple of 512 bytes. Gives the
    /// request's number.
    ///
    /// # Errors
    /// A full queue.
    pub fn write(&mut self, sector: usize, data: Vec<u8>) -> Result<u64, DiskError> {
        let mut request = Box::<BlkReq>::default();
        let mut response = Box::<BlkResp>::default();
        // SAFETY: as in `read`.
        let token = unsafe {
            self.driver
                .write_blocks_nb(sector, &mut request, &data, &mut response)
        }?;
        Ok(self.take_off(token, true, sector, request, data, response))
    }

    fn take_off(
        &mut self,
        token: u16,
        write: bool,
        sector: usize,
        request: Box<BlkReq>,
        data: Vec<u8>,
        response: Box<BlkResp>,
    ) -> u64 {
        let id = self.next;
        self.next += 1;
        self.flights.push(Flight {
            token,
            id,
            write,
            sector,
            request,
            data,
            response,
        });
        id
    }

    /// Takes every completed request; waits for the first if none is yet.
    ///
    /// # Errors
    /// [`DiskError::Silent`], [`DiskError::Access`].
    pub fn wait(&mut self) -> Result<Vec<Outcome>, DiskError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.completed()?;
            if !done.is_empty() || self.flights.is_empty() {
                return Ok(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(count) = self.interrupts.wait_past(self.irq, self.seen, left) else {
                return Err(DiskError::Silent {
                    requests: self.flights.len(),
                });
            };
            self.seen = count;
            self.driver.ack_interrupt();
            self.check()?;
        }
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// As [`Disk::wait`].
    pub fn drain(&mut self) -> Result<Vec<Outcome>, DiskError> {
        let mut all = Vec::new();
        while !self.flights.is_empty() {
            all.append(&mut self.wait()?);
        }
        Ok(all)
    }

    fn completed(&mut self) -> Result<Vec<Outcome>, DiskError> {
        let mut done = Vec::new();
        while let Some(token) = self.driver.peek_used() {
            let at = self
                .flights
                .iter()
                .position(|flight| flight.token == token)
                .ok_or(DiskError::Unasked(token))?;
            let mut flight = self.flights.swap_remove(at);
            // SAFETY: these are the buffers that the request was made with.
            let result = unsafe {
                match flight.write {
                    true => self.driver.complete_write_blocks(
                        token,
                        &flight.request,
                        &flight.data,
                        &mut flight.response,
                    ),
                    false => self.driver.complete_read_blocks(
                        token,
                        &flight.request,
                        &mut flight.data,
                        &mut flight.response,
                    ),
                }
            };
            // the verdict is in the status, too
            match result {
                Ok(())
                | Err(virtio_drivers::Error::IoError | virtio_drivers::Error::Unsupported) => {}
                Err(error) => return Err(error.into()),
            }
            done.push(Outcome {
                id: flight.id,
                write: flight.write,
                sector: flight.sector,
                status: flight.response.status(),
                data: flight.data,
            });
        }
        Ok(done)
    }

    /// After a request that the driver waited for by itself.
    fn settle(&mut self) -> Result<(), DiskError> {
        self.driver.ack_interrupt();
        self.check()
    }

    fn check(&self) -> Result<(), DiskError> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match faults.is_empty() {
            true => Ok(()),
            false => Err(DiskError::Access(faults.remove(0))),
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("sectors", &self.sectors())
            .field("in_flight", &self.flights.len())
            .finish_non_exhaustive()
    }
}

/// Bytes of a sector.
pub const SECTOR: usize = SECTOR_SIZE;
