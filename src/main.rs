//! The program: hands the command line to [`adit::cli`].

fn main() -> std::process::ExitCode {
    adit::cli::main()
}
