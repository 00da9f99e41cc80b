//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

/// Printed for `--help` and after a mistake.
pub const USAGE: &str = "\
usage: natbridge-holder --socket PATH [--adopt PATH]

  --socket PATH  serve the control protocol on this unix socket (mode 0600)
  --adopt PATH   take the reserved ports over from the holder that answers there, without a gap
  --version      print the version
  --help         print this";

/// What `serve` needs to know.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub socket: PathBuf,
    pub adopt: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Serve(Options),
    Help,
    Version,
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// A sentence that names the wrong argument.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut arguments = arguments;
    let (mut socket, mut adopt) = (None, None);
    while let Some(argument) = arguments.next() {
        let slot = match argument.to_str() {
            Some("--socket") => &mut socket,
            Some("--adopt") => &mut adopt,
            Some("--help" | "-h") => return Ok(Command::Help),
            Some("--version") => return Ok(Command::Version),
            _ => return Err(format!("unknown argument {}", argument.to_string_lossy())),
        };
        let value =
            arguments.next().ok_or_else(|| format!("{} needs a path", argument.display()))?;
        *slot = Some(PathBuf::from(value));
    }
    let socket = socket.ok_or("--socket is missing")?;
    Ok(Command::Serve(Options { socket, adopt }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn reads_both_paths() {
        let options = Options { socket: "/a".into(), adopt: Some("/b".into()) };
        assert_eq!(
            parsed(&["--socket", "/a", "--adopt", "/b"]),
            Ok(Command::Serve(options)),
            "both paths"
        );
    }

    #[test]
    fn names_what_is_wrong() {
        for (arguments, word) in [
            (&[][..], "--socket"),
            (&["--socket"][..], "--socket"),
            (&["--socket", "/a", "--fast"][..], "--fast"),
        ] {
            let message = parsed(arguments).expect_err("a mistake");
            assert!(message.contains(word), "{message} names {word}");
        }
    }
}
