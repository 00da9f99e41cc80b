//! The holder: the process that owns the reserved sockets of published ports and forwards what
//! reaches them.
//!
//! A published port is reserved by a listening (TCP, SCTP) or bound (UDP) socket, so that nobody
//! else can take it. Nearly all traffic is carried by nftables, the connect hook and the fast path
//! before it gets to that socket; the rest (an IPv6 client of an IPv4 container, `::1`, a client the
//! connect hook can't serve) is forwarded here in userspace. The daemon tells the holder what to
//! reserve over a unix socket ([`protocol`]); killing the daemon touches neither sockets nor
//! connections, and the next daemon asks for the list and goes on.
//!
//! One thread, one event loop: whatever a client sends, state is never shared between threads, and
//! idle connections cost two file descriptors and a few hundred bytes.

mod binding;
mod control;
mod error;
mod forward;
mod handover;
mod limits;
mod options;
mod pool;
mod protocol;
mod registry;
mod reserve;

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Context;
use tokio::task::LocalSet;

use crate::limits::Limits;
use crate::options::{Command, USAGE};
use crate::registry::Registry;

fn main() -> ExitCode {
    let command = match options::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(message) => {
            eprintln!("natbridge-holder: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let options = match command {
        Command::Serve(options) => options,
        Command::Help => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Command::Version => {
            println!("natbridge-holder {}", protocol::VERSION);
            return ExitCode::SUCCESS;
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("natbridge-holder: {failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &options::Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    let limits = Limits::raise(options.files);
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let registry = Rc::new(Registry::new(Rc::new(limits)));
        let predecessor = match &options.adopt {
            Some(path) => Some(handover::adopt(path, &registry).await?),
            None => None,
        };
        let socket = control::listen(&options.socket, predecessor.is_some()).await?;
        // Only now the old holder lets go: from here on the control socket is ours.
        if let Some(predecessor) = predecessor {
            predecessor.release().await?;
        }
        control::serve(socket, registry).await
    })
}
