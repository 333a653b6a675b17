use proptest::prelude::*;

use super::super::path::{self, PathError, check, check_watch, is_within, join, parent};
use super::super::{Access, Errno, NodeValue, Permission, XenbusState};
use crate::DomId;

#[test]
fn ordinary_paths_are_taken() {
    for good in [
        "/",
        "/a",
        "/local/domain/0/backend/virtio_disk/1/51712",
        "a",
        "a/b-c_D@9",
    ] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    assert_eq!(check_watch("@introduceDomain"), Ok(()));
}

#[test]
fn each_broken_rule_is_named() {
    let owned = str::to_owned;
    let empty = |path| Err(PathError::EmptyComponent { path: owned(path) });

    assert_eq!(check(""), Err(PathError::Empty));
    assert_eq!(check("//"), empty("//"));
    assert_eq!(check("/a//b"), empty("/a//b"));
    assert_eq!(check("/a/"), empty("/a/"));
    assert_eq!(
        check("/a b"),
        Err(PathError::Character {
            path: owned("/a b"),
            character: ' '
        })
    );
    assert_eq!(
        check("/a\0"),
        Err(PathError::Character {
            path: owned("/a\0"),
            character: '\0'
        })
    );
    assert_eq!(
        check("/ä"),
        Err(PathError::Character {
            path: owned("/ä"),
            character: 'ä'
        })
    );
    assert_eq!(
        check("@releaseDomain"),
        Err(PathError::Special {
            path: owned("@releaseDomain")
        })
    );
}

#[test]
fn length_limits_hold_to_the_byte() {
    let absolute = |len: usize| format!("/{}", "a".repeat(len - 1));
    let too_long = |path: String, max| {
        Err(PathError::TooLong {
            len: path.len(),
            path,
            max,
        })
    };

    assert_eq!(check(&absolute(3072)), Ok(()));
    assert_eq!(check(&absolute(3073)), too_long(absolute(3073), 3072));
    assert_eq!(check(&"a".repeat(2048)), Ok(()));
    assert_eq!(check(&"a".repeat(2049)), too_long("a".repeat(2049), 2048));
}

#[test]
fn paths_are_put_together_and_taken_apart() {
    assert_eq!(join("/a", "b/c"), "/a/b/c");
    assert_eq!(join("/", "a"), "/a");
    assert_eq!(join("/a", ""), "/a");
    assert_eq!(parent("/a/b"), Some("/a"));
    assert_eq!(parent("/a"), Some("/"));
    assert_eq!(parent("/"), None);
    assert_eq!(parent("a"), None);
    assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && is_within("/a", "/"));
    assert!(!is_within("/ab", "/a") && !is_within("/", "/a"));
}

#[test]
fn permissions_are_spelt_as_on_the_wire() {
    let spelt = [
        ("n0", Access::None),
        ("r5", Access::Read),
        ("w65535", Access::Write),
        ("b7", Access::Both),
    ];

    for (text, access) in spelt {
        let permission: Permission = text.parse().unwrap();
        assert_eq!(permission.access, access);
        assert_eq!(permission.to_string(), text);
    }
    for bad in ["", "n", "x1", "r65536", "r-1", "r+1", "r1 ", "1"] {
        assert!(bad.parse::<Permission>().is_err(), "{bad:?}");
    }
}

#[test]
fn errors_go_by_their_names_on_the_wire() {
    assert_eq!(Errno::from_name("ENOENT"), Errno::NotFound);
    assert_eq!(Errno::from_name("EQUOTA"), Errno::Quota);
    assert_eq!(
        Errno::from_name("EFANCY"),
        Errno::Other("EFANCY".to_owned())
    );
    assert_eq!(Errno::from_name("E2BIG").to_string(), "E2BIG");
    assert_eq!(Errno::from_raw(libc::EEXIST), Some(Errno::Exists));
}

#[test]
fn numbers_are_read_in_decimal_and_in_hexadecimal() {
    assert_eq!(u64::parse("33554432"), Some(0x200_0000));
    assert_eq!(u64::parse("0x2000200"), Some(0x200_0200));
    assert_eq!(u8::parse("255"), Some(255));
    assert_eq!(DomId::parse("12"), Some(DomId(12)));
    for bad in [
        "", "0x", "+1", "-1", " 1", "1 ", "1a", "0x0x1", "0xg", "256",
    ] {
        assert_eq!(u8::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn states_and_flags_are_read_exactly() {
    assert_eq!(XenbusState::parse("2"), Some(XenbusState::InitWait));
    assert_eq!(XenbusState::parse("9"), None);
    assert_eq!(
        (bool::parse("1"), bool::parse("0"), bool::parse("yes")),
        (Some(true), Some(false), None)
    );
    for number in 0..=8 {
        assert_eq!(
            XenbusState::from_number(number).map(XenbusState::number),
            Some(number)
        );
    }
}

proptest! {
    #[test]
    fn paths_of_good_components_are_taken(parts in prop::collection::vec("[A-Za-z0-9_@-]{1,20}", 1..20)) {
        let path = format!("/{}", parts.join("/"));

        prop_assert_eq!(check(&path), Ok(()));
        prop_assert_eq!(parent(&path).map(|above| join(above, &parts[parts.len() - 1])), Some(path));
    }

    #[test]
    fn no_string_that_is_taken_breaks_a_rule(text in "\\PC{0,40}|[/a@ ]{0,12}") {
        let taken = path::check_watch(&text).is_ok();

        let allowed = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
        let sound = !text.is_empty()
            && text.chars().all(allowed)
            && !text.contains("//")
            && (text == "/" || !text.ends_with('/'));
        prop_assert_eq!(taken, sound);
    }
}
