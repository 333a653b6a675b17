use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::client::ask_within;
use super::server::CLIENTS;
use super::*;

/// Bound of every wait.
const LONG: Duration = Duration::from_secs(20);
/// A client's time where its end is waited for.
const SHORT: Duration = Duration::from_millis(200);

/// A status with `guests` guests, the daemon having been up for `uptime`.
fn status(guests: u16, uptime: u64) -> Status {
    let guest = |domid| GuestStatus {
        domid,
        name: format!("guest-{domid}-{}", "x".repeat(1000)),
        uuid: None,
        ioreq_server: 0,
        counters: Some(GuestCounters::default()),
        devices: Vec::new(),
    };
    Status {
        version: VERSION,
        daemon: DaemonStatus {
            xen_dm: "0".into(),
            pid: 1,
            uptime,
            domid: 0,
            guest: None,
            leaving: false,
            xenstore: true,
        },
        guests: (0..guests).map(guest).collect(),
        refused: Vec::new(),
        ending: Vec::new(),
    }
}

/// A control thread with a desk and nothing else: it answers with the number
/// of the question as its uptime.
struct Control {
    directory: TempDir,
    stop: Arc<AtomicBool>,
    questions: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    fn new(guests: u16, patience: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let desk = Desk::open_with(&path, patience).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let questions = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&questions));
        let thread = std::thread::spawn(move || {
            let epoll = Epoll::new().unwrap();
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll
                .ctl(ControlOperation::Add, desk.as_raw_fd(), event)
                .unwrap();
            while !stopped.load(Ordering::SeqCst) {
                epoll.wait(5, &mut [EpollEvent::default()]).unwrap();
                if desk.asked() {
                    let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    desk.answer(status(guests, number));
                }
            }
        });
        Control {
            directory,
            stop,
            questions,
            thread: Some(thread),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Says `line` and gives the answer.
    fn say(&self, line: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(line).unwrap();
        answer(stream)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Waits for the other side's end without reading.
fn until_hung_up(stream: &UnixStream) {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::HANG_UP, 0);
    let fd = stream.as_raw_fd();
    epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    let bound = i32::try_from(LONG.as_millis()).unwrap();
    let count = epoll.wait(bound, &mut [EpollEvent::default()]).unwrap();
    assert_eq!(count, 1, "still there after {LONG:?}");
}

fn answer(stream: UnixStream) -> Answer {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

const REQUEST: &[u8] = b"{\"version\":1,\"command\":\"status\"}\n";

#[test]
fn a_request_is_answered_with_the_status_and_the_end() {
    let control = Control::new(3, LONG);

    let asked = ask(&control.path()).unwrap();
    let mut stream = control.connect();
    stream.write_all(REQUEST).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();

    assert_eq!(asked, status(3, 1));
    assert_eq!(all.matches('\n').count(), 1);
    let json: serde_json::Value = serde_json::from_str(&all).unwrap();
    assert_eq!(json["status"]["daemon"]["uptime"], 2);
}

#[test]
fn the_socket_is_for_its_user_alone_and_goes_with_the_desk() {
    let control = Control::new(0, LONG);
    let path = control.path();
    let mode = fs::metadata(&path).unwrap().permissions().mode();

    control.stop.store(true, Ordering::SeqCst);
    let end = Instant::now() + LONG;
    while path.exists() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }

    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(ask(&path), Err(ClientError::NoDaemon { .. })));
}

#[test]
fn the_socket_of_a_dead_daemon_is_taken_over_and_that_of_a_living_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());

    let first = socket::listen_at(&path).unwrap();
    let second = socket::listen_at(&path).unwrap_err();

    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    assert!(path.exists());
}

#[test]
fn what_is_no_socket_stays_and_the_daemon_goes_on_without() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    fs::write(&path, "precious").unwrap();

    let desk = Desk::open(&path).unwrap();

    assert!(!desk.asked());
    drop(desk);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn garbage_is_refused_with_its_reason() {
    let control = Control::new(0, LONG);

    for garbage in [
        &b"\n"[..],
        b"status\n",
        b"{\"version\":1}\n",
        b"{\"version\":1,\"command\":\"stop\"}\n",
        b"{\"version\":\"x\",\"command\":\"status\"}\n",
        b"\xff\xfe\x00\n",
        b"[[[[[[[[[[\n",
    ] {
        let answer = control.say(garbage);

        let why = answer.error.unwrap();
        assert!(why.contains("malformed request"), "{why}");
        assert_eq!(answer.status, None);
    }
    assert_eq!(control.questions.load(Ordering::SeqCst), 0);
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    let control = Control::new(0, LONG);

    let answer = control.say(b"{\"version\":7,\"command\":\"status\"}\n");

    let why = answer.error.unwrap();
    assert!(why.contains("version 7") && why.contains(", 1 is"), "{why}");
}

