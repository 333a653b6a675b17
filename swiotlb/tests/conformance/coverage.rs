//! `TESTS.md` against the specification's numbers and against the tests there
//! are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The numbers of the specification's vectors.
const VECTORS: [u32; 56] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 23, 25, 27, 28, 29, 30, 31,
    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 57, 58,
    60, 61, 62, 63, 69, 70,
];

/// Numbers that its text cites and its list of vectors leaves out.
const CITED: [u32; 8] = [12, 24, 26, 43, 44, 56, 64, 66];

/// Its last invariant.
const INVARIANTS: u32 = 35;

/// A number as the table writes it.
type Number = String;

/// Every number that has to be in the table.
fn numbers() -> BTreeSet<Number> {
    let vectors = VECTORS.iter().chain(&CITED).map(|n| format!("V-{n:02}"));
    let invariants = (1..=INVARIANTS).map(|n| format!("INV-{n:02}"));
    vectors.chain(invariants).collect()
}

/// The numbers at the start of a test's name: `v18_…`, `v01_to_v07_…`,
/// `v34_inv16_…`.
fn numbers_of(name: &str) -> BTreeSet<Number> {
    let number = |word: &str| {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let kind = &word[..word.len() - digits.len()];
        let known = matches!(kind, "v" | "inv") && digits.len() == 2;
        Some((kind.to_uppercase(), digits.parse().ok().filter(|_| known)?))
    };
    let mut found = BTreeSet::new();
    let mut first = None::<(String, u32)>;
    let mut is_range = false;
    for word in name.split('_') {
        match number(word) {
            Some((kind, last)) => {
                let from = first.filter(|_| is_range).map_or(last, |(_, n)| n);
                found.extend((from..=last).map(|n| format!("{kind}-{n:02}")));
                (first, is_range) = (Some((kind, last)), false);
            }
            None if word == "to" && first.is_some() => is_range = true,
            None => break,
        }
    }
    found
}

/// The tests of a file: functions behind `#[test]`.
fn tests_of(text: &str) -> impl Iterator<Item = &str> {
    let mut armed = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        armed |= line == "#[test]";
        let name = line.strip_prefix("fn ").filter(|_| armed)?;
        armed = false;
        name.split(['(', '<']).next()
    })
}

/// Every test below a folder of the crate, as the table writes it.
fn tests_below(folder: &Path, prefix: &str, out: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let place = format!("{prefix}{stem}");
        if path.is_dir() {
            tests_below(&path, &format!("{place}/"), out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            out.extend(tests_of(&text).map(|name| format!("{place}::{name}")));
        }
    }
}

/// Every test and every fuzz target there is.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    tests_below(&root.join("tests"), "", &mut tests);
    tests_below(&root.join("src"), "src/", &mut tests);
    let targets = fs::read_dir(root.join("../tests/fuzz/targets")).unwrap();
    let targets = targets.map(|target| target.unwrap().path());
    let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    tests.extend(targets.map(|path| format!("fuzz/{}", stem(&path))));
    tests
}

/// The table's rows: number → tests.
fn rows(table: &str) -> BTreeMap<Number, BTreeSet<String>> {
    let cells = |line: &str| {
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        let [_, number, _, tests, _] = cells.try_into().ok()?;
        let tests = tests.split(", ").map(|test| test.trim_matches('`').into());
        let is_number = number.starts_with("V-") || number.starts_with("INV-");
        is_number.then(|| (number, tests.collect()))
    };
    // the last table is not one of numbers
    let numbered = table.split("\n## Where").next().unwrap_or_default();
    numbered.lines().filter_map(cells).collect()
}

