//! Clients of the host on their way in: each says which port of the guest it
//! wants, in one line, and is handed to the table then.
//!
//! `CONNECT <port>\n` is answered with `OK <port of the host>\n` when the guest
//! has accepted, and with the connection's end if not: the convention of
//! Firecracker and Cloud Hypervisor. Belongs to the receive queue's worker.

use std::io;
use std::time::{Duration, Instant};

use super::hub::Hub;
use crate::unix::{Halt, Stream};
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;

/// Clients that have not said what they want, at most; the others wait in the
/// kernel's queue.
const GUESTS_MAX: usize = 16;
/// How long a client may take to say it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line, bytes.
const LINE_MAX: usize = 32;
/// Names of clients begin here, for the poller.
pub(super) const FIRST_NAME: u64 = 1 << 62;
/// Name of the listener.
pub(super) const LISTENER: u64 = u64::MAX;

#[derive(Debug)]
struct Client {
    name: u64,
    stream: Stream,
    since: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Door {
    clients: Vec<Client>,
    next_name: u64,
    /// The listener is waited for.
    open: bool,
    /// The host could let nobody in; tried again at the next tick.
    resting: bool,
}

/// What a client's line says.
enum Line {
    /// The port that it wants.
    Port(u32),
    /// It is not complete.
    Partial,
    /// Nothing sensible, or the client is gone.
    Bad,
}

impl Door {
    /// Whether a client is waited for that has limited time.
    pub fn is_waiting(&self) -> bool {
        !self.clients.is_empty() || self.resting
    }

    /// Waits for clients as long as there is room for them.
    ///
    /// # Errors
    /// The host's.
    pub fn watch(&mut self, hub: &Hub, poller: &Poller, room: bool) -> io::Result<()> {
        let open = room && !self.resting && self.clients.len() < GUESTS_MAX;
        match (self.open, open) {
            (false, true) => poller.add(&hub.listener, LISTENER)?,
            (true, false) => poller.remove(&hub.listener),
            _ => {}
        }
        self.open = open;
        Ok(())
    }

    /// Lets clients in.
    pub fn accept(&mut self, hub: &Hub, poller: &Poller) {
        while self.clients.len() < GUESTS_MAX {
            let stream = match hub.listener.accept() {
                Ok(Some(client)) => Stream::new(client),
                Ok(None) => return,
                Err(error) => return self.failed(hub, &error),
            };
            let name = FIRST_NAME + self.next_name;
            self.next_name = (self.next_name + 1) % FIRST_NAME;
            if let Err(error) = poller.add_arrivals(&stream, name) {
                return self.failed(hub, &error);
            }
            self.clients.push(Client {
                name,
                stream,
                since: Instant::now(),
            });
            // it may have said everything already
            self.listen_to(hub, poller, name);
        }
    }

    fn failed(&mut self, hub: &Hub, error: &io::Error) {
        add(&hub.stats.counters.host_errors, 1);
        self.resting = true;
        if let Some(withheld) = hub.client_log.due() {
            let path = hub.spec.path.display();
            tracing::warn!(%path, %error, withheld, "a vsock client cannot be let in");
        }
    }

    /// A client has said something.
    pub fn listen_to(&mut self, hub: &Hub, poller: &Poller, name: u64) {
        let Some(at) = self.clients.iter().position(|client| client.name == name) else {
            return;
        };
        let Some(client) = self.clients.get(at) else {
            return;
        };
        let line = read_line(&client.stream);
        if matches!(line, Line::Partial) {
            return;
        }
        let Client { stream, .. } = self.clients.swap_remove(at);
        // the table's reader waits for it from here on, by another name
        poller.remove(&stream);
        match line {
            Line::Port(port) => {
                if hub.lock().request(port, stream, Instant::now()).is_none() {
                    add(&hub.stats.counters.refused, 1);
                }
            }
            Line::Bad | Line::Partial => {
                add(&hub.stats.counters.bad_clients, 1);
                tracing::debug!("a vsock client asked for nothing sensible");
            }
        }
    }

    /// A second or so has passed.
    pub fn tick(&mut self, hub: &Hub, now: Instant) {
        self.resting = false;
        let before = self.clients.len();
        self.clients
            .retain(|client| now.saturating_duration_since(client.since) < PATIENCE);
        let late = before - self.clients.len();
        add(&hub.stats.counters.bad_clients, late);
    }
}

/// Reads a line, and nothing behind it: that is for the guest.
fn read_line(stream: &Stream) -> Line {
    let mut bytes = [0; LINE_MAX];
    let count = match stream.peek(&mut bytes) {
        Ok(count) => count,
        Err(Halt::Wait) => return Line::Partial,
        Err(Halt::Gone | Halt::Failed(_)) => return Line::Bad,
    };
    let seen = bytes.get(..count).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return match count < LINE_MAX {
            true => Line::Partial,
            false => Line::Bad,
        };
    };
    let port = seen.get(..end).and_then(parse);
    let mut line = [0; LINE_MAX];
    let consumed = line
        .get_mut(..=end)
        .is_some_and(|line| matches!(stream.read(line), Ok(count) if count == end + 1));
    match (port, consumed) {
        (Some(port), true) => Line::Port(port),
        _ => Line::Bad,
    }
}

/// The port of `CONNECT <port>`.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let word = words.next()?;
    let port = words.next()?.parse().ok()?;
    (word.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_port_or_nothing() {
        let ports = ["CONNECT 52", "connect 4294967295\r", " Connect  0 "].map(str::as_bytes);
        let none = [
            "CONNECT",
            "CONNECT x",
            "CONNECT -1",
            "CONNECT 4294967296",
            "CONNECT 5 6",
            "GET 52",
            "",
            "\u{1F980} 5",
        ];

        assert_eq!(ports.map(parse), [Some(52), Some(u32::MAX), Some(0)]);
        for line in none {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }
}
