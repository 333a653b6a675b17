//! Requests that break a rule, or whose memory is gone.

use super::*;

on_every_engine! {
    a_request_that_breaks_a_rule_is_told_and_changes_nothing
    no_data_at_the_very_end_is_no_error
    request_types_that_are_not_there_are_unsupported
    what_was_not_negotiated_is_unsupported
    extents_with_flags_that_are_not_theirs_are_unsupported
    extents_outside_of_the_limits_are_errors_and_change_nothing
    an_extent_without_sectors_is_carried_out_by_doing_nothing
    a_flush_ignores_data
    a_chain_without_room_for_a_status_breaks_the_queue
    a_chain_without_a_whole_header_breaks_the_queue
    a_status_that_cannot_be_written_breaks_the_queue_after_the_others
    memory_that_is_not_there_fails_its_own_request_alone
    a_guest_never_moves_the_end_of_its_image
}

/// A request whose data is zeroes: `out` bytes to read, `into` to write.
fn zeroes(rig: &mut Rig, kind: u32, sector: u64, out: u32, into: u32) -> (u8, u32) {
    let mut data = Vec::new();
    data.extend((out > 0).then(|| rig.out(&vec![0; out as usize])));
    data.extend((into > 0).then(|| rig.space(into)));
    rig.request(kind, sector, &data)
}

fn extents(rig: &mut Rig, kind: u32, extents: &[WireExtent]) -> (u8, u32) {
    let data = rig.out(extents.as_bytes());
    rig.request(kind, 0, &[data])
}

fn a_request_that_breaks_a_rule_is_told_and_changes_nothing(on: On) {
    use blk::{VIRTIO_BLK_T_GET_ID as ID, VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};
    let mut rig = on.rig();

    let answers = [
        // lengths that are no whole number of sectors
        zeroes(&mut rig, IN, 0, 0, 511),
        zeroes(&mut rig, IN, 0, 0, 1024 + 1),
        zeroes(&mut rig, OUT, 0, 100, 0),
        // data that goes the wrong way
        zeroes(&mut rig, IN, 0, 512, 0),
        zeroes(&mut rig, IN, 0, 512, 512),
        zeroes(&mut rig, OUT, 0, 0, 512),
        zeroes(&mut rig, OUT, 0, 512, 512),
        zeroes(&mut rig, ID, 0, 20, 20),
        // beyond the end, by one, by all, and around
        zeroes(&mut rig, IN, 2048, 0, 512),
        zeroes(&mut rig, OUT, 2047, 1024, 0),
        zeroes(&mut rig, OUT, u64::MAX, 512, 0),
        zeroes(&mut rig, OUT, u64::MAX / 512 + 1, 512, 0),
        zeroes(&mut rig, IN, 1 << 55, 0, 512),
        // an ID is 20 bytes
        zeroes(&mut rig, ID, 0, 0, 19),
        zeroes(&mut rig, ID, 0, 0, 0),
        zeroes(&mut rig, ID, 0, 0, 512),
    ];

    assert!(answers.iter().all(|(status, _)| *status == IOERR));
    // the status follows data that was not written: it cannot be counted
    let used = answers.map(|(_, used)| used);
    assert_eq!(used, [0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0]);
    assert_eq!(rig.image(), pattern(0, SIZE));
    assert_eq!(rig.stats().bad_requests, 16);
}

fn no_data_at_the_very_end_is_no_error(on: On) {
    let mut rig = on.rig();

    let read = zeroes(&mut rig, blk::VIRTIO_BLK_T_IN, 2048, 0, 0);
    let write = zeroes(&mut rig, blk::VIRTIO_BLK_T_OUT, 2048, 0, 0);
    let beyond = zeroes(&mut rig, blk::VIRTIO_BLK_T_IN, 2049, 0, 0);

    assert_eq!((read, write, beyond), ((OK, 1), (OK, 1), (IOERR, 1)));
}

