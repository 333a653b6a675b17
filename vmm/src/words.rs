//! What a parser complains about, in words of the configuration: its own are
//! those of the program's types.

/// The same complaint of serde's for whoever writes a configuration. What is
/// not known stays as it is.
#[must_use]
pub(crate) fn in_words(message: &str) -> String {
    let message = message.trim();
    let known = wrong_type(message)
        .or_else(|| no_such(message))
        .or_else(|| about_key(message));
    // an unknown key comes with the long list of known ones
    known.unwrap_or_else(|| message.replace('\n', " "))
}

/// The words that a message lists behind the one that is none of them.
#[must_use]
pub(crate) fn listed(message: &str) -> Option<String> {
    let (_, list) = message.trim().split_once(", expected ")?;
    let list = list.strip_prefix("one of ").unwrap_or(list);
    Some(list.replace('`', "").replace(" or ", ", "))
}

/// `invalid type: string "big", expected u16`
fn wrong_type(message: &str) -> Option<String> {
    let rest = ["invalid type: ", "invalid value: "];
    let rest = rest.iter().find_map(|start| message.strip_prefix(start))?;
    // what was found may be a text with these words in it
    let (found, wanted) = rest.rsplit_once(", expected ")?;
    if (found, wanted) == ("map", "a sequence") {
        let brackets = "each table of a list stands below double brackets, [[...]]";
        return Some(format!("wants a list, not a table: {brackets}"));
    }
    Some(format!(
        "wants {}, not {}",
        wanted_type(wanted),
        found_value(found)
    ))
}

fn wanted_type(wanted: &str) -> String {
    let most = |bits: u32| match 1_u64.checked_shl(bits) {
        Some(beyond) => format!("a number from 0 to {}", beyond.saturating_sub(1)),
        None => "a number from 0 on".to_owned(),
    };
    let words = match wanted {
        "a boolean" => "true or false",
        "a string" => "a text in quotation marks",
        "path string" => "a path in quotation marks",
        "a sequence" => "a list in square brackets",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => match other.strip_prefix('u').and_then(|bits| bits.parse().ok()) {
            Some(bits) => return most(bits),
            None => other,
        },
    };
    words.to_owned()
}

fn found_value(found: &str) -> String {
    let words = match found {
        "map" => "a table",
        "sequence" => "a list",
        other => match other.strip_prefix("string ") {
            Some(text) => return format!("the text {text}"),
            None => other,
        },
    };
    // a number or a truth value stands between two of these
    words.split('`').nth(1).unwrap_or(words).to_owned()
}

/// `unknown variant `x`, expected one of `a`, `b``, and the same of a field
fn no_such(message: &str) -> Option<String> {
    let word = |start| message.strip_prefix(start)?.split('`').next();
    let list = listed(message);
    if let Some(word) = word("unknown field `") {
        return Some(match list {
            Some(list) => format!("there is no key {word} here; there are {list}"),
            None => format!("there is no key {word} here, nor any other"),
        });
    }
    let word = word("unknown variant `")?;
    Some(format!("{word:?} is none of {}", list?))
}

/// `missing field `path``
fn about_key(message: &str) -> Option<String> {
    let of = |start| message.strip_prefix(start)?.strip_suffix('`');
    match (of("missing field `"), of("duplicate field `")) {
        (Some(key), _) => Some(format!("the key {key} is missing")),
        (_, Some(key)) => Some(format!("the key {key} is there twice")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parser_says_is_told_in_words_of_the_configuration() {
        for (message, words) in [
            (
                "invalid type: string \"big\", expected u16",
                "wants a number from 0 to 65535, not the text \"big\"",
            ),
            (
                "invalid value: integer `-1`, expected u64",
                "wants a number from 0 on, not -1",
            ),
            (
                "invalid type: boolean `true`, expected path string",
                "wants a path in quotation marks, not true",
            ),
            (
                "invalid type: string \"x, expected y\", expected a boolean",
                "wants true or false, not the text \"x, expected y\"",
            ),
            (
                "invalid type: map, expected a sequence",
                "wants a list, not a table: each table of a list stands below double brackets, [[...]]",
            ),
            (
                "invalid type: sequence, expected struct PortConfig",
                "wants a table, not a list",
            ),
            (
                "unknown variant `x`, expected `up` or `down`",
                "\"x\" is none of up, down",
            ),
            (
                "unknown field `a`, expected one of `b`, `c`",
                "there is no key a here; there are b, c",
            ),
            ("missing field `path`", "the key path is missing"),
            ("duplicate field `path`", "the key path is there twice"),
            ("something\nelse", "something else"),
        ] {
            assert_eq!(in_words(message), words);
        }
    }
}
