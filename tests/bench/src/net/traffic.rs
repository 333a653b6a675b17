//! What goes from one namespace to the other.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde::Serialize;

use super::spaces::{Spaces, Way};

/// Bytes of a small datagram.
const SMALL: usize = 64;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// UDP, as many as arrive: packets per second.
    Packets,
    /// One TCP connection: bytes per second.
    Bytes,
    /// UDP there and back, one at a time: round trips per second.
    RoundTrips,
}

impl Traffic {
    pub const ALL: [Traffic; 3] = [Traffic::Packets, Traffic::Bytes, Traffic::RoundTrips];

    pub fn name(self) -> &'static str {
        match self {
            Traffic::Packets => "UDP, 64 bytes, packets/s",
            Traffic::Bytes => "TCP, one connection, MiB/s",
            Traffic::RoundTrips => "UDP, there and back, 1/s",
        }
    }
}

/// Lets traffic go for `length`; how much arrived per second.
///
/// # Errors
/// Nothing arrives.
pub fn measure(
    spaces: &Arc<Spaces>,
    way: Way,
    traffic: Traffic,
    length: Duration,
) -> anyhow::Result<f64> {
    let (tell, told) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let receiver = {
        let (spaces, stop) = (Arc::clone(spaces), Arc::clone(&stop));
        thread::spawn(move || {
            spaces.enter(1)?;
            receive(way, traffic, &tell, &stop)
        })
    };
    let sender = {
        let (spaces, stop) = (Arc::clone(spaces), Arc::clone(&stop));
        thread::spawn(move || {
            spaces.enter(0)?;
            // the other end may have failed instead
            let port = told.recv().context("nobody receives")?;
            send(way, traffic, port, length, &stop)
        })
    };
    let done = |thread: thread::JoinHandle<anyhow::Result<f64>>| {
        let result = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        stop.store(true, Ordering::Relaxed);
        result
    };
    let sent = done(sender);
    let received = done(receiver)?;
    let rate = match traffic {
        Traffic::RoundTrips => sent?,
        Traffic::Packets | Traffic::Bytes => sent.map(|_| received)?,
    };
    ensure!(rate > 0.0, "nothing arrived");
    Ok(rate)
}

fn receive(
    way: Way,
    traffic: Traffic,
    tell: &std::sync::mpsc::Sender<u16>,
    stop: &AtomicBool,
) -> anyhow::Result<f64> {
    let address = (way.address(1), 0);
    if traffic == Traffic::Bytes {
        let listener = TcpListener::bind(address)?;
        tell.send(listener.local_addr()?.port())?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; 1 << 18];
        let (start, mut bytes) = (Instant::now(), 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => bytes += count,
            }
        }
        return Ok(bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64());
    }
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    tell.send(socket.local_addr()?.port())?;
    let mut buffer = [0; SMALL];
    let (mut first, mut last, mut count) = (None, Instant::now(), 0u64);
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) if traffic == Traffic::RoundTrips => {
                socket.send_to(&buffer, from)?;
            }
            Ok(_) => {
                last = Instant::now();
                first.get_or_insert(last);
                count += 1;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let took = first.map_or(Duration::ZERO, |first| last - first);
    Ok(if count > 1 {
        count as f64 / took.as_secs_f64()
    } else {
        0.0
    })
}

fn send(
    way: Way,
    traffic: Traffic,
    port: u16,
    length: Duration,
    stop: &AtomicBool,
) -> anyhow::Result<f64> {
    let to = (way.address(1), port);
    let start = Instant::now();
    let goes_on = || start.elapsed() < length && !stop.load(Ordering::Relaxed);
    if traffic == Traffic::Bytes {
        let mut stream = TcpStream::connect(to)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let buffer = vec![0x5a; 1 << 16];
        while goes_on() {
            stream.write_all(&buffer)?;
        }
        return Ok(0.0);
    }
    let socket = UdpSocket::bind((way.address(0), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (mut buffer, mut count) = ([0x5a; SMALL], 0u64);
    while goes_on() {
        socket.send(&buffer)?;
        if traffic == Traffic::RoundTrips && socket.recv(&mut buffer).is_ok() {
            count += 1;
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
