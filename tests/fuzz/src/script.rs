//! What happens, as bytes: a head, and records of the same length. Each byte
//! decides one thing and 0 is the usual, so that most changes of an input
//! change one step of it, and a story that ends early goes on as it should.

/// Bytes of a record, and of the head.
const RECORD: usize = 4;

/// One step: what, and the numbers that it takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    pub what: u8,
    pub a: u8,
    pub b: u8,
    pub c: u8,
}

impl Record {
    fn of(bytes: &[u8]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        Record {
            what: byte(0),
            a: byte(1),
            b: byte(2),
            c: byte(3),
        }
    }

    /// `a` and `b` as one number.
    pub fn word(&self) -> u16 {
        u16::from_le_bytes([self.a, self.b])
    }
}

/// The rest of a story.
pub struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    pub fn new(bytes: &[u8]) -> Self {
        Script {
            bytes: bytes.to_vec(),
            at: 0,
        }
    }
}

impl Iterator for Script {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        self.at += RECORD;
        Some(Record::of(rest))
    }
}
