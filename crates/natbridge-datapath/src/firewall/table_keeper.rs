//! Writes the table anew the moment somebody takes it away, and puts back our accepts.
//!
//! A reload of the host's firewall begins with `flush ruleset`, and empties foreign chains in which our
//! accept stands. The kernel's notification is answered on a thread of its own, before anybody
//! reconciles.

use std::os::fd::AsFd;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;
use nix::sys::eventfd::EventFd;

use super::{accepts, apply, stand_in};
use crate::Result;
use crate::host::NftTable;
use crate::host::netlink::{Message, messages, subscribe};
use crate::host::nftables::{NFGENMSG, NFNLGRP_NFTABLES, message_kind};
use crate::host::nla::Attributes;
use crate::worker::{Wake, Worker, run_ahead, wait};

/// linux/netfilter/nf_tables.h.
const NFT_MSG_DELTABLE: u16 = message_kind(2);
const NFT_MSG_NEWCHAIN: u16 = message_kind(3);
const NFT_MSG_DELRULE: u16 = message_kind(8);
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_FORWARD: u32 = 2;
const MESSAGE_BUFFER: usize = 64 * 1024;

/// A running watch over the table; it ends when it is dropped, and restores nothing from then on.
pub struct TableKeeper {
    /// None while it is dropped.
    worker: Option<Worker>,
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Loss {
    table: bool,
    accept: bool,
}

impl TableKeeper {
    /// Watches the table of the calling thread's namespace.
    ///
    /// With `stand_in` a second table keeps translating while somebody flushes all of them.
    ///
    /// # Errors
    /// `Denied` without the privilege to listen.
    pub fn start(stand_in: bool) -> Result<Self> {
        let socket = subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
        if stand_in {
            apply::start_stand_in();
        }
        let worker = Worker::start("natbridge-table", move |stop| watch(&socket, stop))?;
        Ok(Self { worker: Some(worker) })
    }
}

impl Drop for TableKeeper {
    fn drop(&mut self) {
        drop(self.worker.take());
        stand_in::stop();
    }
}

fn watch(socket: &Socket, stop: &EventFd) {
    // Until the table is there again, new connections find no way.
    run_ahead();
    loop {
        match wait(stop, [socket.as_fd()], None) {
            Wake::Stop => return,
            Wake::Nothing => continue,
            Wake::Ready(_) => {}
        }
        let Some(loss) = read(socket) else { return };
        // What cannot be restored here is the next reconciliation's, which reports it.
        if loss.table {
            let _ = apply::restore();
        }
        if loss.accept {
            let _ = accepts::restore();
        }
    }
}

/// All that waits in the socket; none for a socket that fails for ever.
fn read(socket: &Socket) -> Option<Loss> {
    let mut loss = Loss::default();
    loop {
        let mut bytes = Vec::with_capacity(MESSAGE_BUFFER);
        match socket.recv_from(&mut bytes, 0) {
            Ok((_, sender)) if sender.port_number() == 0 => {
                for message in messages(&bytes) {
                    loss.add(message);
                }
            }
            Ok(_) => {}
            Err(cause) => match cause.raw_os_error() {
                Some(libc::EAGAIN) => return Some(loss),
                Some(libc::EINTR) => {}
                // Notifications were lost: anything may have gone.
                Some(libc::ENOBUFS) => return Some(Loss { table: true, accept: true }),
                _ => return None,
            },
        }
    }
}

impl Loss {
    fn add(&mut self, message: Message<'_>) {
        let is = |kind| message.kind == kind;
        let attributes = Attributes::after(message.payload, NFGENMSG);
        let table = NftTable::parse(message);
        if table.is_some_and(|table| (table.family, table.name.as_str()) == ("inet", "natbridge")) {
            self.table |= is(NFT_MSG_DELTABLE) || is(NFT_MSG_DELRULE);
        } else if is(NFT_MSG_NEWCHAIN) {
            // A foreign forward chain is new, or has another policy.
            let hook = attributes.find(NFTA_CHAIN_HOOK);
            let number = hook.and_then(|hook| hook.nested().find(NFTA_HOOK_HOOKNUM)?.be32());
            self.accept |= number == Some(NF_INET_FORWARD);
        } else if is(NFT_MSG_DELRULE) {
            // The comment of our accept is in the rule, whoever wrote it back.
            self.accept |= message.payload.windows(10).any(|bytes| bytes == b"natbridge\0");
        }
    }
}
