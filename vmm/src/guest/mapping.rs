//! How a guest's addresses relate to the machine's, and who says so.
//!
//! A device model cannot ask Xen for a guest's feature word, so the host has to
//! say it: the configuration, else a node of the toolstack's, else nobody, and
//! then the rule for a domain without either bit counts. The guest may say its
//! word, too, and is heard in one direction only: a word that makes its memory
//! Translated is followed, since all that costs is speed; one that would make
//! it OneToOne is not believed, since a guest must not choose what its device
//! model assumes of the machine.
//!
//! The control thread decides once for each device, before it is attached, and
//! nothing asks for the initial domain afterwards.

use std::fmt;

use swiotlb::Kind;
use swiotlb::features::{
    Arch, DIRECT_MAPPED, Detection, FeatureError, FeatureInputs, NOT_DIRECT_MAPPED, detect,
};
use xen::DomId;
use xen::features::FeatureWord;

/// What was said about a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// `direct-mapped`, of the configuration or the command line.
    pub configured: Option<bool>,
    /// The toolstack's word. It does not count beside the configuration's.
    pub toolstack: Option<FeatureWord>,
    /// The guest's own word.
    pub guest: Option<FeatureWord>,
}

/// The kind of a guest's mapping, and where it is known from: the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    kind: Kind,
    /// The kind by the source's word alone.
    host: Kind,
    source: Source,
    /// The source's word had both bits set.
    contradictory: bool,
    claim: Option<Claim>,
}

/// Who said the word that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Configuration(bool),
    Toolstack(FeatureWord),
    /// Nobody; the domain is the initial one or not.
    Nobody {
        initial: bool,
    },
}

/// What the guest said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    word: FeatureWord,
    /// The kind that this word makes.
    kind: Kind,
}

impl Mapping {
    /// Decides for guest `domid`, on Arm.
    ///
    /// # Errors
    /// None, as long as detection asks for no more than is given here.
    pub fn decide(domid: DomId, said: Said) -> Result<Mapping, FeatureError> {
        let initial = domid == DomId(0);
        let (source, word) = match (said.configured, said.toolstack) {
            (Some(direct), _) => (Source::Configuration(direct), word_of(direct)),
            (None, Some(word)) => (Source::Toolstack(word), word),
            (None, None) => (Source::Nobody { initial }, FeatureWord::empty()),
        };
        let host = detected(initial, word)?;
        let claim = match said.guest {
            Some(word) => {
                let kind = detected(initial, word)?.kind;
                Some(Claim { word, kind })
            }
            None => None,
        };
        let kind = match claim {
            Some(claim) if claim.kind == Kind::Translated => Kind::Translated,
            _ => host.kind,
        };
        Ok(Mapping {
            kind,
            host: host.kind,
            source,
            contradictory: host.contradictory,
            claim,
        })
    }

    /// The mapping of a DomU about which nobody says anything.
    #[must_use]
    pub fn of_a_dom_u() -> Mapping {
        Mapping {
            kind: Kind::Translated,
            host: Kind::Translated,
            source: Source::Nobody { initial: false },
            contradictory: false,
            claim: None,
        }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the word that counts says both, which Xen never does.
    #[must_use]
    pub fn is_contradictory(&self) -> bool {
        self.contradictory
    }
}

/// Where the kind is known from.
impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Source::Configuration(direct) => {
                write!(f, "the configuration says direct-mapped = {direct}")?;
            }
            Source::Toolstack(word) => write!(f, "the toolstack's node says {word}")?,
            Source::Nobody { initial: true } => {
                f.write_str("nobody says, and the initial domain is taken to be mapped 1:1")?;
            }
            Source::Nobody { initial: false } => {
                f.write_str("nobody says, and a DomU is taken not to be mapped 1:1")?;
            }
        }
        if self.contradictory {
            f.write_str(", with both bits set, which Xen never does: direct_mapped counts")?;
        }
        let Some(Claim { word, kind }) = self.claim else {
            return Ok(());
        };
        write!(f, "; the guest says {word}, ")?;
        f.write_str(match (self.host, kind) {
            (host, claimed) if host == claimed => "which agrees",
            (_, Kind::OneToOne) => "direct-mapped, which is not believed",
            _ => "not direct-mapped, which is followed",
        })
    }
}

fn word_of(direct: bool) -> FeatureWord {
    FeatureWord::from_raw(match direct {
        true => DIRECT_MAPPED,
        false => NOT_DIRECT_MAPPED,
    })
}

