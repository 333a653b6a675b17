//! Names with `*` for any text and `?` for any character.

use std::collections::BTreeMap;

/// The pattern, with its value, that matches `text` and has the most characters
/// that are no wildcard; the first of equals in the order of the keys.
pub(super) fn best<'a, T>(map: &'a BTreeMap<String, T>, text: &str) -> Option<(&'a String, &'a T)> {
    let patterns = map.iter().filter(|(key, _)| matches(key, text));
    patterns
        .rev()
        .max_by_key(|(key, _)| key.chars().filter(|c| !is_wildcard(*c)).count())
}

/// Whether a name is a pattern.
pub(super) fn is_pattern(name: &str) -> bool {
    name.contains(is_wildcard)
}

fn is_wildcard(c: char) -> bool {
    matches!(c, '*' | '?')
}

/// Whether `pattern` has a wildcard and matches all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let chars: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    is_pattern(pattern) && glob(&chars, &text)
}

/// Matches without recursion: on a mismatch the last `*` takes one character
/// more.
fn glob(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0_usize, 0_usize);
    let mut last_star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                last_star = Some((p, t));
                p = p.saturating_add(1);
            }
            Some(wanted) if *wanted == '?' || wanted == c => {
                p = p.saturating_add(1);
                t = t.saturating_add(1);
            }
            _ => match last_star {
                Some((star, taken)) => {
                    let taken = taken.saturating_add(1);
                    last_star = Some((star, taken));
                    p = star.saturating_add(1);
                    t = taken;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .unwrap_or_default()
        .iter()
        .all(|c| *c == '*')
}