/// What is wrong with a table.
fn faults(table: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let rows = rows(table);
    let mut faults = Vec::new();
    let known: BTreeSet<Number> = rows.keys().cloned().collect();
    for number in numbers().symmetric_difference(&known) {
        faults.push(format!("{number} is missing or unknown"));
    }
    for (number, named) in &rows {
        for test in named.difference(tests) {
            faults.push(format!("{number}: there is no test {test:?}"));
        }
        let carries = |test: &str| {
            let name = test.split_once("::").map_or("", |(_, name)| name);
            numbers_of(name).contains(number)
        };
        let strangers = named.iter().filter(|test| !test.starts_with("fuzz/"));
        for test in strangers.filter(|test| !carries(test)) {
            faults.push(format!("{number}: {test} does not carry it"));
        }
        for test in tests.iter().filter(|test| carries(test)) {
            if !named.contains(test) {
                faults.push(format!("{number}: {test} is not in the table"));
            }
        }
    }
    let carried = tests.iter().filter_map(|test| test.split_once("::"));
    for (_, name) in carried {
        for number in numbers_of(name).difference(&known) {
            faults.push(format!(
                "{name} carries {number}, which is not in the table"
            ));
        }
    }
    faults
}

const TABLE: &str = include_str!("../../TESTS.md");

#[test]
fn every_number_has_its_tests_and_every_test_its_number() {
    assert_eq!(faults(TABLE, &tests()), [""; 0]);
}

#[test]
fn every_test_that_the_last_table_names_exists() {
    let last = TABLE.split_once("\n## Where").unwrap().1;
    let named: BTreeSet<String> = last
        .split('`')
        .filter(|word| word.contains("::"))
        .map(ToOwned::to_owned)
        .collect();
    assert_eq!(named.len(), 2);
    assert_eq!(named.difference(&tests()).count(), 0, "{named:?}");
}

/// The sources are read as the compiler reads them: these are this program's
/// own tests.
#[test]
fn what_is_read_from_sources_is_what_runs() {
    let listed = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("--list")
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    let listed: BTreeSet<String> = listed.map(|name| format!("conformance/{name}")).collect();
    let read = tests();
    let read = read.iter().filter(|test| test.starts_with("conformance/"));
    assert_eq!(listed, read.cloned().collect());
}

#[test]
fn a_table_that_lacks_something_is_refused() {
    let tests = tests();
    let without = |part: &str| {
        assert!(TABLE.contains(part), "{part}");
        faults(&TABLE.replacen(part, "", 1), &tests)
    };
    let row = TABLE
        .lines()
        .find(|line| line.starts_with("| INV-27"))
        .unwrap();
    let lost = without(row);
    assert_eq!(lost[0], "INV-27 is missing or unknown");
    let test = "`conformance/leaks::v40_the_rest_of_a_slot_is_zero`";
    let lost = without(&format!(", {test}"));
    assert_eq!(lost.len(), 1);
    assert!(lost[0].ends_with("v40_the_rest_of_a_slot_is_zero is not in the table"));
}

#[test]
fn a_table_that_names_something_else_is_refused() {
    let tests = tests();
    let with = |from: &str, to: &str| faults(&TABLE.replacen(from, to, 1), &tests);
    let gone = with("fuzz/swiotlb_setup", "fuzz/swiotlb_gone");
    assert_eq!(gone, ["INV-31: there is no test \"fuzz/swiotlb_gone\""]);
    let moved = with("| V-60 |", "| V-99 |");
    assert!(moved.contains(&"V-60 is missing or unknown".to_owned()));
    assert!(moved.contains(&"V-99 is missing or unknown".to_owned()));
}

#[test]
fn names_carry_numbers_at_their_start() {
    let of = |name: &str| numbers_of(name).into_iter().collect::<Vec<_>>();
    assert_eq!(of("v01_to_v03_all"), ["V-01", "V-02", "V-03"]);
    assert_eq!(of("v34_inv16_fits"), ["INV-16", "V-34"]);
    assert_eq!(of("words_before_v34"), [""; 0]);
    assert_eq!(of("v3_inv100_are_none"), [""; 0]);
}
