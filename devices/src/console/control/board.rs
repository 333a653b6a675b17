//! What the driver is to be told of the ports.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::message::{Message, event, size};
use crate::console::size::Size;
use crate::console::waiter::Bell;

/// What there is to say of a port, in the order that it is said in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Add,
    Console,
    Size,
    Name,
}

/// A port as the driver shall know it.
#[derive(Debug, Default)]
struct Entry {
    name: Option<String>,
    console: bool,
    /// A console's, if it is told any.
    size: Option<Size>,
    /// Somebody of the host is there.
    connected: bool,
    /// Somebody was there meanwhile and has gone.
    left: bool,
    due: BTreeSet<Topic>,
    /// The driver has set it up.
    ready: bool,
    /// The driver was told that somebody is there.
    told_connected: bool,
}

impl Entry {
    /// As a driver finds it that has said nothing yet.
    fn forget(&mut self) {
        self.due.clear();
        self.ready = false;
        self.left = false;
        self.told_connected = false;
    }

    /// The next message, if there is one, and what is then said.
    fn next(&self, port: u32) -> Option<(Vec<u8>, Option<Topic>)> {
        let plain = |event, value| Message::new(port, event, value);
        if let Some(topic) = self.due.first() {
            let message = match topic {
                Topic::Add => plain(event::PORT_ADD, 1).with(&[]),
                Topic::Console => plain(event::CONSOLE_PORT, 1).with(&[]),
                Topic::Size => plain(event::RESIZE, 1).with(&self.size.map_or([0; 4], size)),
                // without a zero at its end: the buffer's length tells it
                Topic::Name => {
                    let name = self.name.as_deref().unwrap_or_default();
                    plain(event::PORT_NAME, 1).with(name.as_bytes())
                }
            };
            return Some((message, Some(*topic)));
        }
        let gone = self.told_connected && (self.left || !self.connected);
        if !self.ready || !gone && self.told_connected == self.connected {
            return None;
        }
        Some((plain(event::PORT_OPEN, u16::from(!gone)).with(&[]), None))
    }

    fn said(&mut self, topic: Option<Topic>) {
        match topic {
            Some(topic) => {
                self.due.remove(&topic);
            }
            None => {
                self.told_connected = !self.told_connected;
                self.left = false;
            }
        }
    }
}

/// What comes next for the driver.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Next {
    /// Nothing.
    Nothing,
    /// A message that does not fit.
    TooLong,
    /// A message.
    Message(Vec<u8>),
}

/// See the module above. Written to by the workers of all queues and by the
/// threads of sockets; read by the worker of the control receiveq.
#[derive(Debug)]
pub(in super::super) struct Board {
    entries: Mutex<Vec<Entry>>,
    /// For the worker of the control receiveq.
    pub bell: Bell,
}

