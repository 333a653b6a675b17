//! Which kind of mapping a domain has, from its Xen feature word.
//!
//! Called once per guest, by whoever brings its data path up. Pure functions:
//! the crate never guesses an input.
//!
//! Xen sets exactly one of `direct_mapped` and `not_direct_mapped` since it
//! knows them; with neither, an initial domain on Arm is assumed to be mapped
//! 1:1. That legacy rule is the only place where being the initial domain
//! counts: nothing after detection asks for it again.

use thiserror::Error;

/// `XENFEAT_auto_translated_physmap`, `xen/include/public/features.h`.
pub const AUTO_TRANSLATED_PHYSMAP: u32 = 1 << 2;
/// `XENFEAT_not_direct_mapped`, `xen/include/public/features.h`.
pub const NOT_DIRECT_MAPPED: u32 = 1 << 16;
/// `XENFEAT_direct_mapped`, `xen/include/public/features.h`.
pub const DIRECT_MAPPED: u32 = 1 << 17;

/// The architecture of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Arm, 32 and 64 bit.
    Arm,
    /// x86. `pv` is true for a paravirtualised domain, whose own frame numbers
    /// are not the machine's.
    X86 {
        /// Whether the domain is paravirtualised (neither HVM nor PVH).
        pv: bool,
        /// Whether the addresses that the domain hands out are machine
        /// addresses already, rather than its own pseudo-physical ones.
        machine_addresses: bool,
    },
}

/// Everything that detection looks at.
#[derive(Clone, Copy, Debug)]
pub struct FeatureInputs {
    /// The domain's architecture.
    pub arch: Arch,
    /// Whether it runs on Xen at all.
    pub xen_domain: bool,
    /// Whether it is the initial domain; counts in the legacy rule only.
    pub initial_domain: bool,
    /// Submap 0 of its feature word; `None` where it could not be read.
    pub features: Option<u32>,
}

/// How a domain's addresses relate to the consumer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Xen's rules are off.
    Disabled,
    /// Local frames are mapped 1:1; no local frame is looked up.
    OneToOne,
    /// Every frame is looked up.
    Translated,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Disabled => "Disabled",
            Kind::OneToOne => "OneToOne",
            Kind::Translated => "Translated",
        })
    }
}

/// What detection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detection {
    /// Whether a Linux guest with these inputs uses swiotlb-xen itself.
    pub linux: bool,
    /// The kind to use for this domain's memory.
    pub kind: Kind,
    /// Both bits were set, which Xen never does; `direct_mapped` won.
    pub contradictory: bool,
}

/// Why no kind could be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FeatureError {
    /// The feature word could not be read. This is never "no bits set": an
    /// I/O error would switch the legacy rule on.
    #[error("the feature word of the domain could not be read")]
    FeaturesUnavailable,
    /// Both bits are set and the caller asked for strictness.
    #[error("feature word {0:#010x} has both direct_mapped and not_direct_mapped set")]
    ContradictoryFeatures(u32),
}

/// Tells the kind of mapping of a domain.
///
/// With `strict`, a word with both bits set is an error; without, it is
/// [`Kind::OneToOne`] with [`Detection::contradictory`] set.
///
/// ```
/// use swiotlb::features::{Arch, FeatureInputs, Kind, detect};
/// // A DomU that was created with `direct-map`: not initial, and still 1:1.
/// let found = detect(
///     &FeatureInputs {
///         arch: Arch::Arm,
///         xen_domain: true,
///         initial_domain: false,
///         features: Some(0x0006_6005),
///     },
///     false,
/// )?;
/// assert_eq!(found.kind, Kind::OneToOne);
/// # Ok::<(), swiotlb::features::FeatureError>(())
/// ```
pub fn detect(inputs: &FeatureInputs, strict: bool) -> Result<Detection, FeatureError> {
    if !inputs.xen_domain {
        return Ok(Detection {
            linux: false,
            kind: Kind::Disabled,
            contradictory: false,
        });
    }
    let word = inputs.features.ok_or(FeatureError::FeaturesUnavailable)?;
    let direct = word & DIRECT_MAPPED != 0;
    let not_direct = word & NOT_DIRECT_MAPPED != 0;
    let contradictory = direct && not_direct;
    if contradictory && strict {
        return Err(FeatureError::ContradictoryFeatures(word));
    }
    let (linux, kind) = match inputs.arch {
        Arch::Arm => {
            let detected = direct || (!not_direct && inputs.initial_domain);
            let kind = if detected {
                Kind::OneToOne
            } else {
                Kind::Translated
            };
            (detected, kind)
        }
        // On x86 a domain that is not auto-translated reports direct_mapped
        // because its gfn is the mfn; its pseudo-physical frames still are not.
        Arch::X86 {
            pv,
            machine_addresses,
        } => match (pv, word & AUTO_TRANSLATED_PHYSMAP != 0) {
            (true, false) if machine_addresses && direct => (true, Kind::OneToOne),
            (true, false) => (true, Kind::Translated),
            _ => (false, Kind::Disabled),
        },
    };
    Ok(Detection {
        linux,
        kind,
        contradictory,
    })
}

