//! Every case of the torture, on every device.

use tests::subjects::SUBJECTS;
use tests::torture::{CASES, torture};

macro_rules! cases {
    ($($test:ident: $name:literal,)*) => {
        const NAMED: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() {
                torture($name);
            }
        )*
    };
}

cases! {
    rebind: "rebind",
    reset_under_load: "reset under load",
    queue_reset_under_load: "queue reset under load",
    queue_stop_under_load: "queue stop under load",
    stop_under_load: "stop under load",
    two_vcpus_at_once: "two vCPUs at once",
    hostile_chains: "hostile chains",
    hostile_indirect_tables: "hostile indirect tables",
    hostile_indices: "hostile indices",
    random_descriptors: "random descriptors",
    rings_anywhere: "rings anywhere",
    bad_registers: "bad registers",
    bad_queue_registers: "bad queue registers",
    registers_out_of_order: "registers out of order",
}

#[test]
fn every_case_is_run() {
    let cases: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();

    assert_eq!(cases, NAMED);
}

#[test]
fn every_device_of_the_registry_is_tortured() {
    let kinds: Vec<&str> = devices::registry::KINDS
        .iter()
        .map(|kind| kind.name)
        .collect();
    let mut subjects: Vec<&str> = SUBJECTS.iter().map(|subject| subject.kind).collect();
    // some are tortured by several of their queues
    subjects.dedup();

    assert_eq!(subjects, kinds);
}
