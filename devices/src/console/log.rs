//! A port's log: a file of limited size that gets all output besides, and a
//! number of full ones before it.
//!
//! The crates that rotate logs drop what is written while a file cannot be
//! opened, and panic where a rename fails; here no byte is lost to a rotation.
//! So the next file is made first, and only then are names moved: whatever
//! fails, there is a file that goes on, and it is tried again with the next
//! bytes. A disk that is full costs the log its bytes and the guest nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::config::LogSpec;
use super::endpoint::{EndpointError, append_to};
use super::stats::ConsoleStats;
use crate::virtio::counters::add;
use crate::virtio::log_limit::LogLimit;

/// See the module. Belongs to the worker of its port's transmit queue.
#[derive(Debug)]
pub(super) struct Log {
    spec: LogSpec,
    file: File,
    /// Bytes in it.
    len: u64,
    trouble: LogLimit,
}

impl Log {
    /// Opens the log behind what it has already, and makes it if need be, for
    /// its owner alone.
    ///
    /// # Errors
    /// [`EndpointError::Open`], [`EndpointError::Kind`], [`EndpointError::InUse`].
    pub fn open(spec: LogSpec) -> Result<Self, EndpointError> {
        let path = &spec.path;
        let refused = |source| EndpointError::Open {
            path: path.clone(),
            source,
        };
        let file = append_to(path).map_err(refused)?;
        let found = file.metadata().map_err(refused)?;
        if !found.is_file() {
            // a device cannot be kept under another name
            return Err(EndpointError::Kind { path: path.clone() });
        }
        if is_taken(&file) {
            return Err(EndpointError::InUse { path: path.clone() });
        }
        Ok(Log {
            len: found.len(),
            spec,
            file,
            trouble: LogLimit::default(),
        })
    }

    /// Writes all of `bytes`. What the host does not take is counted, and
    /// logged once in a while.
    pub fn write(&mut self, mut bytes: &[u8], stats: &ConsoleStats) {
        let mut full = false;
        while !bytes.is_empty() {
            let mut room = self.spec.size.saturating_sub(self.len);
            if full || room == 0 {
                room = match self.rotate() {
                    Ok(()) => {
                        add(&stats.log_rotations, 1);
                        self.spec.size
                    }
                    Err(error) => {
                        self.complain(&error, stats, "a console's log cannot be rotated");
                        // it grows beyond its limit, and loses nothing
                        u64::MAX
                    }
                };
            }
            let (piece, rest) = cut(bytes, room);
            match self.file.write(piece) {
                Ok(count) if count > 0 => {
                    add(&stats.logged_bytes, count);
                    self.len = self.len.saturating_add(count as u64);
                    full = count == piece.len() && !rest.is_empty();
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    let error = result.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    add(&stats.log_lost_bytes, bytes.len());
                    self.complain(&error, stats, "a console's log cannot be written");
                    return;
                }
            }
        }
    }

    fn complain(&mut self, error: &io::Error, stats: &ConsoleStats, what: &str) {
        add(&stats.host_errors, 1);
        if let Some(withheld) = self.trouble.due() {
            let path = self.spec.path.display();
            tracing::warn!(%path, %error, withheld, "{what}; the console goes on");
        }
    }

