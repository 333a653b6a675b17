//! Frames and commands of a network card, and what comes over its socket.
//! virtio 1.3 §5.1.6

use arbitrary::Arbitrary;
use devices::net::{NetConfig, NetDevice};

use crate::driver::{Driver, Piece};
use crate::host::{Act, Clients, directory};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// What happens to a card.
#[derive(Arbitrary, Debug)]
pub struct Story {
    features: u64,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Frame {
        header: Header,
        frame: Vec<u8>,
        more: Vec<Piece>,
    },
    Buffers(Vec<Piece>),
    Command {
        class: u8,
        number: u8,
        data: Vec<u8>,
        more: Vec<Piece>,
        answer: bool,
    },
    Addresses {
        unicast: Vec<[u8; 6]>,
        more: i8,
        multicast: Vec<[u8; 6]>,
    },
    Chain(u8, Vec<Piece>),
    Configure(u16, Vec<u8>),
    Host(Act),
    /// A frame as the socket's protocol has it, its length wrong by some.
    HostFrame(u8, Vec<u8>, i8),
    Advance,
    Reset(u64),
}

/// virtio 1.3 §5.1.6, `struct virtio_net_hdr`
#[derive(Arbitrary, Debug)]
struct Header {
    flags: u8,
    gso_type: u8,
    lens: [u16; 4],
    buffers: u16,
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let lens = self.lens.iter().flat_map(|len| len.to_le_bytes());
        let buffers = self.buffers.to_le_bytes();
        let fields = [self.flags, self.gso_type].into_iter().chain(lens);
        fields.chain(buffers).collect()
    }
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(story: Story) {
    let directory = directory();
    let path = directory.path().join("card");
    let config = NetConfig {
        listen: true,
        mac: Some("52:54:00:12:34:56".into()),
        mtu: Some(1500),
        ..NetConfig::socket(&path)
    };
    let device = NetDevice::open(config.validate().expect("a card")).expect("a socket");
    let mut driver = Driver::new(Box::new(device), story.features);
    let mut clients = Clients::default();
    for step in story.steps {
        match step {
            Step::Frame {
                header,
                frame,
                more,
            } => {
                let head = [Piece::Bytes(header.bytes()), Piece::Bytes(frame)];
                driver.offer(TRANSMIT, &[&head[..], &more].concat());
            }
            Step::Buffers(pieces) => driver.offer(RECEIVE, &pieces),
            Step::Command {
                class,
                number,
                data,
                more,
                answer,
            } => {
                let command = [&[class % 8, number % 8][..], &data].concat();
                driver.offer(CONTROL, &with_answer(command, more, answer));
            }
            Step::Addresses {
                unicast,
                more,
                multicast,
            } => {
                let mut command = vec![1, 0];
                for table in [unicast, multicast] {
                    let count = (table.len() as u32).wrapping_add_signed(more.into());
                    command.extend(count.to_le_bytes());
                    command.extend(table.concat());
                }
                driver.offer(CONTROL, &with_answer(command, Vec::new(), true));
            }
            Step::Chain(queue, pieces) => driver.offer(usize::from(queue % 3), &pieces),
            Step::Configure(offset, bytes) => driver.configure(offset, &bytes),
            Step::Host(act) => clients.act(&path, act),
            Step::HostFrame(who, frame, wrong) => {
                let len = (frame.len() as u32).wrapping_add_signed(wrong.into());
                let bytes = [&len.to_be_bytes()[..], &frame].concat();
                clients.act(&path, Act::Say(who, bytes));
            }
            Step::Advance => driver.advance(),
            Step::Reset(features) => driver.reset(features),
        }
    }
    driver.advance();
    driver.finish();
}

fn with_answer(command: Vec<u8>, more: Vec<Piece>, answer: bool) -> Vec<Piece> {
    let mut pieces = vec![Piece::Bytes(command)];
    pieces.extend(more);
    pieces.extend(answer.then_some(Piece::Room(1)));
    pieces
}
