//! Queueing disciplines and tc filters that somebody put on a device: the fast path would skip them.

use std::collections::HashMap;

use nix::libc;

use super::netlink::Message;
use super::nla::{Attribute, Attributes};
use super::rtnetlink::Rtnetlink;
use crate::{ErrorKind, Result, error::Context};

const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `…_EGRESS` (linux/pkt_sched.h).
const HOOKS: [(u32, &str); 2] = [(0xffff_fff2, "ingress"), (0xffff_fff3, "egress")];
/// What devices have without anybody asking for it: they only queue.
const DEFAULTS: [&str; 5] = ["noqueue", "mq", "pfifo_fast", "fq", "fq_codel"];
/// Names of natbridge's own programs begin so.
const OWN_PROGRAMS: &str = "nb_";

/// By ifindex: `kind handle` of queueing disciplines that are not the kernel's defaults, and
/// `filter HOOK KIND` for filters of others.
pub fn list(netlink: &mut Rtnetlink) -> Result<HashMap<u32, Vec<String>>> {
    let queues = netlink
        .raw()
        .dump(libc::RTM_GETQDISC, &request(0, 0), |message| Ok(parse(message)))
        .context("listing queueing disciplines")?;
    let mut found: HashMap<u32, Vec<String>> = HashMap::new();
    for queue in queues {
        let entry = found.entry(queue.ifindex).or_default();
        match queue.kind.as_str() {
            "ingress" | "clsact" => entry.extend(foreign_filters(netlink, queue.ifindex)?),
            kind if DEFAULTS.contains(&kind) => {}
            kind => entry.push(format!("{kind} {:x}:", queue.handle >> 16)),
        }
    }
    found.retain(|_, entries| !entries.is_empty());
    Ok(found)
}

struct Object {
    ifindex: u32,
    handle: u32,
    kind: String,
    program: String,
}

fn foreign_filters(netlink: &mut Rtnetlink, ifindex: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (hook, name) in HOOKS {
        let dumped = netlink
            .raw()
            .dump(libc::RTM_GETTFILTER, &request(ifindex, hook), |message| Ok(parse(message)));
        let filters = match dumped {
            Ok(filters) => filters,
            // An ingress discipline has no egress hook, and a device may just be gone.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                continue;
            }
            Err(error) => return Err(error).context("listing tc filters"),
        };
        for filter in filters {
            // Without a handle it is the chain's header, not a filter.
            if filter.handle != 0 && !filter.program.starts_with(OWN_PROGRAMS) {
                found.push(format!("filter {name} {}", filter.kind));
            }
        }
    }
    found.dedup();
    Ok(found)
}

/// `struct tcmsg` for a dump.
fn request(ifindex: u32, parent: u32) -> Vec<u8> {
    let mut payload = vec![0; TCMSG];
    payload[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    payload[12..16].copy_from_slice(&parent.to_ne_bytes());
    payload
}

fn parse(message: Message<'_>) -> Option<Object> {
    let ifindex = u32::from_ne_bytes(*message.payload.get(4..)?.first_chunk()?);
    let handle = u32::from_ne_bytes(*message.payload.get(8..)?.first_chunk()?);
    let attributes = Attributes::after(message.payload, TCMSG);
    let kind = attributes.find(TCA_KIND)?.text();
    let program = attributes
        .find(TCA_OPTIONS)
        .filter(|_| kind == "bpf")
        .and_then(|options| options.nested().find(TCA_BPF_NAME))
        .map_or_else(String::new, |name: Attribute<'_>| name.text());
    Some(Object { ifindex, handle, kind, program })
}