    /// Begins a new file, and keeps this one under the next name.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.spec.path;
        let next = beside(path, "new");
        // of a process that died over it
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = append_to(&next)?;
        if is_taken(&file) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.keep().and_then(|()| fs::rename(&next, path))?;
        self.file = file;
        self.len = 0;
        Ok(())
    }

    /// Moves each full file to the name behind it; the last one is replaced.
    fn keep(&self) -> io::Result<()> {
        let path = &self.spec.path;
        let name = |number: u32| match number {
            0 => path.clone(),
            number => beside(path, &number.to_string()),
        };
        for number in (0..self.spec.files).rev() {
            match fs::rename(name(number), name(number.saturating_add(1))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether somebody else has a log's file, who would rotate it, too; else it is
/// ours as long as it is open. A file system without locks has it nobody's.
fn is_taken(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
}

/// What of `bytes` goes into a file that has room for `room`, and what into the
/// next one: the cut is behind a line, if one ends there.
fn cut(bytes: &[u8], room: u64) -> (&[u8], &[u8]) {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let Some((fitting, _)) = bytes.split_at_checked(room) else {
        return (bytes, &[]);
    };
    let line = fitting.iter().rposition(|byte| *byte == b'\n');
    let end = line.map_or(room, |end| end.saturating_add(1));
    bytes.split_at_checked(end).unwrap_or((bytes, &[]))
}

/// `path` with `.suffix` behind it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4096;

    fn log(directory: &Path, files: u32) -> (Log, ConsoleStats) {
        let spec = LogSpec {
            path: directory.join("log"),
            size: SIZE,
            files,
        };
        (Log::open(spec).unwrap(), ConsoleStats::default())
    }

    /// Everything that is left, the oldest first.
    fn kept(directory: &Path) -> Vec<Vec<u8>> {
        let path = directory.join("log");
        let full = (1..100).rev().map(|n| beside(&path, &n.to_string()));
        full.chain([path.clone()])
            .filter_map(|path| fs::read(path).ok())
            .collect()
    }

    #[test]
    fn a_rotation_loses_no_byte_and_no_file_is_above_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, stats) = log(directory.path(), 99);
        let bytes: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();

        for piece in bytes.chunks(977) {
            log.write(piece, &stats);
        }

        let kept = kept(directory.path());
        assert!(kept.concat() == bytes, "bytes were lost or mixed");
        assert!(kept.iter().all(|file| file.len() as u64 <= SIZE));
        let stats = stats.snapshot();
        assert_eq!((stats.logged_bytes, stats.log_lost_bytes), (100_000, 0));
        assert_eq!(stats.log_rotations, kept.len() as u64 - 1);
    }

    #[test]
    fn only_so_many_full_files_are_kept_and_they_are_the_newest() {
        for files in [0, 1, 3] {
            let directory = tempfile::tempdir().unwrap();
            let (mut log, stats) = log(directory.path(), files);

            for number in 0..10u8 {
                log.write(&[number; SIZE as usize], &stats);
            }

            let kept: Vec<u8> = kept(directory.path()).iter().map(|file| file[0]).collect();
            let first = 9 - u8::try_from(files).unwrap();
            assert_eq!(kept, (first..=9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_file_ends_behind_a_line_where_one_fits() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, stats) = log(directory.path(), 9);
        let line = [&[b'x'; 99][..], b"\n"].concat();

        log.write(&line.repeat(100), &stats);

        let kept = kept(directory.path());
        assert_eq!(kept.concat(), line.repeat(100));
        assert_eq!(kept.len(), 3);
        assert!(kept.iter().all(|file| file.ends_with(b"\n")));
    }

    #[test]
    fn a_log_goes_on_behind_what_it_has() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("log"), [b'a'; 4000]).unwrap();
        let (mut log, stats) = log(directory.path(), 1);

        log.write(&[b'b'; 100], &stats);

        let lens: Vec<usize> = kept(directory.path()).iter().map(Vec::len).collect();
        assert_eq!(lens, [4096, 4]);
    }

    #[test]
    fn a_log_that_cannot_be_rotated_goes_on_beyond_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, stats) = log(directory.path(), 1);
        // a full one cannot be moved there
        fs::create_dir_all(directory.path().join("log.1/occupied")).unwrap();
        let bytes = vec![b'x'; 3 * SIZE as usize];

        log.write(&bytes, &stats);
        let beyond = fs::read(directory.path().join("log")).unwrap();
        fs::remove_dir_all(directory.path().join("log.1")).unwrap();
        log.write(b"next", &stats);

        assert!(beyond == bytes, "bytes were lost");
        assert_eq!(kept(directory.path()), [bytes, b"next".to_vec()]);
        let stats = stats.snapshot();
        assert_eq!((stats.host_errors, stats.log_rotations), (1, 1));
    }

    #[test]
    fn a_full_disk_costs_the_log_its_bytes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, stats) = log(directory.path(), 1);
        log.file = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();

        log.write(b"lost", &stats);
        log.file = append_to(&directory.path().join("log")).unwrap();
        log.write(b"kept", &stats);

        assert_eq!(kept(directory.path()), [b"kept"]);
        let stats = stats.snapshot();
        assert_eq!((stats.log_lost_bytes, stats.logged_bytes), (4, 4));
        assert_eq!(stats.host_errors, 1);
    }

    #[test]
    fn what_cannot_be_kept_under_another_name_is_refused() {
        let open = |path: &Path| {
            let spec = LogSpec {
                path: path.to_owned(),
                size: SIZE,
                files: 1,
            };
            Log::open(spec).unwrap_err()
        };
        let directory = tempfile::tempdir().unwrap();

        let device = open(Path::new("/dev/null"));
        let folder = open(directory.path());

        assert!(matches!(device, EndpointError::Kind { .. }), "{device}");
        assert!(matches!(folder, EndpointError::Open { .. }), "{folder}");
    }

    #[test]
    fn a_log_that_another_port_has_is_refused_until_that_lets_go_rotated_or_not() {
        let directory = tempfile::tempdir().unwrap();
        let (mut first, stats) = log(directory.path(), 1);
        let spec = first.spec.clone();

        let before = Log::open(spec.clone()).unwrap_err();
        first.write(&[b'a'; 2 * SIZE as usize], &stats);
        let rotated = Log::open(spec.clone()).unwrap_err();
        drop(first);

        for error in [before, rotated] {
            assert!(matches!(&error, EndpointError::InUse { path } if *path == spec.path));
        }
        assert_eq!(stats.snapshot().log_rotations, 1);
        assert!(Log::open(spec).is_ok());
    }
}
