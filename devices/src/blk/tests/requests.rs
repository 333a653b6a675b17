//! Requests that are carried out.

use super::*;

on_every_engine! {
    a_read_brings_the_image_and_counts_data_and_status_as_used
    a_write_reaches_the_image_and_nothing_beside_it
    granted_data_is_given_back_before_the_request_is_used
    a_header_may_be_spread_and_a_status_may_share_a_descriptor
    a_writes_data_may_share_the_headers_descriptor
    data_of_many_odd_pieces_stays_in_order
    more_pieces_than_one_system_call_takes_are_all_moved
    requests_reach_to_the_last_sector
    a_batch_is_used_once_each_and_synced_once_after_its_writes
    writes_are_durable_at_once_for_a_driver_that_cannot_flush
    writes_wait_for_a_flush_otherwise
    the_time_of_each_request_is_counted_by_its_kind
    the_id_is_the_serial_padded_to_twenty
    discard_gives_up_its_extents_alone
    write_zeroes_keeps_its_space_unless_it_may_be_unmapped
    write_zeroes_unmaps_nothing_where_discard_is_off
    the_disk_keeps_its_image_over_a_reset
    a_queue_that_the_disk_does_not_have_is_an_error
    a_read_only_disk_offers_nothing_that_writes
}

fn a_read_brings_the_image_and_counts_data_and_status_as_used(on: On) {
    let mut rig = on.rig();
    let data = rig.space(4096);

    let answer = rig.request(blk::VIRTIO_BLK_T_IN, 100, &[data]);

    assert_eq!(answer, (OK, 4097));
    assert_eq!(rig.read_back(data), pattern(100, 4096));
    assert_eq!(rig.line.edges(), 1);
    let stats = rig.stats();
    assert_eq!((stats.reads, stats.read_bytes), (1, 4096));
    let told = rig.device.statistics();
    assert!(told.contains(&("reads", 1)) && told.contains(&("read_bytes", 4096)));
}

fn a_write_reaches_the_image_and_nothing_beside_it(on: On) {
    let mut rig = on.rig();
    let data = rig.out(&[0xab; 1024]);

    let answer = rig.request(blk::VIRTIO_BLK_T_OUT, 7, &[data]);

    assert_eq!(answer, (OK, 1));
    let image = rig.image();
    assert_eq!(image[7 * 512..9 * 512], [0xab; 1024]);
    assert_eq!(image[..7 * 512], pattern(0, 7 * 512));
    assert_eq!(image[9 * 512..], pattern(9, SIZE - 9 * 512));
    let stats = rig.stats();
    assert_eq!((stats.writes, stats.written_bytes), (1, 1024));
}

fn granted_data_is_given_back_before_the_request_is_used(on: On) {
    let mut rig = on.rig();
    let granted = |buffer: Buffer| Buffer {
        address: GuestRam::granted(buffer.address),
        ..buffer
    };
    let data = [rig.space(5000), rig.space(3192)];
    let (mut read, status) = rig.frame(blk::VIRTIO_BLK_T_IN, 3, &data);
    let (mut write, _) = rig.frame(blk::VIRTIO_BLK_T_OUT, 2047, &[rig.out(&[1; 512])]);
    read.iter_mut()
        .for_each(|buffer| *buffer = granted(*buffer));
    write
        .iter_mut()
        .for_each(|buffer| *buffer = granted(*buffer));
    rig.ring.add(&read);
    rig.ring.add(&write);

    let mut used: Vec<_> = rig.serve().unwrap().iter().map(|(_, len)| *len).collect();
    // whichever is done first
    used.sort_unstable();

    assert_eq!(used, [1, 8193]);
    assert_eq!(rig.ram.lent(), 0);
    assert_eq!(rig.ram.read(status, 1), [OK]);
    let bytes = [rig.read_back(data[0]), rig.read_back(data[1])].concat();
    assert_eq!(bytes, pattern(3, 8192));
    assert_eq!(rig.image()[2047 * 512..], [1; 512]);
}