/// Whether a paravirtualised x86 domain brings swiotlb-xen up. There the
/// initial domain is rightly part of the condition: it owns the devices.
pub fn x86_bring_up(initial_domain: bool, bounce_requested: bool, pv_pci: bool) -> bool {
    initial_domain || bounce_requested || pv_pci
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(xen: bool, direct: bool, not_direct: bool, initial: bool) -> FeatureInputs {
        let mut word = 0;
        if direct {
            word |= DIRECT_MAPPED;
        }
        if not_direct {
            word |= NOT_DIRECT_MAPPED;
        }
        FeatureInputs {
            arch: Arch::Arm,
            xen_domain: xen,
            initial_domain: initial,
            features: Some(word),
        }
    }

    /// The 16 rows of the Arm truth table:
    /// (xen, direct, not direct, initial) → (Linux, kind, contradictory).
    const ROWS: [(u8, u8, u8, u8, bool, Kind, bool); 16] = [
        (0, 0, 0, 0, false, Kind::Disabled, false),
        (0, 0, 0, 1, false, Kind::Disabled, false),
        (0, 0, 1, 0, false, Kind::Disabled, false),
        (0, 0, 1, 1, false, Kind::Disabled, false),
        (0, 1, 0, 0, false, Kind::Disabled, false),
        (0, 1, 0, 1, false, Kind::Disabled, false),
        (0, 1, 1, 0, false, Kind::Disabled, false),
        (0, 1, 1, 1, false, Kind::Disabled, false),
        (1, 0, 0, 0, false, Kind::Translated, false),
        (1, 0, 0, 1, true, Kind::OneToOne, false),
        (1, 0, 1, 0, false, Kind::Translated, false),
        (1, 0, 1, 1, false, Kind::Translated, false),
        (1, 1, 0, 0, true, Kind::OneToOne, false),
        (1, 1, 0, 1, true, Kind::OneToOne, false),
        (1, 1, 1, 0, true, Kind::OneToOne, true),
        (1, 1, 1, 1, true, Kind::OneToOne, true),
    ];

    #[test]
    fn v01_to_v07_arm_truth_table() {
        for (xen, dm, ndm, initial, linux, kind, contradictory) in ROWS {
            let inputs = arm(xen != 0, dm != 0, ndm != 0, initial != 0);
            let found = detect(&inputs, false).unwrap();
            assert_eq!(
                found,
                Detection {
                    linux,
                    kind,
                    contradictory
                },
                "row xen={xen} dm={dm} ndm={ndm} initial={initial}"
            );
        }
    }

    #[test]
    fn v07_contradictory_words_are_errors_when_strict() {
        for initial in [false, true] {
            let got = detect(&arm(true, true, true, initial), true);
            assert_eq!(
                got,
                Err(FeatureError::ContradictoryFeatures(
                    DIRECT_MAPPED | NOT_DIRECT_MAPPED
                ))
            );
        }
    }

    #[test]
    fn v08_x86_pv_is_translated_although_direct_mapped_is_set() {
        let inputs = FeatureInputs {
            arch: Arch::X86 {
                pv: true,
                machine_addresses: false,
            },
            xen_domain: true,
            initial_domain: false,
            features: Some(DIRECT_MAPPED),
        };
        assert_eq!(detect(&inputs, false).unwrap().kind, Kind::Translated);
        assert!(!x86_bring_up(false, false, false));
        assert!(x86_bring_up(true, false, false));
        assert!(x86_bring_up(false, true, false));
        assert!(x86_bring_up(false, false, true));
    }

    #[test]
    fn v08_x86_auto_translated_is_disabled() {
        let inputs = FeatureInputs {
            arch: Arch::X86 {
                pv: false,
                machine_addresses: false,
            },
            xen_domain: true,
            initial_domain: true,
            features: Some(AUTO_TRANSLATED_PHYSMAP | NOT_DIRECT_MAPPED),
        };
        assert_eq!(detect(&inputs, false).unwrap().kind, Kind::Disabled);
    }

    #[test]
    fn an_unreadable_word_is_an_error_and_not_an_empty_word() {
        let mut inputs = arm(true, false, false, true);
        inputs.features = None;
        assert_eq!(
            detect(&inputs, false),
            Err(FeatureError::FeaturesUnavailable)
        );
    }

    /// INV-14: the closed form, over every word and every initial flag.
    #[test]
    fn inv14_arm_detection_equals_the_closed_form() {
        for bits in 0u32..64 {
            let word = ((bits & 1) << 2) | ((bits >> 1) & 1) << 12 | ((bits >> 2) & 3) << 16;
            for initial in [false, true] {
                let inputs = FeatureInputs {
                    arch: Arch::Arm,
                    xen_domain: bits & 32 != 0,
                    initial_domain: initial,
                    features: Some(word),
                };
                let dm = word & DIRECT_MAPPED != 0;
                let ndm = word & NOT_DIRECT_MAPPED != 0;
                let expected = inputs.xen_domain && (dm || (!ndm && initial));
                assert_eq!(detect(&inputs, false).unwrap().linux, expected);
            }
        }
    }
}
