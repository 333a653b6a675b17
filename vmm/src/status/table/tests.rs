use super::*;
use crate::status::{
    DeviceState, GrantedData, GuestCounters, Place, QueueStatus, Refused, VERSION,
};

/// A daemon that has been up for 3725 seconds and serves one guest.
fn one_guest() -> Status {
    Status {
        version: VERSION,
        daemon: DaemonStatus {
            xen_dm: "0".into(),
            pid: 1,
            uptime: 3725,
            domid: 0,
            guest: None,
            leaving: false,
            xenstore: true,
        },
        guests: vec![GuestStatus {
            domid: 1,
            name: "web".into(),
            uuid: None,
            ioreq_server: 0,
            counters: None,
            devices: Vec::new(),
        }],
        refused: Vec::new(),
        ending: Vec::new(),
    }
}

#[test]
fn the_table_shows_what_counts_and_fits_a_terminal() {
    let mut all = one_guest();
    let guest = all.guests.first_mut().unwrap();
    guest.name = "web\u{1b}[31m".into();
    guest.counters = Some(GuestCounters {
        ioreqs: 71,
        deferred: 2,
        ..GuestCounters::default()
    });
    guest.devices.push(DeviceStatus {
        device: "virtio_disk/51712".into(),
        kind: Some("blk".into()),
        name: Some("xvda".into()),
        image: Some("/var/lib/xen/images/a-rather-long-name-of-an-image.img".into()),
        format: Some("qcow2".into()),
        places: vec![Place {
            name: Some("agent".into()),
            path: "/run/agent.sock".into(),
            statistics: [("output_chains".into(), 7)].into(),
        }],
        state: DeviceState::NeedsReset,
        device_type: 2,
        base: 0x0200_0000,
        irq: 33,
        features: "0x130000256".into(),
        interrupts_by: InterruptsBy::Irqfd,
        kicks_by: KicksBy::Register,
        addresses: Addresses::Grants,
        mapping: "Translated".into(),
        mapping_source: "somebody said so ".repeat(8),
        driver_starts: 1,
        failures: 1,
        kicks: 41,
        interrupts: 40,
        interrupts_lost: 0,
        malformed: 3,
        requests: 42,
        unfinished: 1,
        waiting: 0,
        dma: Dma {
            granted: 64,
            ..Dma::default()
        },
        swiotlb: "4096".into(),
        granted_data: GrantedData {
            mode: "adaptive".into(),
            copies_up_to: Some(4096),
            reason: "learned: at 4096 bytes a copy takes 1.2 µs and a mapping 7.9".into(),
            sizes: Vec::new(),
        },
        queues: vec![QueueStatus::default()],
        statistics: [
            ("reads", 40),
            ("read_bytes", 163_840),
            ("read_latency_us", 4000),
            ("read_latency_above_us", 1),
            ("read_latency_below_128_us", 9),
            ("read_latency_below_64_us", 30),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    });
    all.refused.push(Refused {
        domid: 4,
        device: "virtio/0".into(),
        reason: "word ".repeat(40),
    });
    let mut out = Vec::new();

    print(&all, &mut out).unwrap();

    let text = String::from_utf8(out).unwrap();
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    for word in [
        "up 1 h 2 min",
        "71 accesses, 2 deferred answers",
        "needs reset",
        "irqfd",
        "64 granted",
        "a-rather-long-name-of-an-image.img (qcow2)",
        "granted data: copied up to 4096 bytes, else mapped (adaptive; learned: at 4096 bytes",
        "Translated: somebody said so",
        "found at /run/agent.sock agent",
        "    did: 7 output chains",
        "163840 read bytes, 40 reads\n",
        "read latency: 100 us on average; 30 below 64, 9 below 128, 1 above us",
        "1 broken, 3 malformed accesses",
        "domain 4, virtio/0: word",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
}