fn request_types_that_are_not_there_are_unsupported(on: On) {
    let mut rig = on.rig();
    let types = [
        blk::VIRTIO_BLK_T_SCSI_CMD,
        blk::VIRTIO_BLK_T_SECURE_ERASE,
        blk::VIRTIO_BLK_T_ZONE_APPEND,
        blk::VIRTIO_BLK_T_BARRIER,
        u32::MAX,
    ];

    let answers = types.map(|kind| zeroes(&mut rig, kind, 0, 16, 16));

    assert_eq!(answers, [(UNSUPP, 0); 5]);
    assert_eq!(rig.stats().unsupported, 5);
}

fn what_was_not_negotiated_is_unsupported(on: On) {
    let neither = !(1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES);
    let mut rig = on.negotiating(|_| {}, neither);
    let one = [extent(0, 8, 0)];

    let discard = extents(&mut rig, blk::VIRTIO_BLK_T_DISCARD, &one);
    let zero = extents(&mut rig, blk::VIRTIO_BLK_T_WRITE_ZEROES, &one);

    assert_eq!((discard, zero), ((UNSUPP, 1), (UNSUPP, 1)));
    assert_eq!(rig.image(), pattern(0, SIZE));
}

fn extents_with_flags_that_are_not_theirs_are_unsupported(on: On) {
    use blk::{VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_WRITE_ZEROES as ZERO};
    let mut rig = on.rig();

    let answers = [
        extents(&mut rig, DISCARD, &[extent(0, 8, UNMAP)]),
        extents(&mut rig, DISCARD, &[extent(0, 8, 0), extent(8, 8, 2)]),
        extents(&mut rig, ZERO, &[extent(0, 8, UNMAP | 2)]),
        extents(&mut rig, ZERO, &[extent(0, 8, 1 << 31)]),
    ];

    assert_eq!(answers, [(UNSUPP, 1); 4]);
    assert_eq!(rig.image(), pattern(0, SIZE));
}

fn extents_outside_of_the_limits_are_errors_and_change_nothing(on: On) {
    use blk::{VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_WRITE_ZEROES as ZERO};
    let mut rig = on.rig();
    let good = extent(0, 8, 0);

    let answers = [
        // beyond the end; the good one before it must not be carried out
        extents(&mut rig, DISCARD, &[good, extent(2041, 8, 0)]),
        extents(&mut rig, ZERO, &[good, extent(u64::MAX, 8, 0)]),
        // longer than the driver was told
        extents(&mut rig, DISCARD, &[extent(0, (1 << 22) + 1, 0)]),
        extents(&mut rig, ZERO, &[extent(0, (1 << 16) + 1, 0)]),
        // more than the driver was told
        extents(&mut rig, DISCARD, &[good; 33]),
        extents(&mut rig, ZERO, &[good; 9]),
        // no whole extent, none at all, data that goes the wrong way
        zeroes(&mut rig, DISCARD, 0, 15, 0),
        zeroes(&mut rig, ZERO, 0, 0, 0),
        zeroes(&mut rig, DISCARD, 0, 16, 16),
    ];

    let statuses = answers.map(|(status, _)| status);
    assert_eq!(statuses, [IOERR; 9]);
    assert_eq!(rig.image(), pattern(0, SIZE));
}

fn an_extent_without_sectors_is_carried_out_by_doing_nothing(on: On) {
    let mut rig = on.rig();

    let answer = extents(
        &mut rig,
        blk::VIRTIO_BLK_T_DISCARD,
        &[extent(2048, 0, 0), extent(0, 0, 0)],
    );

    assert_eq!(answer, (OK, 1));
    assert_eq!(rig.image(), pattern(0, SIZE));
}

fn a_flush_ignores_data(on: On) {
    let mut rig = on.rig();

    let out = zeroes(&mut rig, blk::VIRTIO_BLK_T_FLUSH, 0, 16, 0);
    let into = zeroes(&mut rig, blk::VIRTIO_BLK_T_FLUSH, 0, 0, 16);

    assert_eq!((out, into), ((OK, 1), (OK, 0)));
    assert_eq!(rig.stats().syncs, 2);
}

/// What serving one chain of these buffers says.
fn break_queue(rig: &mut Rig, buffers: &[Buffer]) -> String {
    rig.ring.add(buffers);
    let error = rig.serve().unwrap_err();
    assert!(matches!(error, QueueError::Request { .. }));
    error.to_string()
}

