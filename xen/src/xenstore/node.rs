//! Reading and writing the keys of one directory, with errors that name the
//! full path, the value and what was expected.
//!
//! Used by discovery on the control-plane thread; works in and outside of
//! transactions.

use std::fmt;

use super::error::Error;
use super::path;
use super::tree::Tree;
use crate::DomId;

/// A type that a node's text can be read as.
pub trait NodeValue: Sized {
    /// What the text should be, for errors.
    const EXPECTED: &'static str;

    /// Reads the text; nothing if it is not [`NodeValue::EXPECTED`].
    fn parse(text: &str) -> Option<Self>;
}

macro_rules! unsigned {
    ($($type:ty, $expected:literal;)*) => {$(
        /// Decimal, or hexadecimal after `0x`: libxl writes either.
        impl NodeValue for $type {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                let (digits, radix) = match text.strip_prefix("0x") {
                    Some(digits) => (digits, 16),
                    None => (text, 10),
                };
                // `from_str_radix` takes a sign.
                let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                plain.then(|| <$type>::from_str_radix(digits, radix).ok()).flatten()
            }
        }
    )*};
}

unsigned! {
    u8, "an unsigned 8-bit number";
    u16, "an unsigned 16-bit number";
    u32, "an unsigned 32-bit number";
    u64, "an unsigned 64-bit number";
}

impl NodeValue for bool {
    const EXPECTED: &'static str = "0 or 1";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }
}

impl NodeValue for String {
    const EXPECTED: &'static str = "UTF-8 text";

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl NodeValue for DomId {
    const EXPECTED: &'static str = "a domain id";

    fn parse(text: &str) -> Option<Self> {
        u16::parse(text).map(DomId)
    }
}

/// A directory of xenstore, from [`Tree::at`].
#[derive(Clone)]
pub struct Node<'a> {
    tree: &'a dyn Tree,
    path: String,
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl<'a> Node<'a> {
    pub(super) fn new(tree: &'a dyn Tree, path: String) -> Self {
        Self { tree, path }
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory `key` under this one.
    #[must_use]
    pub fn child(&self, key: &str) -> Node<'a> {
        Node {
            tree: self.tree,
            path: path::join(&self.path, key),
        }
    }

    /// Reads `key`; the empty key is the directory's own value.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Value`] name the full path and what
    /// was expected; else as [`Tree::read`].
    pub fn read<T: NodeValue>(&self, key: &str) -> Result<T, Error> {
        self.read_optional(key)?.ok_or_else(|| Error::Missing {
            path: path::join(&self.path, key),
            expected: T::EXPECTED,
        })
    }

    /// Reads `key` if it is there.
    ///
    /// # Errors
    /// As [`Node::read`], without [`Error::Missing`].
    pub fn read_optional<T: NodeValue>(&self, key: &str) -> Result<Option<T>, Error> {
        let path = path::join(&self.path, key);
        let bytes = match self.tree.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        match std::str::from_utf8(&bytes).ok().and_then(T::parse) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::Value {
                path,
                value: String::from_utf8_lossy(&bytes).into_owned(),
                expected: T::EXPECTED,
            }),
        }
    }

    /// Writes the text of `value` to `key`.
    ///
    /// # Errors
    /// As [`Tree::write`].
    pub fn write(&self, key: &str, value: impl fmt::Display) -> Result<(), Error> {
        self.tree
            .write_bytes(&path::join(&self.path, key), value.to_string().as_bytes())
    }

    /// Removes `key` and everything under it; it need not be there.
    ///
    /// # Errors
    /// As [`Tree::rm`].
    pub fn rm(&self, key: &str) -> Result<(), Error> {
        self.tree.rm(&path::join(&self.path, key))
    }

    /// Whether `key` is there.
    ///
    /// # Errors
    /// As [`Tree::exists`].
    pub fn exists(&self, key: &str) -> Result<bool, Error> {
        self.tree.exists(&path::join(&self.path, key))
    }

    /// The names under this directory.
    ///
    /// # Errors
    /// As [`Tree::directory`].
    pub fn keys(&self) -> Result<Vec<String>, Error> {
        self.tree.directory(&self.path)
    }
}
