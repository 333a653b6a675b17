//! Disks whose data goes through the bounce pool.

use super::*;

on_every_engine! {
    without_a_pool_a_disk_past_the_page_cache_refuses_its_requests
    a_request_larger_than_the_pool_is_carried_out_in_parts
    more_requests_than_the_pool_holds_wait_for_each_other
    a_part_that_is_no_whole_block_goes_through_the_page_cache
    data_that_the_guest_takes_back_fails_its_request_alone
    a_reset_with_requests_waiting_for_room_holds_nothing
}

/// Every byte of the guest's data goes through the pool.
fn forced(on: On) -> Rig {
    On {
        pool: "128,force",
        ..on
    }
    .rig()
}

fn a_request_larger_than_the_pool_is_carried_out_in_parts(on: On) {
    let mut rig = forced(on);
    let part = |rig: &Rig, len| [rig.space(len), rig.space(700 << 10)];
    // 768 KiB in a pool of 256 KiB, from an odd sector
    let data = part(&rig, 68 << 10);
    let bytes: Vec<u8> = (0..768u32 << 10).map(|i| (i % 241) as u8).collect();
    rig.ram.write(data[0].address, &bytes[..68 << 10]);
    rig.ram.write(data[1].address, &bytes[68 << 10..]);
    let out = data.map(|buffer| Buffer::readable(buffer.address, buffer.len));

    let wrote = rig.request(blk::VIRTIO_BLK_T_OUT, 3, &out);
    rig.ram.write(data[0].address, &vec![0; 68 << 10]);
    rig.ram.write(data[1].address, &vec![0; 700 << 10]);
    let read = rig.request(blk::VIRTIO_BLK_T_IN, 3, &data);

    assert_eq!((wrote, read), ((OK, 1), (OK, (768 << 10) + 1)));
    assert_eq!(rig.image()[3 * 512..][..768 << 10], bytes);
    let back = [rig.read_back(data[0]), rig.read_back(data[1])].concat();
    assert!(back == bytes, "what was read differs");
    let stats = rig.stats();
    assert_eq!((stats.reads, stats.writes), (1, 1));
    assert_eq!(
        (stats.read_bytes, stats.written_bytes),
        (768 << 10, 768 << 10)
    );
    let dma = rig.queue.dma().counters().snapshot();
    assert_eq!((dma.direct, dma.granted, dma.rejected), (0, 0, 0));
    assert_eq!(
        (dma.bounced_bytes_in, dma.bounced_bytes_out),
        (768 << 10, 768 << 10)
    );
}

fn without_a_pool_a_disk_past_the_page_cache_refuses_its_requests(on: On) {
    let on = On {
        pool: "noforce",
        ..on
    };
    let mut rig = on.rig();
    let data = rig.space(4096);

    let answer = rig.request(blk::VIRTIO_BLK_T_IN, 0, &[data]);
    let flush = rig.request(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);

    let read = if on.direct { (IOERR, 0) } else { (OK, 4097) };
    assert_eq!((answer, flush), (read, (OK, 1)));
}

fn more_requests_than_the_pool_holds_wait_for_each_other(on: On) {
    let mut rig = forced(on);
    let mut requests = Vec::new();
    for index in 0..24 {
        let data = rig.space(32 << 10);
        let (chain, status) = rig.frame(blk::VIRTIO_BLK_T_IN, index * 64, &[data]);
        rig.ring.add(&chain);
        requests.push((index, data, status));
    }

    let used = rig.serve().unwrap();

    assert_eq!(used.len(), 24);
    for (index, data, status) in requests {
        assert_eq!(rig.ram.read(status, 1), [OK]);
        let expected = pattern(index as usize * 64, 32 << 10);
        assert!(rig.read_back(data) == expected, "request {index} differs");
    }
    let dma = rig.queue.dma().counters().snapshot();
    assert!(dma.pool_full > 0, "nothing had to wait");
    assert_eq!((dma.rejected, rig.queue.dma().pool_in_use()), (0, 0));
}

fn a_part_that_is_no_whole_block_goes_through_the_page_cache(on: On) {
    let mut rig = forced(on);
    let whole = rig.out(&[1; 4096]);
    let piece = rig.out(&[2; 512]);
    let back = rig.space(4096);

    let answers = [
        rig.request(blk::VIRTIO_BLK_T_OUT, 8, &[whole]),
        rig.request(blk::VIRTIO_BLK_T_OUT, 9, &[piece]),
        rig.request(blk::VIRTIO_BLK_T_IN, 8, &[back]),
    ];

    assert_eq!(answers, [(OK, 1), (OK, 1), (OK, 4097)]);
    let expected = [&[1; 512][..], &[2; 512], &[1; 3072]].concat();
    assert_eq!(rig.read_back(back), expected);
}

