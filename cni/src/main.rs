//! The program: hands environment and standard input to [`adit_cni::main`].

fn main() -> std::process::ExitCode {
    adit_cni::main()
}
