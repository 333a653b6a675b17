//! Small copies, and who may give which addresses.

use super::*;

#[test]
fn plain_addresses_are_refused_to_a_guest_on_grants_and_the_other_way_round() {
    let ram = Ram::new(4);
    let log = Arc::new(Log::default());
    let pages = Pages {
        ram: ram.clone(),
        log,
    };
    let mut grants_only = Dma::new(
        Kind::Translated,
        None,
        Some(Box::new(pages)),
        Arc::default(),
    );
    let mut plain_only = Dma::new(
        Kind::Translated,
        Some(Box::new(Chunks(ram))),
        None,
        Arc::default(),
    );

    let plain = grants_only
        .map([job(0, &[(range(0, 8), Access::Read)])], Need::COPY)
        .remove(0);
    let grant = plain_only
        .map([job(0, &[(granted(0, 0, 8), Access::Read)])], Need::COPY)
        .remove(0);
    let mut byte = [0];
    let mut copies = [Transfer::from_guest([granted(0, 0, 1)], &mut byte)];
    plain_only.transfer(&mut copies);

    assert!(matches!(
        plain.err().unwrap().fault(),
        Fault::PlainRefused { address: 0 }
    ));
    assert!(matches!(
        grant.err().unwrap().fault(),
        Fault::GrantRefused { .. }
    ));
    assert!(matches!(copies[0].result, Err(Fault::GrantRefused { .. })));
}

#[test]
fn a_batch_of_copies_is_one_call_and_each_has_its_own_result() {
    let (mut dma, ram, log) = paths();
    ram.slice(0x3000, 4).write_slice(&[1, 2, 3, 4], 0).unwrap();
    let (mut a, mut b, mut c) = ([0; 2], [0; 2], [0; 6]);
    let out = [9, 9];
    let mut batch = [
        Transfer::from_guest([granted(3, 0, 2)], &mut a),
        Transfer::from_guest([granted(BAD_REF, 0, 2)], &mut b),
        // gathered over a plain and a granted range
        Transfer::from_guest([range(0x3000, 4), granted(3, 2, 2)], &mut c),
        Transfer::to_guest([granted(4, 8, 2)], &out),
    ];

    dma.transfer(&mut batch);

    let results: Vec<_> = batch.iter().map(|t| t.result.is_ok()).collect();
    assert_eq!(results, [true, false, true, true]);
    assert_eq!(a, [1, 2]);
    assert_eq!(c, [1, 2, 3, 4, 3, 4]);
    assert_eq!(log.copies.load(Ordering::SeqCst), 1);
    let mut seen = [0; 2];
    ram.slice(0x4008, 2).read_slice(&mut seen, 0).unwrap();
    assert_eq!(seen, out);
}