fn a_chain_without_room_for_a_status_breaks_the_queue(on: On) {
    let mut rig = on.rig();
    let header = rig.out(header(blk::VIRTIO_BLK_T_FLUSH, 0).as_bytes());

    let text = break_queue(&mut rig, &[header]);

    assert_eq!(text, "chain 0: a request without room for its status");
    assert_eq!(rig.ring.used_index(), 0);
}

fn a_chain_without_a_whole_header_breaks_the_queue(on: On) {
    for chain in [vec![], vec![15], vec![8, 7]] {
        let mut rig = on.rig();
        let mut buffers: Vec<_> = chain.iter().map(|len| rig.out(&vec![0; *len])).collect();
        buffers.push(rig.space(1));

        let text = break_queue(&mut rig, &buffers);

        assert_eq!(text, "chain 0: a request without a whole header");
    }
}

fn a_status_that_cannot_be_written_breaks_the_queue_after_the_others(on: On) {
    let mut rig = on.rig();
    let (mut bad, _) = rig.frame(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
    bad[1].address = 1 << 40;
    let (good, status) = rig.frame(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
    rig.ring.add(&bad);
    rig.ring.add(&good);

    let error = rig.serve().unwrap_err().to_string();

    assert!(error.starts_with("chain 0: its status cannot be written"));
    assert_eq!(rig.ring.used(), [(2, 1)]);
    assert_eq!(rig.ram.read(status, 1), [OK]);
}

fn memory_that_is_not_there_fails_its_own_request_alone(on: On) {
    let mut rig = on.rig();
    let data = rig.space(512);
    let wild = Buffer::writable(1 << 40, 512);
    let page = rig.ram.alloc(8192).next_multiple_of(4096);
    rig.ram.revoke((page / 4096) as u32);
    let revoked = Buffer::readable(GuestRam::granted(page), 512);
    let (mut no_header, header_status) = rig.frame(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
    no_header[0].address = 1 << 40;
    let lost_id = Buffer::writable(1 << 41, 20);
    let lost_extents = Buffer::readable(1 << 41, 16);
    let granted = Buffer {
        address: GuestRam::granted(data.address),
        ..data
    };

    rig.ring.add(&no_header);
    let mut statuses = vec![header_status];
    for (kind, buffer) in [
        (blk::VIRTIO_BLK_T_IN, wild),
        (blk::VIRTIO_BLK_T_OUT, revoked),
        (blk::VIRTIO_BLK_T_GET_ID, lost_id),
        (blk::VIRTIO_BLK_T_DISCARD, lost_extents),
        (blk::VIRTIO_BLK_T_IN, granted),
    ] {
        let (chain, status) = rig.frame(kind, 1, &[buffer]);
        rig.ring.add(&chain);
        statuses.push(status);
    }
    let mut used: Vec<_> = rig.serve().unwrap();

    used.sort_unstable();
    let lengths: Vec<_> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths, [1, 0, 1, 0, 1, 513]);
    let statuses: Vec<_> = statuses.iter().map(|at| rig.ram.read(*at, 1)[0]).collect();
    assert_eq!(statuses, [IOERR, IOERR, IOERR, IOERR, IOERR, OK]);
    assert_eq!(rig.read_back(data), pattern(1, 512));
    assert_eq!(rig.stats().unreachable, 5);
    assert_eq!(rig.ram.lent(), 0);
}

fn a_guest_never_moves_the_end_of_its_image(on: On) {
    let mut rig = on.rig();
    let last = [extent(2047, 1, UNMAP)];

    rig.request(blk::VIRTIO_BLK_T_OUT, 2047, &[rig.out(&[1; 512])]);
    extents(&mut rig, blk::VIRTIO_BLK_T_WRITE_ZEROES, &last);
    extents(&mut rig, blk::VIRTIO_BLK_T_DISCARD, &[extent(2047, 1, 0)]);
    zeroes(&mut rig, blk::VIRTIO_BLK_T_OUT, 2048, 512, 0);

    assert_eq!(rig.image().len(), SIZE);
}