fn detected(initial: bool, word: FeatureWord) -> Result<Detection, FeatureError> {
    detect(
        &FeatureInputs {
            arch: Arch::Arm,
            xen_domain: true,
            initial_domain: initial,
            features: Some(word.raw()),
        },
        false,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: Option<u32> = Some(0x0006_6005);
    const NOT_DIRECT: Option<u32> = Some(0x0005_6005);
    const NEITHER: Option<u32> = Some(0x0000_6005);
    const BOTH: Option<u32> = Some(0x0007_6005);

    fn decided(
        domid: u16,
        configured: Option<bool>,
        toolstack: Option<u32>,
        guest: Option<u32>,
    ) -> Mapping {
        let said = Said {
            configured,
            toolstack: toolstack.map(FeatureWord::from_raw),
            guest: guest.map(FeatureWord::from_raw),
        };
        Mapping::decide(DomId(domid), said).unwrap()
    }

    #[test]
    fn the_kind_is_the_hosts_word_or_a_more_careful_one_of_the_guests() {
        use Kind::{OneToOne, Translated};
        // configuration, toolstack, guest, for a DomU and for the initial domain
        let table = [
            (None, None, None, Translated, OneToOne),
            (None, None, DIRECT, Translated, OneToOne),
            (None, None, BOTH, Translated, OneToOne),
            (None, None, NOT_DIRECT, Translated, Translated),
            (None, None, NEITHER, Translated, OneToOne),
            (None, DIRECT, None, OneToOne, OneToOne),
            (None, DIRECT, DIRECT, OneToOne, OneToOne),
            (None, DIRECT, NOT_DIRECT, Translated, Translated),
            (None, DIRECT, NEITHER, Translated, OneToOne),
            (None, DIRECT, BOTH, OneToOne, OneToOne),
            (None, NOT_DIRECT, None, Translated, Translated),
            (None, NOT_DIRECT, DIRECT, Translated, Translated),
            (None, NOT_DIRECT, BOTH, Translated, Translated),
            (None, NEITHER, None, Translated, OneToOne),
            (None, NEITHER, DIRECT, Translated, OneToOne),
            (None, BOTH, None, OneToOne, OneToOne),
            (None, BOTH, NOT_DIRECT, Translated, Translated),
            (Some(true), None, None, OneToOne, OneToOne),
            (Some(true), NOT_DIRECT, None, OneToOne, OneToOne),
            (Some(true), NOT_DIRECT, NOT_DIRECT, Translated, Translated),
            (Some(true), None, DIRECT, OneToOne, OneToOne),
            (Some(false), DIRECT, None, Translated, Translated),
            (Some(false), DIRECT, DIRECT, Translated, Translated),
        ];

        for (configured, toolstack, guest, dom_u, initial) in table {
            let found = [5, 0].map(|domid| decided(domid, configured, toolstack, guest).kind());

            assert_eq!(
                found,
                [dom_u, initial],
                "configured {configured:?}, toolstack {toolstack:x?}, guest {guest:x?}"
            );
        }
    }

    #[test]
    fn the_text_tells_who_says_so() {
        let told = |configured, toolstack| decided(5, configured, toolstack, None).to_string();

        assert_eq!(
            told(Some(true), DIRECT),
            "the configuration says direct-mapped = true"
        );
        assert_eq!(told(None, DIRECT), "the toolstack's node says 00066005");
        assert_eq!(
            told(None, None),
            "nobody says, and a DomU is taken not to be mapped 1:1"
        );
        assert_eq!(
            decided(0, None, None, None).to_string(),
            "nobody says, and the initial domain is taken to be mapped 1:1"
        );
        assert_eq!(told(None, None), Mapping::of_a_dom_u().to_string());
    }

    #[test]
    fn the_text_tells_what_became_of_the_guests_word() {
        let told = |toolstack, guest| decided(5, None, toolstack, guest).to_string();

        for (toolstack, guest, end) in [
            (DIRECT, DIRECT, "the guest says 00066005, which agrees"),
            (
                NOT_DIRECT,
                NOT_DIRECT,
                "the guest says 00056005, which agrees",
            ),
            (
                NOT_DIRECT,
                DIRECT,
                "the guest says 00066005, direct-mapped, which is not believed",
            ),
            (
                DIRECT,
                NOT_DIRECT,
                "the guest says 00056005, not direct-mapped, which is followed",
            ),
        ] {
            let text = told(toolstack, guest);

            assert!(text.ends_with(end), "{text}");
        }
    }

    #[test]
    fn a_word_that_says_both_is_told() {
        let both = decided(5, None, BOTH, None);
        let guests = decided(5, None, DIRECT, BOTH);

        assert!(both.is_contradictory() && both.to_string().contains("both bits"));
        assert!(!guests.is_contradictory());
    }
}