fn a_header_may_be_spread_and_a_status_may_share_a_descriptor(on: On) {
    let mut rig = on.rig();
    let bytes = header(blk::VIRTIO_BLK_T_IN, 9);
    let bytes = bytes.as_bytes();
    let tail = rig.space(512 + 1);
    let chain = [
        rig.out(&bytes[..3]),
        rig.out(&bytes[3..4]),
        rig.out(&bytes[4..]),
        rig.space(512),
        tail,
    ];
    rig.ring.add(&chain);

    let used = rig.serve().unwrap();

    assert_eq!(used[0].1, 1025);
    assert_eq!(rig.read_back(chain[3]), pattern(9, 512));
    let mut expected = pattern(10, 512);
    expected.push(OK);
    assert_eq!(rig.read_back(tail), expected);
}

fn a_writes_data_may_share_the_headers_descriptor(on: On) {
    let mut rig = on.rig();
    let mut bytes = header(blk::VIRTIO_BLK_T_OUT, 0).as_bytes().to_vec();
    bytes.extend([0x55; 512]);
    let status = rig.space(1);
    rig.ring.add(&[rig.out(&bytes), status]);

    let used = rig.serve().unwrap();

    assert_eq!((used[0].1, rig.read_back(status)), (1, vec![OK]));
    assert_eq!(rig.image()[..512], [0x55; 512]);
}

fn data_of_many_odd_pieces_stays_in_order(on: On) {
    let mut rig = on.rig();
    // 100 pieces of 41 bytes, one of 508: 4608 bytes, over a chunk's end
    let bytes: Vec<u8> = (0..4608u32).map(|i| (i % 253) as u8).collect();
    let near_end = rig.ram.alloc(CHUNK).next_multiple_of(CHUNK) - 2000;
    rig.ram.write(near_end, &bytes);
    let mut pieces: Vec<_> = (0..100)
        .map(|i| Buffer::readable(near_end + i * 41, 41))
        .collect();
    pieces.push(Buffer::readable(near_end + 4100, 508));
    let (chain, status) = rig.frame(blk::VIRTIO_BLK_T_OUT, 1, &pieces);
    rig.ring.add_indirect(&chain);

    let used = rig.serve().unwrap();

    assert_eq!((used[0].1, rig.ram.read(status, 1)[0]), (1, OK));
    assert_eq!(rig.image()[512..512 + 4608], bytes);
}

fn more_pieces_than_one_system_call_takes_are_all_moved(on: On) {
    let mut rig = on.rig();
    // 1022 buffers, the most beside header and status; 22 of them cross into a
    // second segment: 1044 segments
    let start = rig.ram.alloc_bytes(&pattern(40, 1000));
    let end = rig.ram.alloc(2 * CHUNK).next_multiple_of(CHUNK);
    rig.ram.write(end - 256, &[0x11; 256]);
    rig.ram.write(end, &[0x22; 256]);
    let mut pieces: Vec<_> = (0..1000).map(|i| Buffer::readable(start + i, 1)).collect();
    pieces.extend([Buffer::readable(end - 2, 4); 21]);
    pieces.push(Buffer::readable(end - 226, 452));
    let (chain, status) = rig.frame(blk::VIRTIO_BLK_T_OUT, 2, &pieces);
    rig.ring.add_indirect(&chain);

    let used = rig.serve().unwrap();

    assert_eq!((used[0].1, rig.ram.read(status, 1)[0]), (1, OK));
    let image = rig.image();
    assert_eq!(image[1024..2024], pattern(40, 1000));
    assert_eq!(image[2024..2108], [0x11, 0x11, 0x22, 0x22].repeat(21));
    assert_eq!(image[2108..2560], [[0x11; 226], [0x22; 226]].concat());
    assert_eq!(image[2560..], pattern(5, SIZE - 2560));
}

fn requests_reach_to_the_last_sector(on: On) {
    let mut rig = on.rig();
    let data = rig.space(1024);

    let answer = rig.request(blk::VIRTIO_BLK_T_IN, 2046, &[data]);

    assert_eq!(answer, (OK, 1025));
    assert_eq!(rig.read_back(data), pattern(2046, 1024));
}

