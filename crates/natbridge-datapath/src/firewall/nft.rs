//! Runs `nft` and its like as child processes, in the network namespace of the calling thread.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::error::{Context, Error, ErrorKind, Result};

/// Runs `nft` with these arguments and answers its standard output.
///
/// # Errors
/// `Unsupported` if nft is not installed; the kind that fits nft's own message otherwise.
pub fn nft(arguments: &[&str]) -> Result<String> {
    run(Command::new("nft").args(arguments), "nft", "nftables", None)
}

/// Commits a script as one transaction.
///
/// # Errors
/// As [`nft`]; the kernel's state is then unchanged.
pub fn commit(script: &str) -> Result<()> {
    run(Command::new("nft").args(["-f", "-"]), "nft", "nftables", Some(script)).map(drop)
}

/// Commits commands in nft's JSON form as one transaction.
///
/// # Errors
/// As [`nft`]; the kernel's state is then unchanged.
pub fn commit_json(commands: &Value) -> Result<()> {
    let script = commands.to_string();
    run(Command::new("nft").args(["-j", "-f", "-"]), "nft", "nftables", Some(&script)).map(drop)
}

/// Runs a query in nft's JSON form and answers its standard output.
///
/// # Errors
/// As [`nft`].
pub fn query_json(command: &Value) -> Result<String> {
    let script = command.to_string();
    run(Command::new("nft").args(["-j", "-f", "-"]), "nft", "nftables", Some(&script))
}

/// Loads a script in a network namespace of its own and answers how nft lists the table there.
///
/// # Errors
/// As [`nft`]; `Denied` without CAP_SYS_ADMIN.
pub fn list_as_loaded(script: &str, list: &[&str]) -> Result<String> {
    let mut shell = Command::new("/bin/sh");
    // The script comes by standard input: nothing of it is seen by the shell.
    shell.args(["-c", "nft -f - && exec nft \"$@\"", "nft"]).args(list);
    // SAFETY: between fork and exec only unshare(2) is called, which is async-signal-safe.
    unsafe {
        shell.pre_exec(|| unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
    }
    run(&mut shell, "nft", "nftables", Some(script))
}

/// Runs a program of the iptables-legacy family.
///
/// # Errors
/// As [`nft`].
pub fn iptables(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    run(Command::new(program).args(arguments), program, "iptables", input)
}

fn run(command: &mut Command, program: &str, package: &str, input: Option<&str>) -> Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .spawn()
        .map_err(|cause| missing_or_other(cause, program, package))?;
    let output = feed(child, input).context(format_args!("run {program}"))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|_| {
            Error::new(ErrorKind::Io, format!("{program} answered bytes that are no UTF-8"))
        });
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(127) {
        return Err(not_installed(program, package));
    }
    let message = message.lines().take(4).collect::<Vec<_>>().join(" ");
    Err(Error::new(kind_of(&message), format!("{program} failed: {message}")))
}

/// Writes the input from a thread of its own, so that neither side can block on a full pipe.
fn feed(mut child: Child, input: Option<&str>) -> io::Result<Output> {
    let Some((mut pipe, text)) = child.stdin.take().zip(input) else {
        return child.wait_with_output();
    };
    thread::scope(|scope| {
        // A child that ends early closes the pipe; its exit status says why.
        scope.spawn(move || pipe.write_all(text.as_bytes()));
        child.wait_with_output()
    })
}

fn missing_or_other(cause: io::Error, program: &str, package: &str) -> Error {
    if cause.kind() == io::ErrorKind::NotFound {
        return not_installed(program, package);
    }
    Error::from(cause)
}

fn not_installed(program: &str, package: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{program} is not installed: install the package {package}"),
    )
}

fn kind_of(message: &str) -> ErrorKind {
    const KINDS: [(&str, ErrorKind); 6] = [
        ("Operation not permitted", ErrorKind::Denied),
        ("Permission denied", ErrorKind::Denied),
        ("No such file or directory", ErrorKind::NotFound),
        ("File exists", ErrorKind::Exists),
        ("Device or resource busy", ErrorKind::Busy),
        ("not supported", ErrorKind::Unsupported),
    ];
    KINDS.iter().find(|(text, _)| message.contains(text)).map_or(ErrorKind::Io, |(_, kind)| *kind)
}