impl Board {
    /// One that knows no ports.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> std::io::Result<Self> {
        Ok(Board {
            entries: Mutex::default(),
            bell: Bell::new()?,
        })
    }

    /// Adds the next port.
    pub fn add(self: &Arc<Self>, name: Option<String>, console: bool, size: Option<Size>) -> Place {
        let mut entries = self.lock();
        entries.push(Entry {
            name,
            console,
            size,
            ..Entry::default()
        });
        Place {
            board: Arc::clone(self),
            port: entries.len().saturating_sub(1),
        }
    }

    /// The driver is up, and is told of all ports.
    pub fn device_ready(&self) {
        for entry in &mut *self.lock() {
            entry.forget();
            entry.due.insert(Topic::Add);
        }
        self.bell.ring();
    }

    /// The driver has set a port up, and is told what it is; false if there is
    /// none.
    pub fn port_ready(&self, port: usize) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(port) else {
            return false;
        };
        entry.ready = true;
        let topics = [
            (Topic::Console, entry.console),
            (Topic::Size, entry.size.is_some()),
            (Topic::Name, entry.name.is_some()),
        ];
        let due = topics.into_iter().filter(|(_, due)| *due);
        entry.due.extend(due.map(|(topic, _)| topic));
        self.bell.ring();
        true
    }

    /// The device was reset.
    pub fn reset(&self) {
        self.lock().iter_mut().for_each(Entry::forget);
    }

    /// Takes the next message, if it has at most `room` bytes.
    pub fn next(&self, room: usize) -> Next {
        for (port, entry) in (0..).zip(&mut *self.lock()) {
            match entry.next(port) {
                Some((message, topic)) if message.len() <= room => {
                    entry.said(topic);
                    return Next::Message(message);
                }
                Some(_) => return Next::TooLong,
                None => {}
            }
        }
        Next::Nothing
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port's place on the board.
#[derive(Clone, Debug)]
pub(in super::super) struct Place {
    board: Arc<Board>,
    port: usize,
}

impl Place {
    /// Somebody of the host is there now, or nobody is.
    pub fn connected(&self, is_there: bool) {
        self.change(|entry| {
            entry.left |= entry.connected && !is_there;
            entry.connected = is_there;
        });
    }

    /// A console's window has another size.
    pub fn resized(&self, size: Size) {
        self.change(|entry| {
            entry.size = Some(size);
            if entry.ready && entry.console {
                entry.due.insert(Topic::Size);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.board.lock().get_mut(self.port) {
            change(entry);
        }
        self.board.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 100;

    fn board() -> (Arc<Board>, Place, Place) {
        let board = Arc::new(Board::new().unwrap());
        let size = Some(Size { cols: 80, rows: 24 });
        let console = board.add(None, true, size);
        let agent = board.add(Some("agent".into()), false, None);
        (board, console, agent)
    }

    /// Port, event and value of all messages, and what follows them.
    fn messages(board: &Board) -> Vec<(u8, u8, u8, Vec<u8>)> {
        let mut messages = Vec::new();
        while let Next::Message(bytes) = board.next(ROOM) {
            messages.push((bytes[0], bytes[4], bytes[6], bytes[8..].to_vec()));
        }
        messages
    }

    fn plain(port: u8, event: u8, value: u8) -> (u8, u8, u8, Vec<u8>) {
        (port, event, value, Vec::new())
    }

    #[test]
    fn a_driver_is_told_of_ports_when_it_is_up_and_what_they_are_when_it_has_them() {
        let (board, console, _) = board();
        console.connected(true);
        let before = messages(&board);

        board.device_ready();
        let added = messages(&board);
        let known = (
            board.port_ready(0),
            board.port_ready(1),
            board.port_ready(2),
        );
        let told = messages(&board);

        assert_eq!(before, []);
        assert_eq!(added, [plain(0, 1, 1), plain(1, 1, 1)]);
        assert_eq!(known, (true, true, false));
        assert_eq!(
            told,
            [
                plain(0, 4, 1),
                (0, 5, 1, vec![80, 0, 24, 0]),
                plain(0, 6, 1),
                (1, 7, 1, b"agent".to_vec()),
            ]
        );
    }

    #[test]
    fn who_has_come_again_meanwhile_has_gone_before() {
        let (board, _, agent) = board();
        board.device_ready();
        board.port_ready(1);
        agent.connected(true);
        let first = messages(&board);

        for _ in 0..1000 {
            agent.connected(false);
            agent.connected(true);
        }
        let again = messages(&board);
        agent.connected(false);
        agent.connected(true);
        agent.connected(false);
        let gone = messages(&board);

        assert_eq!(first.last(), Some(&plain(1, 6, 1)));
        assert_eq!(again, [plain(1, 6, 0), plain(1, 6, 1)]);
        assert_eq!(gone, [plain(1, 6, 0)]);
    }

    #[test]
    fn a_flood_of_questions_has_one_answer() {
        let (board, ..) = board();

        for _ in 0..1000 {
            board.device_ready();
            board.port_ready(1);
        }

        let told = messages(&board);
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn a_message_waits_for_room_and_the_next_driver_starts_anew() {
        let (board, ..) = board();
        board.device_ready();
        messages(&board);
        board.port_ready(1);

        let short = (board.next(12), board.next(0));
        let long = board.next(13);
        board.port_ready(1);
        board.reset();

        assert_eq!(short, (Next::TooLong, Next::TooLong));
        assert!(matches!(long, Next::Message(bytes) if bytes.ends_with(b"agent")));
        assert_eq!(board.next(ROOM), Next::Nothing);
    }
}