fn a_batch_is_used_once_each_and_synced_once_after_its_writes(on: On) {
    let mut rig = on.rig();
    let mut statuses = Vec::new();
    for i in 0..5 {
        let (chain, status) = rig.frame(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
        rig.ring.add(&chain);
        let (write, written) = rig.frame(blk::VIRTIO_BLK_T_OUT, i, &[rig.out(&[9; 512])]);
        rig.ring.add(&write);
        statuses.extend([status, written]);
    }

    let used = rig.serve().unwrap();

    assert_eq!(used.len(), 10);
    assert!(used.iter().all(|(_, len)| *len == 1));
    let answers = statuses.iter().map(|at| rig.ram.read(*at, 1)[0]);
    assert_eq!(answers.collect::<Vec<_>>(), [OK; 10]);
    let stats = rig.stats();
    assert_eq!((stats.flushes, stats.writes, stats.syncs), (5, 5, 1));
    assert_eq!(rig.line.edges(), 1);
}

fn writes_are_durable_at_once_for_a_driver_that_cannot_flush(on: On) {
    let without_flush = !(1 << blk::VIRTIO_BLK_F_FLUSH);
    let mut rig = on.negotiating(|_| {}, without_flush);
    let data = rig.out(&[2; 512]);

    let answer = rig.request(blk::VIRTIO_BLK_T_OUT, 0, &[data]);
    let read = rig.space(512);
    rig.request(blk::VIRTIO_BLK_T_IN, 0, &[read]);

    assert_eq!(answer, (OK, 1));
    assert_eq!(rig.stats().syncs, 1);
}

fn writes_wait_for_a_flush_otherwise(on: On) {
    let mut rig = on.rig();
    let data = rig.out(&[2; 512]);

    rig.request(blk::VIRTIO_BLK_T_OUT, 0, &[data]);

    assert_eq!(rig.stats().syncs, 0);
}

fn the_time_of_each_request_is_counted_by_its_kind(on: On) {
    let mut rig = on.rig();
    let (space, out) = (rig.space(512), rig.out(&[1; 512]));

    rig.request(blk::VIRTIO_BLK_T_IN, 0, &[space]);
    rig.request(blk::VIRTIO_BLK_T_IN, 1, &[space]);
    rig.request(blk::VIRTIO_BLK_T_OUT, 0, &[out]);
    rig.request(blk::VIRTIO_BLK_T_OUT, 1 << 40, &[out]);
    rig.request(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);

    let statistics = rig.device.statistics();
    let counted = |kind: &str| -> u64 {
        let bucket = |name: &str| name.starts_with(kind) && name != format!("{kind}us");
        let buckets = statistics.iter().filter(|(name, _)| bucket(name));
        buckets.map(|(_, count)| count).sum()
    };
    assert_eq!(counted("read_latency_"), 2);
    assert_eq!(
        counted("write_latency_"),
        1,
        "what was refused is not counted"
    );
    assert_eq!(counted("flush_latency_"), 1);
    assert_eq!(counted("discard_latency_"), 0);
}

fn the_id_is_the_serial_padded_to_twenty(on: On) {
    let mut rig = on.with(|config| config.serial = Some("xen-1".into()));
    let id = rig.space(20);

    let answer = rig.request(blk::VIRTIO_BLK_T_GET_ID, 0, &[id]);

    assert_eq!(answer, (OK, 21));
    assert_eq!(rig.read_back(id), b"xen-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

fn discard_gives_up_its_extents_alone(on: On) {
    let mut rig = on.rig();
    let before = rig.blocks();
    let extents = [extent(8, 512, 0), extent(1024, 256, 0)];
    let data = rig.out(extents.as_bytes());

    let answer = rig.request(blk::VIRTIO_BLK_T_DISCARD, 0, &[data]);

    assert_eq!(answer, (OK, 1));
    assert!(before - rig.blocks() >= 512 + 256 - 16);
    let image = rig.image();
    assert_eq!(image.len(), SIZE);
    assert_eq!(image[..8 * 512], pattern(0, 8 * 512));
    assert!(image[8 * 512..520 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(image[520 * 512..1024 * 512], pattern(520, 504 * 512));
    assert_eq!(rig.stats().discarded_bytes, 768 * 512);
}

fn write_zeroes_keeps_its_space_unless_it_may_be_unmapped(on: On) {
    let mut rig = on.rig();
    let before = rig.blocks();
    let keep = rig.out(extent(16, 64, 0).as_bytes());
    let unmap = rig.out(extent(128, 64, UNMAP).as_bytes());

    let kept = rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[keep]);
    let after_keep = rig.blocks();
    let unmapped = rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[unmap]);
    let after_unmap = rig.blocks();

    assert_eq!((kept, unmapped), ((OK, 1), (OK, 1)));
    assert!(after_keep >= before);
    assert!(after_keep - after_unmap >= 64 - 16);
    let image = rig.image();
    assert_eq!(image.len(), SIZE);
    assert_eq!(image[..16 * 512], pattern(0, 16 * 512));
    assert!(image[16 * 512..80 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(image[80 * 512..128 * 512], pattern(80, 48 * 512));
    assert!(image[128 * 512..192 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(image[192 * 512..], pattern(192, SIZE - 192 * 512));
    assert_eq!(rig.stats().zeroed_bytes, 128 * 512);
}

fn write_zeroes_unmaps_nothing_where_discard_is_off(on: On) {
    let mut rig = on.with(|config| config.discard = false);
    let before = rig.blocks();
    let data = rig.out(extent(128, 64, UNMAP).as_bytes());

    let answer = rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[data]);

    assert_eq!(answer, (OK, 1));
    assert!(rig.blocks() >= before);
    assert!(rig.image()[128 * 512..192 * 512].iter().all(|b| *b == 0));
}

fn the_disk_keeps_its_image_over_a_reset(on: On) {
    let mut rig = on.rig();
    let data = rig.out(&[3; 512]);
    rig.request(blk::VIRTIO_BLK_T_OUT, 5, &[data]);
    rig.handler.settle(&mut rig.queue);

    rig.device.reset();
    rig.handler = rig.device.start_queue(0, rig.device.features()).unwrap();
    let stolen = BlkDevice::open(BlkConfig::new(rig.image.path()).validate().unwrap());
    let back = rig.space(512);
    let answer = rig.request(blk::VIRTIO_BLK_T_IN, 5, &[back]);

    assert!(stolen.is_err());
    assert_eq!(answer, (OK, 513));
    assert_eq!(rig.read_back(back), [3; 512]);
}

fn a_queue_that_the_disk_does_not_have_is_an_error(on: On) {
    let mut rig = on.rig();

    let error = rig.device.start_queue(1, 0).err().unwrap();

    assert_eq!(error.to_string(), "the disk has 1 queues, not a number 1");
}

fn a_read_only_disk_offers_nothing_that_writes(on: On) {
    let mut rig = on.with(|config| config.readonly = true);
    let data = rig.space(512);

    let read = rig.request(blk::VIRTIO_BLK_T_IN, 4, &[data]);
    let write = rig.request(blk::VIRTIO_BLK_T_OUT, 4, &[rig.out(&[1; 512])]);
    let discard = rig.out(extent(0, 8, 0).as_bytes());
    let discard = rig.request(blk::VIRTIO_BLK_T_DISCARD, 0, &[discard]);
    let zero = rig.out(extent(0, 8, 0).as_bytes());
    let zero = rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[zero]);
    let flush = rig.request(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);

    let has = |bit: u32| rig.device.features() & 1 << bit != 0;
    assert!(has(blk::VIRTIO_BLK_F_RO));
    assert!(!has(blk::VIRTIO_BLK_F_DISCARD) && !has(blk::VIRTIO_BLK_F_WRITE_ZEROES));
    assert_eq!((read, write), ((OK, 513), (IOERR, 1)));
    assert_eq!((discard, zero, flush), ((UNSUPP, 1), (UNSUPP, 1), (OK, 1)));
    assert_eq!(rig.image(), pattern(0, SIZE));
}