#[test]
fn a_request_without_end_is_refused_at_its_limit() {
    let control = Control::new(0, LONG);

    let answer = control.say(&vec![b' '; REQUEST_MAX]);

    assert!(answer.error.unwrap().contains("at most 4096 bytes"));
}

#[test]
fn a_request_in_pieces_is_one() {
    let control = Control::new(0, LONG);
    let mut stream = control.connect();

    for byte in REQUEST {
        stream.write_all(&[*byte]).unwrap();
    }

    assert!(answer(stream).status.is_some());
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let control = Control::new(0, LONG);
    let silent: Vec<UnixStream> = (0..3 * CLIENTS).map(|_| control.connect()).collect();

    let asked = ask(&control.path());

    assert_eq!(asked.unwrap(), status(0, 1));
    // the first of them had to make room
    let mut first = silent.first().unwrap();
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_says_nothing_is_let_go_after_its_time() {
    let control = Control::new(0, SHORT);
    let mut silent = control.connect();

    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
}

#[test]
fn clients_that_never_read_hold_nobody_up_and_are_let_go() {
    // far more than a socket holds
    let control = Control::new(500, SHORT * 15);
    let mut deaf: Vec<UnixStream> = (0..CLIENTS).map(|_| control.connect()).collect();
    for stream in &mut deaf {
        stream.write_all(REQUEST).unwrap();
    }

    let asked = ask(&control.path()).unwrap();

    assert_eq!(asked.guests.len(), 500);
    until_hung_up(deaf.last().unwrap());
    let mut rest = Vec::new();
    // cut off, or reset
    let _ = deaf.last().unwrap().read_to_end(&mut rest);
    assert!(!rest.ends_with(b"\n"), "{} bytes", rest.len());
}

#[test]
fn clients_that_hang_up_at_any_time_are_forgotten() {
    let control = Control::new(50, LONG);
    for said in 0..=REQUEST.len() {
        let mut stream = control.connect();
        stream.write_all(REQUEST.get(..said).unwrap()).unwrap();
        drop(stream);
    }

    assert!(ask(&control.path()).is_ok());
}

#[test]
fn many_clients_at_once_are_answered() {
    let control = Control::new(20, LONG);
    let path = control.path();

    let threads: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || ask(&path).map(|status| status.guests.len()))
        })
        .collect();

    for thread in threads {
        assert_eq!(thread.join().unwrap().unwrap(), 20);
    }
}

/// A desk whose control thread is the test.
fn desk(patience: Duration) -> (TempDir, PathBuf, Desk) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let desk = Desk::open_with(&path, patience).unwrap();
    (directory, path, desk)
}

fn until_asked(desk: &Desk) {
    let end = Instant::now() + LONG;
    while !desk.asked() {
        assert!(Instant::now() < end, "nobody asked");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn request(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(REQUEST).unwrap();
    stream
}

#[test]
fn a_control_thread_that_is_busy_is_told_of() {
    let (_directory, path, desk) = desk(SHORT);

    let refused = answer(request(&path));

    assert!(refused.error.unwrap().contains("busy"));
    // its late answer goes to nobody, and the next one is asked for
    until_asked(&desk);
    desk.answer(status(0, 1));
}

#[test]
fn who_asks_while_a_status_is_gathered_gets_a_later_one() {
    let (_directory, path, desk) = desk(LONG);

    let first = request(&path);
    until_asked(&desk);
    // the thread takes them in their order
    let second = request(&path);
    let refused = {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"\n").unwrap();
        answer(stream)
    };
    desk.answer(status(0, 1));
    until_asked(&desk);
    desk.answer(status(0, 2));

    assert!(refused.error.is_some());
    assert_eq!(answer(first).status.unwrap().daemon.uptime, 1);
    assert_eq!(answer(second).status.unwrap().daemon.uptime, 2);
}

/// Something at a socket that is no daemon.
fn impostor(says: &'static [u8]) -> (TempDir, PathBuf, JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        stream.write_all(says).unwrap();
    });
    (directory, path, thread)
}

#[test]
fn an_answer_that_makes_no_sense_is_told_so() {
    let (_directory, path, thread) = impostor(b"{\"version\":");

    let error = ask(&path).unwrap_err();

    thread.join().unwrap();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

#[test]
fn a_daemon_of_another_version_is_told_so() {
    let (_directory, path, thread) = impostor(b"{\"version\":9}\n");

    let error = ask(&path).unwrap_err();

    thread.join().unwrap();
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();

    let error = ask_within(&path, SHORT).unwrap_err();

    assert!(matches!(error, ClientError::Silent { .. }), "{error}");
}

#[test]
fn no_daemon_says_how_to_start_one() {
    let error = ask(Path::new("/nonexistent/s")).unwrap_err();

    assert!(error.to_string().contains("systemctl start xen-dm"));
}
