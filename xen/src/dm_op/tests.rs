//! Byte vectors of the operations, and the naming of errors.

use super::*;

fn bytes(op: abi::DmOp) -> Vec<u8> {
    op.as_bytes().to_vec()
}

/// A 32-byte operation from its leading bytes.
fn padded(lead: &[u8]) -> Vec<u8> {
    let mut all = lead.to_vec();
    all.resize(32, 0);
    all
}

#[test]
fn set_irq_level_has_the_bytes_of_the_header() {
    let op = set_irq_level_op(33, true);

    assert_eq!(
        bytes(op),
        padded(&[19, 0, 0, 0, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0])
    );
}

#[test]
fn a_memory_range_has_the_bytes_of_the_header() {
    let range = IoRange::Memory(0x0200_0000, 0x0200_01ff).encode(ServerId(3));

    let op = abi::DmOp::new(abi::MAP_IO_RANGE, &range);

    let mut expected = padded(&[3, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0]);
    expected[16..20].copy_from_slice(&[0, 0, 0, 2]);
    expected[24..28].copy_from_slice(&[0xff, 1, 0, 2]);
    assert_eq!(bytes(op), expected);
}

#[test]
fn a_pci_function_is_a_range_of_one() {
    let range = IoRange::Pci(1, 2, 3, 4).encode(ServerId(0));

    assert_eq!(range.kind, 2);
    assert_eq!(range.start, 0x1_02_1c);
    assert_eq!(range.end, range.start);
}

#[test]
fn payloads_come_back_from_an_operation() {
    let sent = abi::GetIoreqServerInfo {
        id: 7,
        flags: 1,
        bufioreq_port: 2,
        ioreq_gfn: 3,
        bufioreq_gfn: 0x1122_3344_5566_7788,
    };

    let op = abi::DmOp::new(abi::GET_IOREQ_SERVER_INFO, &sent);

    assert_eq!(op.payload::<abi::GetIoreqServerInfo>(), sent);
}

#[test]
fn inject_msi_puts_the_data_before_the_address() {
    let op = X86Op::InjectMsi {
        address: 0xfee0_1000,
        data: 0x4041,
    };

    let mut expected = padded(&[14, 0, 0, 0, 0, 0, 0, 0, 0x41, 0x40]);
    expected[16..20].copy_from_slice(&[0, 0x10, 0xe0, 0xfe]);
    assert_eq!(bytes(op.encode()), expected);
    assert_eq!(op.second_buffer(), None);
}

#[test]
fn every_x86_operation_has_its_own_number() {
    let extent = Extent {
        first_gfn: 0x10,
        count: 9,
    };
    let ops = [
        X86Op::TrackDirtyVram(extent),
        X86Op::SetPciIntxLevel {
            segment: 0,
            bus: 0,
            device: 1,
            pin: 0,
            level: true,
        },
        X86Op::SetIsaIrqLevel {
            irq: 4,
            level: true,
        },
        X86Op::SetPciLinkRoute {
            link: 0,
            irq: Some(5),
        },
        X86Op::ModifiedMemory(vec![extent]),
        X86Op::SetMemType {
            mem_type: 1,
            extent,
        },
        X86Op::InjectEvent {
            vcpu: 0,
            vector: 14,
            kind: EventKind::HardwareException,
            insn_len: 0,
            error_code: None,
            cr2: 0,
        },
        X86Op::InjectMsi {
            address: 0,
            data: 0,
        },
        X86Op::MapMemType {
            id: ServerId(0),
            mem_type: 0,
            writes: true,
        },
        X86Op::RemoteShutdown { reason: 0 },
        X86Op::RelocateMemory {
            from: extent,
            to_gfn: 0,
        },
        X86Op::PinMemoryCacheattr {
            first_gfn: 0,
            last_gfn: 0,
            kind: 0,
        },
    ];

    let numbers: Vec<u32> = ops.iter().map(|op| op.encode().op).collect();

    assert_eq!(numbers, (7..=18).collect::<Vec<_>>());
}

#[test]
fn modified_memory_lists_its_extents_in_buffer_1() {
    let op = X86Op::ModifiedMemory(vec![Extent {
        first_gfn: 0x1234,
        count: 2,
    }]);

    let buffer = op.second_buffer().unwrap();

    assert_eq!(
        buffer,
        [2, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(bytes(op.encode()), padded(&[11, 0, 0, 0, 0, 0, 0, 0, 1]));
}

#[test]
fn a_dirty_bitmap_has_a_bit_a_page() {
    let op = X86Op::TrackDirtyVram(Extent {
        first_gfn: 0,
        count: 9,
    });

    assert_eq!(op.second_buffer(), Some(vec![0, 0]));
}

#[test]
fn an_unknown_creation_names_the_missing_option() {
    let source = io::Error::from_raw_os_error(libc::ENOSYS);

    let error = Error::new(DomId(4), CREATE, "", source);

    assert!(matches!(error, Error::NoIoreqServer { dom: DomId(4) }));
    assert!(error.to_string().contains("CONFIG_IOREQ_SERVER"));
    assert!(error.to_string().contains("domain 4"));
}

#[test]
fn errors_name_domain_and_values() {
    let source = |errno| io::Error::from_raw_os_error(errno);
    let values = "interrupt 33, level 1";

    let gone = Error::new(DomId(5), "set_irq_level", values, source(libc::ESRCH));
    let forbidden = Error::new(DomId(5), "set_irq_level", values, source(libc::EPERM));
    let other = Error::new(DomId(5), "set_irq_level", values, source(libc::EINVAL));

    assert!(matches!(gone, Error::NoDomain { .. }));
    assert!(matches!(forbidden, Error::Restricted { .. }));
    assert!(matches!(other, Error::Failed { .. }));
    let texts = [gone, forbidden, other].map(|e| e.to_string());
    assert!(texts.iter().all(|t| t.contains("domain 5")));
    assert!(texts.iter().all(|t| t.contains(values)));
    assert!(texts[1].contains("XSA-482"));
}
