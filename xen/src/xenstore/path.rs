//! Which strings xenstore takes as a path.
//!
//! Every request of [`super::Xenstore`] checks its path here before anything
//! is sent: a path the daemon would answer with a bare `EINVAL` is refused
//! with the reason instead. Pure functions, any thread.

/// Longest absolute path, in bytes (`XENSTORE_ABS_PATH_MAX`,
/// `xen/include/public/io/xs_wire.h`).
pub const ABSOLUTE_MAX: usize = 3072;
/// Longest relative path, in bytes (`XENSTORE_REL_PATH_MAX`,
/// `xen/include/public/io/xs_wire.h`).
pub const RELATIVE_MAX: usize = 2048;

/// Why a string is no xenstore path.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The empty string names no node.
    #[error("xenstore path is empty")]
    Empty,
    /// Longer than the protocol allows.
    #[error("xenstore path of {len} bytes is longer than the {max} allowed: {path:.64}...")]
    TooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        len: usize,
        /// The limit that holds for it.
        max: usize,
    },
    /// A character outside `[A-Za-z0-9-/_@]`.
    #[error("xenstore path {path:?} has {character:?}, allowed are A-Z a-z 0-9 - / _ @")]
    Character {
        /// The path.
        path: String,
        /// The first character refused.
        character: char,
    },
    /// Two slashes in a row, or one at the end.
    #[error("xenstore path {path:?} has an empty component")]
    EmptyComponent {
        /// The path.
        path: String,
    },
    /// `@` at the start names a special watch, not a node.
    #[error("xenstore path {path:?} names a special watch, not a node")]
    Special {
        /// The path.
        path: String,
    },
}

/// Checks the path of a node, absolute or relative.
///
/// # Errors
/// [`PathError`] names the rule that is broken (`docs/misc/xenstore.txt`).
pub fn check(path: &str) -> Result<(), PathError> {
    if path.starts_with('@') {
        return Err(PathError::Special {
            path: path.to_owned(),
        });
    }
    check_watch(path)
}

/// Checks the path of a watch: a node's, or a special one such as
/// `@introduceDomain`.
///
/// # Errors
/// [`PathError`] names the rule that is broken (`docs/misc/xenstore.txt`).
pub fn check_watch(path: &str) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    let max = if path.starts_with('/') {
        ABSOLUTE_MAX
    } else {
        RELATIVE_MAX
    };
    if path.len() > max {
        return Err(PathError::TooLong {
            path: path.to_owned(),
            len: path.len(),
            max,
        });
    }
    if let Some(character) = path.chars().find(|&c| !is_allowed(c)) {
        return Err(PathError::Character {
            path: path.to_owned(),
            character,
        });
    }
    if path.contains("//") || (path.len() > 1 && path.ends_with('/')) {
        return Err(PathError::EmptyComponent {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Whether a character may stand in a path.
fn is_allowed(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '/' | '_' | '@')
}

/// The path of `key` under `base`; an empty `key` is `base` itself.
#[must_use]
pub fn join(base: &str, key: &str) -> String {
    match (base, key) {
        (_, "") => base.to_owned(),
        ("/", _) => format!("/{key}"),
        _ => format!("{base}/{key}"),
    }
}

/// The path of the node above: `/` for a top-level node, nothing for `/`
/// and for a relative path of one component.
#[must_use]
pub fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/') {
        None | Some(("", "")) => None,
        Some(("", _)) => Some("/"),
        Some((above, _)) => Some(above),
    }
}

/// Whether `path` is `above` or lies under it.
#[must_use]
pub fn is_within(path: &str, above: &str) -> bool {
    if above == "/" {
        return path.starts_with('/');
    }
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
