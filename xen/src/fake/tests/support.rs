//! A device model in miniature for the fake's tests, built on the files
//! alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::slot::{
    Request, STATE_INPROCESS, STATE_READY, STATE_RESP_READY, Slot, TYPE_INVALIDATE,
};
use crate::fake::{Domain, DomainConfig, EvtchnFile, Machine, MachineConfig, PrivcmdFile};
use crate::{DomId, Mapping};

/// The register window of the tests.
pub(super) const BASE: u64 = 0x0200_0000;
/// Its last byte.
pub(super) const LAST: u64 = BASE + 0x1ff;
/// `XEN_DMOP_IO_RANGE_MEMORY`.
pub(super) const MEMORY: u32 = 1;
/// Long enough for anything that does happen.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// The errno of a result that has to be an error.
#[track_caller]
pub(super) fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.raw_os_error().expect("an errno"),
    }
}

/// Waits for `ready`, with a bound.
#[track_caller]
pub(super) fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !ready() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Buffer 0 of an operation.
pub(super) fn op(number: u32, payload: &[u8]) -> [u8; 32] {
    let mut op = [0; 32];
    op[..4].copy_from_slice(&number.to_le_bytes());
    op[8..8 + payload.len()].copy_from_slice(payload);
    op
}

/// A machine with one guest, and dom0's files.
pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) domain: Domain,
    pub(super) dom: DomId,
    pub(super) privcmd: PrivcmdFile,
    pub(super) evtchn: EvtchnFile,
}

/// An enabled server with its page and ports.
pub(super) struct Attached {
    pub(super) id: u16,
    pub(super) page: Mapping,
    pub(super) ports: Vec<u32>,
}

impl Rig {
    pub(super) fn new() -> Rig {
        Rig::with(MachineConfig::default(), DomainConfig::default())
    }

    pub(super) fn with(machine: MachineConfig, domain: DomainConfig) -> Rig {
        let machine = Machine::with_config(machine).unwrap();
        let domain = machine.create_domain(domain).unwrap();
        Rig {
            dom: domain.id(),
            privcmd: machine.open_privcmd().unwrap(),
            evtchn: machine.open_evtchn().unwrap(),
            machine,
            domain,
        }
    }

    /// One operation; its buffer as it came back.
    pub(super) fn call(&self, number: u32, payload: &[u8]) -> io::Result<[u8; 32]> {
        let mut op = op(number, payload);
        self.privcmd.dm_op(self.dom, &mut [&mut op])?;
        Ok(op)
    }

    pub(super) fn create(&self) -> io::Result<u16> {
        let op = self.call(1, &[0; 6])?;
        Ok(u16::from_le_bytes([op[12], op[13]]))
    }

    pub(super) fn destroy(&self, id: u16) -> io::Result<()> {
        let id = id.to_le_bytes();
        self.call(6, &[id[0], id[1], 0, 0]).map(|_| ())
    }

    pub(super) fn set_state(&self, id: u16, enabled: bool) -> io::Result<()> {
        let id = id.to_le_bytes();
        self.call(5, &[id[0], id[1], enabled.into(), 0]).map(|_| ())
    }

    pub(super) fn range(
        &self,
        number: u32,
        id: u16,
        kind: u32,
        start: u64,
        end: u64,
    ) -> io::Result<()> {
        let mut payload = [0; 24];
        payload[..2].copy_from_slice(&id.to_le_bytes());
        payload[4..8].copy_from_slice(&kind.to_le_bytes());
        payload[8..16].copy_from_slice(&start.to_le_bytes());
        payload[16..].copy_from_slice(&end.to_le_bytes());
        self.call(number, &payload).map(|_| ())
    }

    pub(super) fn map_range(&self, id: u16, start: u64, end: u64) -> io::Result<()> {
        self.range(3, id, MEMORY, start, end)
    }

    pub(super) fn set_irq(&self, irq: u32, level: u8) -> io::Result<()> {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&irq.to_le_bytes());
        payload[4] = level;
        self.call(19, &payload).map(|_| ())
    }

    /// The ioreq page of a server.
    pub(super) fn page(&self, id: u16) -> io::Result<Mapping> {
        self.privcmd.mmap_resource(self.dom, 0, id.into(), 1, 1)
    }

    /// A server over the window, enabled, its `vcpus` ports bound.
    pub(super) fn attach(&self, vcpus: u32) -> Attached {
        let id = self.create().unwrap();
        let page = self.page(id).unwrap();
        self.map_range(id, BASE, LAST).unwrap();
        self.set_state(id, true).unwrap();
        let ports = (0..vcpus)
            .map(|vcpu| {
                let remote = Slot::of(&page, vcpu).unwrap().event_port();
                self.evtchn.bind_interdomain(self.dom, remote).unwrap()
            })
            .collect();
        Attached { id, page, ports }
    }

    /// Lets the guest get over its first INVALIDATE, with nobody to hear it.
    pub(super) fn start_unheard(&self) {
        let _ = self.domain.vcpu(0).read(u64::MAX - 8, 1);
    }

    pub(super) fn read_ports(&self) -> Vec<u32> {
        let mut ports = [0; 64];
        match self.evtchn.read(&mut ports) {
            Ok(count) => ports[..count].to_vec(),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
                Vec::new()
            }
        }
    }
}

impl Attached {
    pub(super) fn slot(&self, vcpu: u32) -> Slot<'_> {
        Slot::of(&self.page, vcpu).unwrap()
    }

    /// Puts an answer into the slot, without notifying.
    pub(super) fn answer(&self, vcpu: u32, data: u64) {
        let slot = self.slot(vcpu);
        slot.set_state(STATE_INPROCESS);
        self.set_data(vcpu, data);
        slot.set_state(STATE_RESP_READY);
    }

    pub(super) fn set_data(&self, vcpu: u32, data: u64) {
        use vm_memory::Bytes;
        let at = vcpu as usize * 32 + 8;
        self.page.volatile().write_obj(data, at).unwrap();
    }
}

/// A thread that answers every request: reads with `answer`, INVALIDATE by
/// counting it.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    pub(super) invalidates: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn run(
        rig: Arc<Rig>,
        attached: Arc<Attached>,
        mut answer: impl FnMut(u32, Request) -> u64 + Send + 'static,
    ) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let invalidates = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            let invalidates = Arc::clone(&invalidates);
            move || {
                while !stop.load(Ordering::Acquire) {
                    let ports = rig.read_ports();
                    if ports.is_empty() {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    for port in ports {
                        let vcpu = attached.ports.iter().position(|own| *own == port);
                        let vcpu = u32::try_from(vcpu.expect("a port of ours")).unwrap();
                        let slot = attached.slot(vcpu);
                        let deadline = Instant::now() + SOON;
                        while slot.state() == STATE_INPROCESS {
                            assert!(Instant::now() < deadline, "in process for ever");
                            std::thread::yield_now();
                        }
                        if slot.state() == STATE_READY {
                            let request = slot.request();
                            let data = if request.kind == TYPE_INVALIDATE {
                                invalidates.fetch_add(1, Ordering::SeqCst);
                                0
                            } else {
                                answer(vcpu, request)
                            };
                            attached.answer(vcpu, data);
                            rig.evtchn.notify(port).unwrap();
                        }
                        rig.evtchn.unmask(port).unwrap();
                    }
                }
            }
        });
        Server {
            stop,
            invalidates,
            thread: Some(thread),
        }
    }

    pub(super) fn invalidates(&self) -> u64 {
        self.invalidates.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}
