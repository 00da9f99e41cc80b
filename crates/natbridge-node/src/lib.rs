//! The Node-API addon: structs and conversions for `natbridge-datapath`, nothing else.
//!
//! Every error message starts with its kind in brackets (`[exists] …`): Node-API carries a message,
//! not a kind, and `src/datapath/addon.ts` takes it apart again.

// napi-derive exports nothing under test, so nothing looks used there.
#![cfg_attr(test, allow(dead_code))]

mod blocking;
mod error;
mod fastpath;
mod firewall;
mod host;
mod programs;
