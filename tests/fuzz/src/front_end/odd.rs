//! Answers that are other than they should be.

use devices::virtio::features::VERSION_1;
use vhost::vhost_user::message::FrontendReq;

use super::back_end::{HEAD, REPLY, Told};

/// The longest body that is taken, bytes.
const BODY_MAX: u32 = 4096;
/// Files with a message that are taken.
const FILES_MAX: u8 = 8;

/// A message with anything in it.
#[derive(Clone, Debug, Default)]
pub struct Spoken {
    pub code: u32,
    pub flags: u32,
    /// What it says its size is, if that is not so.
    pub size: Option<u32>,
    pub body: Vec<u8>,
    pub files: u8,
}

/// What is other about an answer, and how much.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odd {
    what: What,
    much: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum What {
    #[default]
    Nothing,
    Code,
    Flags,
    Shorter,
    Longer,
    Files,
    /// Its head says that it is longer than any may be.
    Huge,
    /// It ends before its size does.
    Cut,
    /// Another number.
    Number,
    Bit,
    All,
    /// A configuration space from elsewhere, of another size, or more of it.
    ConfigAt,
    ConfigSize,
    ConfigMore,
    ConfigLess,
    ConfigByte,
    Silence,
    Before,
    Twice,
    Empty,
    Ends,
}

const WHATS: [What; 21] = [
    What::Nothing,
    What::Code,
    What::Flags,
    What::Shorter,
    What::Longer,
    What::Files,
    What::Huge,
    What::Cut,
    What::Number,
    What::Bit,
    What::All,
    What::ConfigAt,
    What::ConfigSize,
    What::ConfigMore,
    What::ConfigLess,
    What::ConfigByte,
    What::Silence,
    What::Before,
    What::Twice,
    What::Empty,
    What::Ends,
];

impl Odd {
    pub fn new(what: u8, much: u8) -> Self {
        let what = WHATS[usize::from(what) % WHATS.len()];
        Odd { what, much }
    }

    /// Whether the connection ends with it.
    pub fn ends(&self) -> bool {
        self.what == What::Ends
    }

    /// The messages in place of one with `body`.
    pub fn answer(&self, told: &Told, body: Vec<u8>) -> Vec<Spoken> {
        let much = usize::from(self.much);
        let is_config = told.is(FrontendReq::GET_CONFIG) && body.len() > HEAD;
        let mut spoken = Spoken {
            code: told.code,
            flags: REPLY,
            size: None,
            body,
            files: 0,
        };
        let body = &mut spoken.body;
        match self.what {
            What::Code => spoken.code ^= u32::from(self.much | 1),
            What::Flags => spoken.flags = self.much.into(),
            What::Shorter => body.truncate(body.len().saturating_sub(1 + much)),
            What::Longer => body.resize(body.len() + 1 + much, 0xee),
            What::Files => spoken.files = 1 + self.much % 12,
            What::Huge => spoken.size = Some(BODY_MAX + 1 + (u32::from(self.much) << 24)),
            What::Cut => {
                spoken.size = Some(body.len() as u32);
                body.truncate(body.len().saturating_sub(1 + much));
            }
            What::Number => *body = u64::from(self.much).to_ne_bytes().to_vec(),
            What::Bit if body.len() == 8 => body[much / 8 % 8] ^= 1 << (much % 8),
            What::All => body.fill(0xff),
            What::ConfigAt if is_config => body[much % 4] ^= 1 << (much / 4 % 8),
            What::ConfigSize if is_config => body[4 + much % 4] ^= 1 << (much / 4 % 8),
            What::ConfigMore if is_config => {
                body.resize(body.len() + 1 + much, 0xee);
                size(body);
            }
            What::ConfigLess if is_config => {
                body.truncate(body.len().saturating_sub(1 + much).max(HEAD));
                size(body);
            }
            What::ConfigByte if is_config => *body.last_mut().expect("some") = self.much,
            What::Empty => body.clear(),
            _ => {}
        }
        match self.what {
            What::Silence | What::Ends => Vec::new(),
            What::Before => vec![
                Spoken {
                    code: spoken.code ^ 64,
                    ..spoken.clone()
                },
                spoken,
            ],
            What::Twice => vec![spoken.clone(), spoken],
            _ => vec![spoken],
        }
    }
}

/// Whether a connection may go on after what was said as an answer: `first` is
/// of its first question.
pub fn may_go_on(told: &Told, said: &[Spoken], first: bool) -> bool {
    let Some(said) = said.first() else {
        return false;
    };
    let is = |request| told.is(request);
    let is_config = is(FrontendReq::GET_CONFIG);
    let is_place = is(FrontendReq::GET_VRING_BASE);
    let is_features = is(FrontendReq::GET_FEATURES);
    let is_protocol = is(FrontendReq::GET_PROTOCOL_FEATURES);
    let is_count = is(FrontendReq::GET_QUEUE_NUM);
    let is_question = is_config || is_place || is_features || is_protocol || is_count;
    let files = if is_question { 0 } else { FILES_MAX };
    let is_whole = said
        .size
        .is_none_or(|size| size as usize <= said.body.len());
    let is_answer = said.code == told.code && said.flags & 7 == REPLY;
    if !is_answer || !is_whole || said.files > files {
        return false;
    }
    let (body, asked) = (&said.body, &told.body);
    if is_config {
        // nothing, and a size of 0, are refusals
        let is_refusal = body.is_empty() || body.len() >= HEAD && body[4..8] == [0; 4];
        let is_it = || body.len() == asked.len() && body[..8] == asked[..8];
        return is_refusal || is_it();
    }
    let Ok(bytes) = body[..].try_into() else {
        return false;
    };
    let value = u64::from_ne_bytes(bytes);
    match () {
        () if is_place => bytes[..4] == asked[..4],
        () if is_count => value > 0,
        () if is_features => !first || value & VERSION_1 != 0,
        () if is_protocol => true,
        () => value == 0 || is(FrontendReq::SET_CONFIG),
    }
}

/// Writes the size that a configuration space has.
fn size(body: &mut [u8]) {
    let len = (body.len() - HEAD) as u32;
    body[4..8].copy_from_slice(&len.to_ne_bytes());
}
