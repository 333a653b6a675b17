//! The record of what a back end has in flight, which its front end keeps for
//! the next one. QEMU `docs/interop/vhost-user.rst`, "Inflight I/O tracking"

use std::os::fd::OwnedFd;

/// A file that a back end has made, and how it is told of. Only back ends look
/// into it.
#[derive(Debug)]
pub(in super::super) struct Record {
    pub file: OwnedFd,
    /// Bytes.
    pub size: u64,
    /// Where in the file it begins.
    pub offset: u64,
    pub queues: u16,
    pub queue_size: u16,
}

impl Record {
    /// As messages have it: 24 bytes, the last four of which say nothing.
    pub(in super::super) fn body(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
        let mut body = [size, offset].map(u64::to_ne_bytes).concat();
        body.extend(
            [queues, queue_size, 0, 0]
                .into_iter()
                .flat_map(u16::to_ne_bytes),
        );
        body
    }

    /// From an answer and its file.
    pub(in super::super) fn of(body: &[u8], file: OwnedFd) -> Option<Self> {
        let (longs, rest) = body.split_at_checked(16)?;
        let (shorts, _) = rest.as_chunks::<2>();
        match (longs.as_chunks::<8>().0, shorts) {
            ([size, offset], [queues, queue_size, ..]) => Some(Record {
                file,
                size: u64::from_ne_bytes(*size),
                offset: u64::from_ne_bytes(*offset),
                queues: u16::from_ne_bytes(*queues),
                queue_size: u16::from_ne_bytes(*queue_size),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_record_is_told_as_it_was_answered() {
        let body = [
            0x40, 0x02, 0, 0, 0, 0, 0, 0, // size
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // offset
            3, 0, 0x80, 0, 0, 0, 0, 0, // queues, their size
        ];

        let record = Record::of(&body, File::open("/dev/null").unwrap().into()).unwrap();
        let told = Record::body(record.size, record.offset, record.queues, record.queue_size);

        assert_eq!((record.size, record.offset), (0x240, 0x1000));
        assert_eq!((record.queues, record.queue_size), (3, 128));
        assert_eq!(told, body);
    }

    #[test]
    fn an_answer_that_is_too_short_is_none() {
        let file = || File::open("/dev/null").unwrap().into();

        assert!(Record::of(&[0; 19], file()).is_none());
        assert!(Record::of(&[], file()).is_none());
    }
}
