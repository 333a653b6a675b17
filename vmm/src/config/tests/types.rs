//! Values of the wrong type: where they stand, and what is wanted there.

use super::*;

#[test]
fn a_port_that_cannot_be_names_its_own_line_and_key() {
    let ports = "[guest.a.virtio.0.console]\nname = \"first\"\n\
                 [[guest.a.virtio.0.console.port]]\nname = \"second\"\n\
                 [[guest.a.virtio.0.console.port]]\n";

    let texts = [
        "name = \"third\"\nbuffer = 1\n",
        "name = \"third\"\nlog = \"relative\"\n",
        "console = true\nname = \"second\"\n",
        "name = \"third\"\nbuffer = \"big\"\n",
        "name = \"third\"\nbufer = 4096\n",
        "\nconsole = true\n",
    ]
    .map(|last| refused(&format!("{ports}{last}")));

    let places = [
        "line 7, key guest.a.virtio.0.console.port.1.buffer: ",
        "line 7, key guest.a.virtio.0.console.port.1.log: ",
        "line 7, key guest.a.virtio.0.console.port.1.name: ",
        "line 7, key guest.a.virtio.0.console.port.1.buffer: ",
        "line 7, key guest.a.virtio.0.console.port.1.bufer: ",
        "line 5, key guest.a.virtio.0.console.port.1.name: ",
    ];
    for (text, place) in texts.iter().zip(places) {
        assert!(text.contains(place), "{place} in {text}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_told_with_its_place_and_what_is_wanted() {
    let words_of_the_parser = [
        "expected", "wanted", "invalid", "sequence", "element", "struct",
    ];

    for (text, told) in [
        (
            "log = 3",
            "line 1, key log: wants one of error, warn, info, debug, trace, in",
        ),
        (
            "events = {}",
            "line 1, key events: wants one of auto, plain, irqfd, ioeventfd, in",
        ),
        (
            "state-dir = 3",
            "line 1, key state-dir: wants a path in quotation marks, not 3",
        ),
        (
            "swiotlb = 3",
            "line 1, key swiotlb: wants a text in quotation marks, not 3",
        ),
        ("guest = []", "line 1, key guest: wants a table, not a list"),
        (
            "[guest]\na = 3",
            "line 2, key guest.a: wants a table, not 3",
        ),
        (
            "[guest.a.disk.xvda]\nqueue-size = 70000",
            "line 2, key guest.a.disk.xvda.queue-size: wants a number from 0 to 65535, not 70000",
        ),
        (
            "[guest.a.disk.\"*\"]\ndiscard = \"yes\"",
            "line 2, key guest.a.disk.\"*\".discard: wants true or false, not the text \"yes\"",
        ),
        (
            "[guest.a.disk.xvda]\n\nengine = [\"x\"]",
            "line 3, key guest.a.disk.xvda.engine: wants one of auto, sync, io-uring, threads, in",
        ),
        (
            "[guest.a.virtio.0.net]\nlink = true",
            "line 2, key guest.a.virtio.0.net.link: wants one of up, down, in quotation marks",
        ),
        (
            "[guest.a.virtio.0.console]\nport = 3",
            "line 2, key guest.a.virtio.0.console.port: wants a list in square brackets, not 3",
        ),
        (
            "[guest.a.virtio.0.console.port]\nname = \"x\"",
            "key guest.a.virtio.0.console.port: wants a list, not a table: each table",
        ),
    ] {
        let found = refused(text);

        assert!(found.contains(told), "{told} in {found}");
        let words = words_of_the_parser.iter();
        assert!(
            !words.into_iter().any(|word| found.contains(word)),
            "{found}"
        );
    }
}

#[test]
fn an_entry_that_is_not_a_kind_with_its_keys_is_told_how_it_is_written() {
    let told = "wants one table, [guest.\"w*\".virtio.device2.KIND] with the device's keys, and KIND \
                one of blk, rng, console";

    for keys in [
        "virtio]\ndevice2 = 3",
        "virtio]\ndevice2 = \"blk\"",
        "virtio.device2]",
        "virtio.device2]\npath = \"/a\"\nqueues = 3",
        "virtio.device2.blk]\n[guest.\"w*\".virtio.device2.rng]",
    ] {
        let text = refused(&format!("[guest.\"w*\".{keys}"));

        assert!(text.contains("key guest.\"w*\".virtio.device2"), "{text}");
        assert!(text.contains(told), "{text}");
    }
}
