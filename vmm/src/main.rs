//! The program `xen-dm`; everything is in the library `vmm`.

fn main() -> std::process::ExitCode {
    vmm::cli::main()
}
