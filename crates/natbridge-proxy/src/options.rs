//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

/// Printed for `--help` and after a mistake.
pub const USAGE: &str = "\
usage: natbridge-holder --socket PATH [--adopt PATH] [--files N]

  --socket PATH  serve the control protocol on this unix socket (mode 0600)
  --adopt PATH   take the reserved ports over from the holder that answers there, without a gap
  --files N      open at most so many files; without it, as many as the host allows
  --version      print the version
  --help         print this";

/// What `serve` needs to know.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub socket: PathBuf,
    pub adopt: Option<PathBuf>,
    pub files: Option<u64>,
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
    let (mut socket, mut adopt, mut files) = (None, None, None);
    while let Some(argument) = arguments.next() {
        let slot = match argument.to_str() {
            Some("--socket") => &mut socket,
            Some("--adopt") => &mut adopt,
            Some("--files") => {
                files = Some(number(arguments.next())?);
                continue;
            }
            Some("--help" | "-h") => return Ok(Command::Help),
            Some("--version") => return Ok(Command::Version),
            _ => return Err(format!("unknown argument {}", argument.to_string_lossy())),
        };
        let value =
            arguments.next().ok_or_else(|| format!("{} needs a path", argument.display()))?;
        *slot = Some(PathBuf::from(value));
    }
    let socket = socket.ok_or("--socket is missing")?;
    Ok(Command::Serve(Options { socket, adopt, files }))
}

fn number(argument: Option<OsString>) -> Result<u64, String> {
    let text = argument.ok_or("--files needs a number")?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.filter(|&files| files >= 64).ok_or_else(|| "--files needs a number from 64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn reads_both_paths() {
        let options = Options { socket: "/a".into(), adopt: Some("/b".into()), files: Some(99) };
        assert_eq!(
            parsed(&["--socket", "/a", "--adopt", "/b", "--files", "99"]),
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
            (&["--socket", "/a", "--files", "many"][..], "--files"),
        ] {
            let message = parsed(arguments).expect_err("a mistake");
            assert!(message.contains(word), "{message} names {word}");
        }
    }
}
