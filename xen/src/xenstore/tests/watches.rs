use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::{Error, Tree};
use super::{SHORT, client, connected, eventually, watch_event};
use crate::DomId;

/// Whether a descriptor is readable now.
fn readable(fd: RawFd) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll
        .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
        .unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn watch_fires_once_at_once() {
    let (_daemon, store) = connected(0);

    let watch = store.watch("/not/there").unwrap();

    let event = watch_event(&store);
    assert_eq!(
        (event.path.as_str(), event.token),
        ("/not/there", watch.token())
    );
    assert_eq!(store.wait_event(SHORT), None);
}

#[test]
fn descriptor_is_readable_exactly_while_there_are_events() {
    let (daemon, store) = connected(0);
    let fd = store.watch_fd();
    assert!(!readable(fd));

    let _watch = store.watch("/a").unwrap();
    eventually("the first event", || readable(fd));
    watch_event(&store);
    assert!(!readable(fd));

    daemon.write("/a", "1").unwrap();
    daemon.write("/a/b", "1").unwrap();
    eventually("an event", || readable(fd));
    assert_eq!(watch_event(&store).path, "/a");
    eventually("the event of the child", || readable(fd));
    assert_eq!(watch_event(&store).path, "/a/b");
    assert!(!readable(fd));
    assert_eq!(store.next_event(), None);
}

#[test]
fn changes_of_a_node_and_below_it_are_told_and_no_others() {
    let (daemon, store) = connected(0);
    daemon.write("/a/b", "").unwrap();
    let watch = store.watch("/a/b").unwrap();
    watch_event(&store);

    daemon.write("/a", "above").unwrap();
    daemon.write("/a/bc", "beside").unwrap();
    daemon.write("/a/b/c", "below").unwrap();
    daemon.rm("/a/b/c").unwrap();
    daemon
        .set_permissions("/a/b", &daemon.permissions("/a/b").unwrap())
        .unwrap();

    let told: Vec<_> = (0..2)
        .map(|_| watch_event(&store))
        .map(|event| event.path)
        .collect();
    // The removal may have been told together with the creation.
    let last = told.last().unwrap();
    assert_eq!(told[0], "/a/b/c");
    let end = if last == "/a/b/c" {
        watch_event(&store).path
    } else {
        last.clone()
    };
    assert_eq!(end, "/a/b");
    assert_eq!(store.wait_event(SHORT), None);
    drop(watch);
}

#[test]
fn removal_of_a_parent_is_told_with_the_watched_path() {
    let (daemon, store) = connected(0);
    daemon.write("/a/b/c", "").unwrap();
    let _watch = store.watch("/a/b/c").unwrap();
    watch_event(&store);

    daemon.rm("/a").unwrap();

    assert_eq!(watch_event(&store).path, "/a/b/c");
    assert_eq!(store.wait_event(SHORT), None);
}

#[test]
fn removal_is_told_once_to_a_watch_above() {
    let (daemon, store) = connected(0);
    daemon.write("/top/a/b/c", "").unwrap();
    let _watch = store.watch("/top").unwrap();
    watch_event(&store);

    daemon.rm("/top/a").unwrap();

    assert_eq!(watch_event(&store).path, "/top/a");
    assert_eq!(store.wait_event(SHORT), None);
}

#[test]
fn domains_coming_and_going_fire_the_special_watches() {
    let (daemon, store) = connected(0);
    let introduce = store.watch("@introduceDomain").unwrap();
    let release = store.watch("@releaseDomain").unwrap();
    watch_event(&store);
    watch_event(&store);

    daemon.introduce(DomId(5));
    let first = watch_event(&store);
    daemon.release(DomId(5));
    let second = watch_event(&store);

    assert_eq!(
        (first.path.as_str(), first.token),
        ("@introduceDomain", introduce.token())
    );
    assert_eq!(
        (second.path.as_str(), second.token),
        ("@releaseDomain", release.token())
    );
}

#[test]
fn transaction_is_told_on_commit_only() {
    let (_daemon, store) = connected(0);
    store.mkdir("/a").unwrap();
    let _watch = store.watch("/a").unwrap();
    watch_event(&store);

    let outcome: Result<(), Error> = store.transaction(|tx| {
        tx.write("/a/1", "")?;
        tx.write("/a/2", "")?;
        tx.write("/a/1", "again")?;
        assert_eq!(store.wait_event(SHORT), None);
        Ok(())
    });

    outcome.unwrap();
    assert_eq!(watch_event(&store).path, "/a/1");
    assert_eq!(watch_event(&store).path, "/a/2");
    assert_eq!(store.wait_event(SHORT), None);
}

#[test]
fn relative_watch_of_a_guest_tells_relative_paths() {
    let (daemon, guest) = connected(4);
    let own = "/local/domain/4/data";
    daemon.mkdir(own).unwrap();
    let owner = super::super::Permission::new(DomId(4), super::super::Access::None);
    daemon.set_permissions(own, &[owner]).unwrap();
    let _watch = guest.watch("data").unwrap();
    assert_eq!(watch_event(&guest).path, "data");

    guest.write("data/x", "1").unwrap();

    assert_eq!(watch_event(&guest).path, "data/x");
    assert_eq!(daemon.read("/local/domain/4/data/x").as_deref(), Some("1"));
}

#[test]
fn dropped_watch_is_removed_and_tells_nothing_more() {
    let (daemon, store) = connected(0);
    let kept = store.watch("/a").unwrap();
    let dropped = store.watch("/a").unwrap();
    watch_event(&store);
    watch_event(&store);
    assert_eq!(daemon.watches(), 2);

    daemon.write("/a", "both").unwrap();
    drop(dropped);
    eventually("the watch is gone from the daemon", || {
        daemon.watches() == 1
    });
    daemon.write("/a/b", "one").unwrap();

    let tokens: Vec<_> = std::iter::from_fn(|| store.wait_event(SHORT)).collect();
    assert!(!tokens.is_empty());
    for event in tokens {
        let super::Event::Watch(event) = event else {
            panic!("{event:?}")
        };
        assert_eq!(event.token, kept.token());
    }
}

#[test]
fn unwatch_waits_for_the_daemon() {
    let (daemon, store) = connected(0);
    let watch = store.watch("/a").unwrap();

    watch.unwatch().unwrap();

    assert_eq!(daemon.watches(), 0);
    assert_eq!(store.next_event(), None);
}

#[test]
fn equal_events_that_wait_are_told_once() {
    let (daemon, store) = connected(0);
    let _watch = store.watch("/a").unwrap();
    for n in 0..100 {
        daemon.write("/a", n.to_string()).unwrap();
    }
    // The events are sent before this reply.
    store.read("/a").unwrap();

    watch_event(&store);

    assert_eq!(store.next_event(), None);
}

#[test]
fn two_connections_are_told_each() {
    let (daemon, one) = connected(0);
    let two = client(&daemon, 0);
    let _watches = (one.watch("/a").unwrap(), two.watch("/a").unwrap());
    watch_event(&one);
    watch_event(&two);

    one.write("/a", "x").unwrap();

    assert_eq!(
        (watch_event(&one).path, watch_event(&two).path),
        ("/a".into(), "/a".into())
    );
}

#[test]
fn connection_ends_with_its_last_handle() {
    let (daemon, store) = connected(0);
    let watch = store.watch("/a").unwrap();
    let clone = store.clone();
    drop(store);
    assert!(clone.exists("/tool").unwrap());

    drop(clone);

    eventually("the connection is closed", || daemon.connections() == 0);
    // A watch that outlives it does no harm.
    drop(watch);
}
