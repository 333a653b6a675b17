//! The program `xen-dm`, built where integration tests find it.

fn main() -> std::process::ExitCode {
    vmm::cli::main()
}
