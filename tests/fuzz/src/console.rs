//! Control messages and bytes of a console of several ports. virtio 1.3 §5.3.6

use arbitrary::Arbitrary;
use devices::console::{ConsoleConfig, ConsoleDevice, PortConfig};

use crate::driver::{Driver, Piece};
use crate::host::{Act, Clients, directory};

const TELL: usize = 2;
const HEAR: usize = 3;
/// Queues of three ports and for control.
const QUEUES: u8 = 8;

/// What happens to a console.
#[derive(Arbitrary, Debug)]
pub struct Story {
    drop: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Message {
        port: u8,
        beyond: Option<u32>,
        event: u8,
        value: u8,
        /// Where it is cut in two, or ends.
        cut: u8,
        whole: bool,
    },
    /// What a driver says that comes up.
    Ready,
    Buffers(Vec<Piece>),
    Chain(u8, Vec<Piece>),
    Configure(u16, Vec<u8>),
    Resize(u8, u16, u16),
    Host(bool, Act),
    Advance,
    Reset(u64),
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(story: Story) {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let agent = PortConfig {
        buffer: 4096,
        when_full: story.drop.then_some(devices::console::WhenFull::Drop),
        log: Some(path("log")),
        log_size: Some(4096),
        log_files: Some(1),
        ..PortConfig::socket("agent", path("agent"))
    };
    let second = PortConfig {
        console: true,
        cols: Some(80),
        rows: Some(25),
        ..PortConfig::socket("second", path("second"))
    };
    let config = ConsoleConfig {
        port: vec![agent, second],
        cols: Some(80),
        rows: Some(25),
        ..ConsoleConfig::socket(path("console"))
    };
    let device = ConsoleDevice::open(config.validate().expect("ports")).expect("sockets");
    let handles = device.handles().to_vec();
    let mut driver = Driver::new(Box::new(device), u64::MAX);
    let mut clients = [Clients::default(), Clients::default()];
    for step in story.steps {
        match step {
            Step::Message {
                port,
                beyond,
                event,
                value,
                cut,
                whole,
            } => {
                let port = beyond.unwrap_or(u32::from(port % 4));
                let mut message = message(port, event % 10, value);
                let rest = message.split_off(usize::from(cut % 9));
                let rest = Some(rest).filter(|_| whole);
                let pieces = [Some(message), rest].into_iter().flatten();
                let pieces = pieces.filter(|piece| !piece.is_empty());
                driver.offer(HEAR, &pieces.map(Piece::Bytes).collect::<Vec<_>>());
            }
            Step::Ready => {
                driver.offer(HEAR, &[Piece::Bytes(message(0, 0, 1))]);
                for port in 0..3 {
                    driver.offer(HEAR, &[Piece::Bytes(message(port, 3, 1))]);
                    driver.offer(HEAR, &[Piece::Bytes(message(port, 6, 1))]);
                }
            }
            Step::Buffers(pieces) => driver.offer(TELL, &pieces),
            Step::Chain(queue, pieces) => driver.offer(usize::from(queue % QUEUES), &pieces),
            Step::Configure(offset, bytes) => driver.configure(offset, &bytes),
            Step::Resize(port, cols, rows) => {
                if let Some(handle) = handles.get(usize::from(port)) {
                    handle.resize(cols, rows);
                }
            }
            Step::Host(which, act) => {
                let which = usize::from(which);
                clients[which].act(handles[which].path(), act);
            }
            Step::Advance => driver.advance(),
            Step::Reset(features) => driver.reset(features),
        }
    }
    driver.advance();
    driver.finish();
}

fn message(port: u32, event: u8, value: u8) -> Vec<u8> {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend([event, 0, value, 0]);
    bytes
}