fn data_that_the_guest_takes_back_fails_its_request_alone(on: On) {
    let mut rig = On {
        pool: "128,force",
        ..on
    }
    .rig();
    let page = rig.ram.alloc(8192).next_multiple_of(4096);
    let lost = Buffer::writable(GuestRam::granted(page), 512);
    rig.ram.revoke((page / 4096) as u32);
    let kept = rig.space(512);
    let (bad, bad_status) = rig.frame(blk::VIRTIO_BLK_T_IN, 1, &[lost]);
    let (good, good_status) = rig.frame(blk::VIRTIO_BLK_T_IN, 2, &[kept]);
    rig.ring.add(&bad);
    rig.ring.add(&good);

    let mut used = rig.serve().unwrap();

    used.sort_unstable();
    let lengths: Vec<_> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths, [0, 513]);
    assert_eq!(rig.ram.read(bad_status, 1), [IOERR]);
    assert_eq!(rig.ram.read(good_status, 1), [OK]);
    assert_eq!(rig.read_back(kept), pattern(2, 512));
    assert_eq!(rig.stats().unreachable, 1);
}

fn a_reset_with_requests_waiting_for_room_holds_nothing(on: On) {
    let mut rig = forced(on);
    for index in 0..24 {
        let data = rig.space(32 << 10);
        let (chain, _) = rig.frame(blk::VIRTIO_BLK_T_IN, index, &[data]);
        rig.ring.add(&chain);
    }
    let chains = rig.queue.take(64).unwrap();
    rig.handler.serve(&mut rig.queue, chains).unwrap();

    rig.handler.settle(&mut rig.queue);

    assert_eq!(rig.queue.dma().pool_in_use(), 0);
    assert_eq!(rig.ram.lent(), 0);
}

#[test]
#[ignore = "needs io_uring"]
fn requests_that_io_uring_completed_unseen_make_room_for_those_that_come() {
    let mut rig = forced(On::new(EngineKind::IoUring, true));
    let offer = |rig: &mut Rig, index: u64| {
        let data = rig.space(32 << 10);
        let (chain, status) = rig.frame(blk::VIRTIO_BLK_T_IN, index * 64, &[data]);
        rig.ring.add(&chain);
        status
    };
    // all of the pool, and its completions not taken
    let first: Vec<_> = (0..8).map(|index| offer(&mut rig, index)).collect();
    let chains = rig.queue.take(64).unwrap();
    rig.handler.serve(&mut rig.queue, chains).unwrap();
    let seen = rig.ring.used().len();
    let event = rig.handler.event().unwrap();
    assert!(seen == 8 || readable(event, PATIENCE));
    let second: Vec<_> = (8..12).map(|index| offer(&mut rig, index)).collect();

    let chains = rig.queue.take(64).unwrap();
    rig.handler.serve(&mut rig.queue, chains).unwrap();
    let mut used = seen + rig.ring.used().len();
    while used < 12 {
        let event = rig.handler.event().unwrap();
        assert!(readable(event, PATIENCE), "a request is never completed");
        rig.handler.advance(&mut rig.queue).unwrap();
        used += rig.ring.used().len();
    }

    let statuses = first.into_iter().chain(second);
    assert!(statuses.into_iter().all(|at| rig.ram.read(at, 1) == [OK]));
}

#[test]
fn grants_are_mapped_or_copied_as_it_is_wanted() {
    let granted = |mode| {
        let on = On {
            grants: mode,
            ..On::new(EngineKind::Sync, false)
        };
        let mut rig = on.rig();
        let data = rig.space(4096);
        let lent = Buffer::writable(GuestRam::granted(data.address), 4096);
        let answer = rig.request(blk::VIRTIO_BLK_T_IN, 5, &[lent]);
        assert_eq!(answer, (OK, 4097));
        assert_eq!(rig.read_back(data), pattern(5, 4096));
        let dma = rig.queue.dma().counters().snapshot();
        (dma.granted, dma.bounced_cheaper, dma.loans)
    };

    assert_eq!(granted(GrantMode::Map), (1, 0, 1));
    assert_eq!(granted(GrantMode::Copy), (0, 1, 0));
}
