//! What helps, in words: the daemon's complaints and the lines of
//! `xen-dm check` share them. Texts only.

/// There is no Xen below this kernel.
pub const NO_XEN: &str = "this kernel does not run on Xen";

/// Xen hands accesses to no device model.
pub const NO_IOREQ_SERVER: &str = "this Xen was built without CONFIG_IOREQ_SERVER, so that no \
     device model can serve its guests (Debian's Xen for arm64 is such a one)";
/// What then helps.
pub const BUILD_XEN: &str =
    "build Xen with IOREQ_SERVER=y, which needs EXPERT=y and, on arm64, UNSUPPORTED=y";

/// No word from xenstored.
pub const NO_XENSTORE: &str = "xenstored cannot be reached";
/// What then helps.
pub const START_XENSTORED: &str = "start it (`systemctl start xenstored`, or xencommons)";

/// xenstore does not say which domain this is.
pub const NO_OWN_DOMAIN: &str = "xenstore does not say which domain this is";
/// What then helps.
pub const INIT_DOM0: &str =
    "in dom0, run `xen-init-dom0` (the service xen-init-dom0 or xencommons does)";

/// What helps where privcmd serves one domain or none.
pub const LIFT_RESTRICTION: &str = "outside dom0 the kernel ties privcmd to the domain in the \
     xenstore node `target` of this one (XSA-482): have the toolstack write it, one guest to a \
     driver domain, or boot this domain with `privcmd.unrestricted=1` (a locked-down kernel \
     ignores that)";

/// What helps where an open of privcmd does not return.
pub const WAIT_FOR_XENSTORE: &str = "outside dom0 the kernel holds such an open back until \
     xenstore answers (XSA-482): see that xenstored runs";

/// What helps where the kernel has no irqfd.
pub const KERNEL_EVENTS: &str = "interrupts go by hypercall, which works and costs a little more; \
     Linux 6.7 or newer with CONFIG_XEN_PRIVCMD_EVENTFD=y has irqfd";

/// What helps where the kernel has no ioeventfd.
pub const KERNEL_KICKS: &str = "kicks come as register accesses, as they do by default; \
     Linux 6.7 or newer with CONFIG_XEN_PRIVCMD_EVENTFD=y has ioeventfd";

/// What helps against too few descriptors.
pub const MORE_FILES: &str =
    "raise the limit (LimitNOFILE= of the service, or `ulimit -n` in the shell)";

/// What helps where the feature word cannot be read.
pub const SYS_HYPERVISOR: &str = "it only informs; a kernel with CONFIG_XEN_SYS_HYPERVISOR shows \
     it to every user";
