//! Feature words: what Xen promises a domain about its environment.
//!
//! Read by the control thread. A device model can ask Xen for its own domain's
//! word only; a guest's has to come from elsewhere.

use std::fmt;
use std::io;
use std::path::Path;

use bitflags::bitflags;

use crate::xenstore::NodeValue;

/// Where Linux shows this domain's word, in hexadecimal.
pub const SYSFS_PATH: &str = "/sys/hypervisor/properties/features";

bitflags! {
    /// Word 0 of `XENVER_get_features` (`xen/include/public/features.h`).
    /// Bits that have no name here are kept.
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    pub struct FeatureWord: u32 {
        /// `XENFEAT_writable_page_tables`.
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// `XENFEAT_writable_descriptor_tables`.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// `XENFEAT_auto_translated_physmap`: frame numbers are the guest's own.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// `XENFEAT_supervisor_mode_kernel`.
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// `XENFEAT_pae_pgdir_above_4gb`.
        const PAE_PGDIR_ABOVE_4GB = 1 << 4;
        /// `XENFEAT_mmu_pt_update_preserve_ad`.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 5;
        /// `XENFEAT_highmem_assist`.
        const HIGHMEM_ASSIST = 1 << 6;
        /// `XENFEAT_gnttab_map_avail_bits`.
        const GNTTAB_MAP_AVAIL_BITS = 1 << 7;
        /// `XENFEAT_hvm_callback_vector`.
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// `XENFEAT_hvm_safe_pvclock`.
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// `XENFEAT_hvm_pirqs`.
        const HVM_PIRQS = 1 << 10;
        /// `XENFEAT_dom0`: the domain is the initial one.
        const DOM0 = 1 << 11;
        /// `XENFEAT_grant_map_identity`.
        const GRANT_MAP_IDENTITY = 1 << 12;
        /// `XENFEAT_memory_op_vnode_supported`.
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// `XENFEAT_ARM_SMCCC_supported`.
        const ARM_SMCCC_SUPPORTED = 1 << 14;
        /// `XENFEAT_linux_rsdp_unrestricted`.
        const LINUX_RSDP_UNRESTRICTED = 1 << 15;
        /// `XENFEAT_not_direct_mapped`: guest frames are not machine frames.
        const NOT_DIRECT_MAPPED = 1 << 16;
        /// `XENFEAT_direct_mapped`: guest frames are machine frames.
        const DIRECT_MAPPED = 1 << 17;
        /// `XENFEAT_runstate_phys_area`.
        const RUNSTATE_PHYS_AREA = 1 << 18;
        /// `XENFEAT_vcpu_time_phys_area`.
        const VCPU_TIME_PHYS_AREA = 1 << 19;
        const _ = !0;
    }
}

impl FeatureWord {
    /// The word as Xen gives it.
    #[must_use]
    pub const fn from_raw(word: u32) -> FeatureWord {
        FeatureWord::from_bits_retain(word)
    }

    /// The word as a number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.bits()
    }

    /// Reads hexadecimal text as Linux shows it: several words may follow
    /// each other without separator, the highest first; the last 8 digits
    /// are word 0. Anything else is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<FeatureWord> {
        let digits = text.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let word = digits.get(digits.len().saturating_sub(8)..)?;
        u32::from_str_radix(word, 16).ok().map(Self::from_raw)
    }

    /// This domain's word from sysfs ([`SYSFS_PATH`]), which needs no
    /// privilege.
    ///
    /// # Errors
    /// The file is missing (not on Xen, or without `CONFIG_XEN_SYS_HYPERVISOR`),
    /// or does not hold a hexadecimal number (`InvalidData`).
    pub fn of_this_domain() -> io::Result<FeatureWord> {
        Self::read(Path::new(SYSFS_PATH))
    }

    fn read(path: &Path) -> io::Result<FeatureWord> {
        let text = std::fs::read_to_string(path)?;
        Self::parse(&text).ok_or_else(|| {
            let detail = format!("{}: {:?} is no feature word", path.display(), text.trim());
            io::Error::new(io::ErrorKind::InvalidData, detail)
        })
    }
}

/// A node that holds a word, in hexadecimal whether or not with `0x`.
impl NodeValue for FeatureWord {
    const EXPECTED: &'static str = "a feature word in hexadecimal, such as 00066005";

    fn parse(text: &str) -> Option<Self> {
        FeatureWord::parse(text)
    }
}

impl fmt::Display for FeatureWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_seen_on_xen_have_their_bits() {
        let dom0 = FeatureWord::parse("00066805\n").unwrap();
        let dom_u = FeatureWord::parse("00056005").unwrap();
        let direct = FeatureWord::parse("0x00066005").unwrap();

        assert!(dom0.contains(FeatureWord::DIRECT_MAPPED | FeatureWord::DOM0));
        assert!(!dom0.contains(FeatureWord::NOT_DIRECT_MAPPED));
        assert!(dom_u.contains(FeatureWord::NOT_DIRECT_MAPPED));
        assert!(!dom_u.intersects(FeatureWord::DIRECT_MAPPED | FeatureWord::DOM0));
        assert!(direct.contains(FeatureWord::DIRECT_MAPPED));
        assert!(!direct.contains(FeatureWord::DOM0));
    }

    #[test]
    fn unnamed_bits_are_kept() {
        let word = FeatureWord::from_raw(0x8000_0001);

        assert_eq!(word.raw(), 0x8000_0001);
        assert_eq!(word.to_string(), "80000001");
    }

    #[test]
    fn the_last_of_several_words_is_word_0() {
        let word = FeatureWord::parse("0000000100066805");

        assert_eq!(word, Some(FeatureWord::from_raw(0x0006_6805)));
    }

    #[test]
    fn text_that_is_no_number_is_refused() {
        let texts = ["", "  \n", "0x", "12g4", "+1", "-1", "00 01", "ü"];

        let parsed: Vec<_> = texts.iter().map(|text| FeatureWord::parse(text)).collect();

        assert_eq!(parsed, vec![None; texts.len()]);
    }

    #[test]
    fn a_missing_file_is_not_found() {
        let error = FeatureWord::read(Path::new("/proc/no/such/file")).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
