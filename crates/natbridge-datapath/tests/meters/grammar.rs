//! Random rulesets: mostly of what is the same for each packet of a connection, now and then of what
//! is not, in the words of nft, iptables-nft and iptables-legacy.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Nft,
    IptablesNft,
    IptablesLegacy,
}

pub struct Ruleset {
    pub tool: Tool,
    pub text: String,
}

/// Conditions of both families, each the same for all packets of a connection.
const CONSTANT: &[&str] = &[
    "rt classid 0",
    "osf name \"Linux\"",
    "meta cgroup 0",
    "meta skgid 0",
    "ct l3proto ipv4",
    "ct protocol tcp",
    "meta iifkind \"veth\"",
    "ether saddr 02:00:00:00:00:09",
    "ether type ip",
    "meta iifgroup 0",
    "meta sdifname lo",
    "ct helper \"ftp\"",
    "th dport 80-90",
    "th dport vmap { 22 : drop }",
    "ct state invalid,untracked",
    "meta l4proto tcp",
    "meta l4proto udp",
    "meta l4proto { tcp, udp }",
    "tcp dport 80",
    "tcp dport != 80",
    "udp dport 80",
    "th dport 80",
    "th sport > 1024",
    "th dport { 22, 80, 443 }",
    "iifname \"a0\"",
    "iifname \"b0\"",
    "iifname \"a*\"",
    "iifname != \"a0\"",
    "ct state established",
    "ct state established,related",
    "ct state new",
    "ct state != established",
    "ct state invalid",
    "ct state { established, new }",
    "ct direction original",
    "ct direction reply",
    "ct mark 0",
    "ct mark 1",
    "ct mark != 0",
    "meta mark 0",
    "meta mark 1",
    "meta mark 2",
    "meta mark and 1 == 1",
    "meta iiftype ether",
    "tcp flags syn",
    "tcp flags & (syn|ack) == ack",
    "tcp flags & (fin|rst) != 0",
    "tcp flags & (syn|rst) == 0",
    "tcp flags != syn",
    "ct status snat",
    "ct status dnat",
    "th dport 8080",
    "ct status expected",
    "ct status confirmed",
    "meta pkttype host",
    "meta skuid 0",
    "jhash th sport mod 2 0",
    "symhash mod 2 0",
    "th dport @ports",
    "th dport != @ports",
    "th dport @counted",
    "ct zone 0",
    "meta nfproto ipv4",
    "meta protocol ip",
];
const CONSTANT4: &[&str] = &[
    "ip version 4",
    "ip hdrlength 5",
    "rt nexthop 10.2.0.2",
    "fib saddr . iif oif exists",
    "fib daddr . mark type local",
    "ip option lsrr exists",
    "ip saddr 10.1.0.2",
    "ip saddr 10.1.0.0/24",
    "ip saddr != 10.1.0.2",
    "ip daddr 10.2.0.2",
    "ip protocol tcp",
    "ip protocol udp",
    "fib daddr type unicast",
    "ip saddr . th dport { 10.1.0.2 . 80 }",
    "ip saddr { 10.1.0.2, 10.2.0.2 }",
    "fib saddr oif a0",
];
const CONSTANT6: &[&str] = &[
    "fib saddr . iif oif exists",
    "exthdr rt exists",
    "ip6 saddr fd01::2",
    "ip6 saddr fd01::/64",
    "ip6 daddr fd02::2",
    "ip6 nexthdr tcp",
    "exthdr frag missing",
    "exthdr hbh exists",
];

/// Conditions whose answer may differ from packet to packet.
const VARYING: &[&str] = &[
    "tcp option @34,8,8 4",
    "tcp option maxseg exists",
    "meta hour \"00:00\"-\"23:59\"",
    "socket transparent 1",
    "tcp flags { ack, ack|psh }",
    "tcp flags psh / psh,ack",
    "ct status seen-reply,assured",
    "@th,0,16 & 0xff00 > 0",
    "udp checksum > 30000",
    "ct reply bytes > 900",
    "meta length > 100",
    "meta length < 700",
    "tcp flags psh",
    "tcp flags & (psh|ack) == psh|ack",
    "tcp flags ecn",
    "tcp flags & ecn == 0",
    "tcp option timestamp exists",
    "tcp option 34 exists",
    "tcp option sack-perm exists",
    "tcp option 5 exists",
    "tcp window > 1000",
    "tcp window 0",
    "tcp urgptr 7",
    "tcp doff > 5",
    "tcp sequence > 1000000",
    "tcp ackseq > 1000000000",
    "udp length > 100",
    "tcp checksum > 30000",
    "limit rate 5/second",
    "limit rate over 3/second burst 2 packets",
    "limit rate 1 kbytes/second",
    "quota 900 bytes",
    "quota over 900 bytes",
    "numgen inc mod 3 0",
    "numgen random mod 3 0",
    "ct bytes > 2000",
    "ct packets > 8",
    "ct avgpkt > 150",
    "ct original packets > 6",
    "@th,32,32 > 1000000",
    "@th,96,16 & 0x00ff != 16",
    "@nh,32,16 > 30000",
    "@ll,0,16 1",
    "meta random > 100000000",
    "meta cpu 0",
    "ct count over 1",
    "th dport @limited",
    "th dport @quotaed",
    "th dport @seen",
    "quota name q",
    "limit name l",
    "meta priority 0",
    "ct status assured",
    "ct expiration > 299s",
    "ct expiration < 100s",
    "th dport @timed",
    "th dport != @timed",
];
const VARYING4: &[&str] = &[
    "ip dscp cs1",
    "ip dscp != ef",
    "ip dscp { cs1, ef }",
    "ip ecn ce",
    "ip ttl > 64",
    "ip ttl 64",
    "ip id > 30000",
    "ip length > 100",
    "ip frag-off & 0x4000 == 0",
    "ip frag-off 0",
    "ip checksum > 30000",
    "@nh,8,8 0",
    "ip saddr . ip dscp { 10.1.0.2 . cs1 }",
];
const VARYING6: &[&str] =
    &["ip6 dscp cs1", "ip6 ecn ce", "ip6 hoplimit > 64", "ip6 flowlabel 1", "ip6 length > 100"];

/// Statements that do the same to each packet.
const STEADY: &[&str] = &[
    "counter",
    "meta mark set 1",
    "meta mark set 2",
    "meta mark set ct mark",
    "ct mark set 1",
    "ct mark set mark",
    "meta mark set mark or 4",
    "meta mark set ct mark and 1",
    "ct mark set ct mark or 2",
    "tcp option maxseg size set 1200",
    "limit rate 3/second log level debug",
    "meta mark set jhash th sport mod 3",
    "meta mark set th dport map { 80 : 1, 443 : 2 }",
    "meta mark set th dport map @marks",
    "counter name c",
    "ct mark set 2",
    "meta nftrace set 1",
    "meta mark set mark xor 1",
    "ct mark set meta mark and 3",
];
/// Statements that do not.
const UNSTEADY: &[&str] = &[
    "ct event set new",
    "meta pkttype set host",
    "tcp flags set ack",
    "tcp option timestamp tsval set 7",
    "ct mark set ct mark xor 1",
    "meta mark set numgen inc mod 3",
    "meta priority set numgen inc mod 3",
    "add @seen { th dport }",
    "add @seen { th dport timeout 20ms }",
    "update @limits { th dport limit rate 5/second }",
    "add @limits { th sport limit rate over 4/second }",
    "update @seen { th sport counter }",
    "ct zone set 1",
    "notrack",
    "add @small { th sport }",
    "counter name th dport map @counters",
    "quota name th dport map @quotas",
    "meta mark set meta length map { 0-100 : 1, 101-65535 : 2 }",
    "tcp window set 1000",
    "reset tcp option timestamp",
    "ct mark set ct mark lshift 1",
];
const UNSTEADY4: &[&str] =
    &["ip dscp set cs1", "ip ttl set 64", "ip ecn set ce", "ip frag-off set 0"];
const UNSTEADY6: &[&str] = &["ip6 hoplimit set 64", "ip6 dscp set cs1"];

const VERDICTS: &[&str] = &[
    "accept",
    "accept",
    "drop",
    "jump c1",
    "goto c2",
    "return",
    "reject",
    "ct state vmap { established : accept, new : jump c1 }",
    "th dport vmap { 80 : jump c1, 443 : drop }",
    "meta mark vmap { 0 : goto c2, 1 : accept, 2 : drop }",
    "th dport vmap @verdicts",
    "ct mark vmap { 1 : drop }",
    "iifname vmap { \"a0\" : jump c1, \"b0\" : accept }",
];
const VARYING_VERDICTS: &[&str] = &[
    "tcp flags vmap { ack : accept, psh|ack : drop }",
    "th dport vmap @limitedverdicts",
    "meta length vmap { 0-200 : drop, 201-65535 : accept }",
    "numgen inc mod 2 vmap { 0 : drop, 1 : accept }",
    "tcp window vmap { 0 : drop }",
];

impl Ruleset {
    pub fn random(random: &mut Random) -> Self {
        match random.below(10) {
            0 | 1 => Self { tool: Tool::IptablesNft, text: iptables(random) },
            2 => Self { tool: Tool::IptablesLegacy, text: iptables(random) },
            _ => Self { tool: Tool::Nft, text: nft(random) },
        }
    }

    /// Makes them the router's; false if the tool or the kernel refuses them.
    pub fn apply(&self) -> bool {
        let applied = self.restore().status.success();
        if !applied {
            self.remove();
        }
        applied
    }

    pub fn apply_error(&self) -> String {
        String::from_utf8_lossy(&self.restore().stderr).into_owned()
    }

    fn restore(&self) -> Output {
        match self.tool {
            Tool::Nft => feed("nft", &["-f", "-"], &self.text),
            Tool::IptablesNft => feed("iptables-nft-restore", &[], &self.text),
            Tool::IptablesLegacy => feed("iptables-legacy-restore", &[], &self.text),
        }
    }

    pub fn remove(&self) {
        match self.tool {
            Tool::Nft => {
                feed(
                    "nft",
                    &["-f", "-"],
                    "table inet t\ndelete table inet t\ntable ip t\ndelete table ip t\ntable ip6 t\ndelete table ip6 t\ntable netdev t\ndelete table netdev t\n",
                );
            }
            Tool::IptablesNft => {
                feed(
                    "nft",
                    &["-f", "-"],
                    "table ip filter\ndelete table ip filter\ntable ip mangle\ndelete table ip mangle\n",
                );
            }
            Tool::IptablesLegacy => {
                let empty = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
                feed("iptables-legacy-restore", &[], empty);
            }
        }
    }
}

fn feed(program: &str, arguments: &[&str], text: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const SETS: &str = "
  counter c { }
  quota q { 2000 bytes }
  limit l { rate 5/second }
  set ports { type inet_service; elements = { 80, 443 } }
  set counted { type inet_service; counter; elements = { 80 } }
  set limited { type inet_service; limit rate 5/second; elements = { 80 } }
  set quotaed { type inet_service; quota 900 bytes; elements = { 80 } }
  set timed { type inet_service; flags timeout; elements = { 80 timeout 60ms } }
  set seen { type inet_service; size 100; flags dynamic,timeout; timeout 30ms; }
  set small { type inet_service; size 1; flags dynamic; }
  set limits { type inet_service; size 100; flags dynamic; }
  map marks { type inet_service : mark; elements = { 80 : 1 } }
  map counters { type inet_service : counter; elements = { 80 : \"c\" } }
  map quotas { type inet_service : quota; elements = { 80 : \"q\" } }
";

fn nft(random: &mut Random) -> String {
    let family = random.pick(&["inet", "inet", "ip", "ip6", "netdev"]);
    let base = if family == "netdev" {
        let device = random.pick(&["device a0", "devices = { a0, b0 }"]);
        format!("type filter hook ingress {device} priority 0;")
    } else {
        let hook = random.pick(&["forward", "forward", "prerouting", "postrouting"]);
        let priority = random.pick(&["0", "0", "-150", "-300", "300"]);
        let policy = if hook == "forward" && random.chance(15) { " policy drop;" } else { "" };
        format!("type filter hook {hook} priority {priority};{policy}")
    };
    let varied = random.chance(45);
    let mut chains = String::new();
    let late = "type filter hook postrouting priority 10;";
    for (name, head) in [("c2", ""), ("c1", ""), ("base", base.as_str()), ("late", late)] {
        if name == "late" && (family == "netdev" || random.chance(70)) {
            continue;
        }
        let count = if head.is_empty() { random.below(3) } else { 1 + random.below(5) };
        let rules: Vec<String> = (0..count).map(|_| rule(random, family, name, varied)).collect();
        chains.push_str(&format!("  chain {name} {{ {head}\n    {}\n  }}\n", rules.join("\n    ")));
    }
    let maps = "  map verdicts { type inet_service : verdict; elements = { 80 : accept, 443 : drop } }
  map limitedverdicts { type inet_service : verdict; limit rate 5/second; elements = { 80 : accept } }\n";
    format!("table {family} t {{{SETS}{maps}{chains}}}\n")
}

/// One rule; `c1` and `c2` are declared before what leads to them.
fn rule(random: &mut Random, family: &str, chain: &str, varied: bool) -> String {
    let mut words = Vec::new();
    let four = family == "ip" || (family != "ip6" && random.chance(60));
    let of = |both: &'static [&'static str],
              v4: &'static [&'static str],
              v6: &'static [&'static str]| {
        let own = if four { v4 } else { v6 };
        [both, own].concat()
    };
    for _ in 0..random.below(3) {
        let vary = varied && random.chance(25);
        let choices =
            if vary { of(VARYING, VARYING4, VARYING6) } else { of(CONSTANT, CONSTANT4, CONSTANT6) };
        words.push(random.pick(&choices));
    }
    for _ in 0..random.below(3) {
        let vary = varied && random.chance(20);
        let choices = if vary { of(UNSTEADY, UNSTEADY4, UNSTEADY6) } else { STEADY.to_vec() };
        words.push(random.pick(&choices));
    }
    let vary = varied && random.chance(12);
    if random.chance(60) || words.is_empty() {
        let verdict = random.pick(if vary { VARYING_VERDICTS } else { VERDICTS });
        let leads = verdict.contains("c1") || verdict.contains("c2");
        words.push(if leads && chain.starts_with('c') { "return" } else { verdict });
    }
    // What the family has no word for.
    let text = words.join(" ");
    match family {
        "ip" | "ip6" => text.replace("meta nfproto ipv4", "meta protocol ip"),
        _ => text,
    }
}

const MATCHES: &[&str] = &[
    "-p tcp",
    "-p udp",
    "-p tcp -m tcp --dport 80",
    "-p tcp -m tcp --sport 80",
    "-i a0",
    "-i b0",
    "! -i a0",
    "-s 10.1.0.2",
    "-d 10.2.0.0/24",
    "-m conntrack --ctstate ESTABLISHED,RELATED",
    "-m conntrack --ctstate NEW",
    "-m conntrack ! --ctstate ESTABLISHED",
    "-m conntrack --ctdir ORIGINAL",
    "-m state --state ESTABLISHED",
    "-m mark --mark 1",
    "-m connmark --mark 1",
    "-m multiport -p tcp --dports 22,80",
    "-m iprange --src-range 10.1.0.1-10.1.0.9",
    "-m addrtype --dst-type UNICAST",
    "-m comment --comment \"-m length\"",
    "-p tcp -m tcp --tcp-flags SYN,ACK ACK",
    "-p tcp -m tcp --syn",
    "! -f",
    "-m mac --mac-source 02:00:00:00:00:09",
    "-m pkttype --pkt-type unicast",
    "-m owner --uid-owner 0",
    "-m connmark ! --mark 0",
    "-m mark ! --mark 0/0xff",
    "-m conntrack --ctstate DNAT",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT",
    "-m conntrack --ctstatus CONFIRMED",
];
const VARYING_MATCHES: &[&str] = &[
    "-p tcp -m tcp --tcp-flags PSH PSH",
    "-p tcp -m tcp --tcp-flags ALL ACK",
    "-p tcp -m tcp --tcp-option 8",
    "-p tcp -m tcp ! --tcp-option 34",
    "-m length --length 0:200",
    "-m dscp --dscp 8",
    "-m dscp ! --dscp-class EF",
    "-m tos --tos 0x20/0xff",
    "-m ttl --ttl-gt 64",
    "-m limit --limit 5/sec",
    "-m statistic --mode nth --every 3",
    "-m statistic --mode random --probability 0.4",
    "-m connbytes --connbytes 2000: --connbytes-dir both --connbytes-mode bytes",
    "-m hashlimit --hashlimit-upto 5/sec --hashlimit-name h",
    "-m quota --quota 900",
    "-m recent --name r --set",
    "-m recent --name r --update --hitcount 5",
    "-m string --algo bm --string aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "-m u32 --u32 0&0xffff=0:200",
    "-m ecn --ecn-ip-ect 3",
    "-m cpu --cpu 0",
    "-m conntrack --ctexpire 0:299",
    "-m conntrack --ctstatus ASSURED",
    "-p tcp -m ecn --ecn-tcp-ece",
];
const TARGETS: &[&str] = &[
    "-j ACCEPT",
    "-j ACCEPT",
    "-j DROP",
    "-j RETURN",
    "-j REJECT",
    "-j user",
    "-g user",
    "-j LOG",
    "",
];
const MANGLES: &[&str] = &[
    "-j MARK --set-mark 1",
    "-j MARK --set-mark 2",
    "-j MARK --or-mark 4",
    "-j CONNMARK --save-mark",
    "-j CONNMARK --restore-mark",
    "-j CONNMARK --set-mark 1",
    "-p tcp --syn -j TCPMSS --set-mss 1200",
    "-j ACCEPT",
    "-j DROP",
    "-j CLASSIFY --set-class 1:1",
    "-j user",
];
const VARYING_MANGLES: &[&str] = &[
    "-j CONNMARK --xor-mark 1",
    "-j DSCP --set-dscp 8",
    "-j TTL --ttl-set 64",
    "-j TOS --set-tos 0x20",
    "-j TTL --ttl-inc 1",
    "-p tcp -j TCPOPTSTRIP --strip-options timestamp",
];

fn iptables(random: &mut Random) -> String {
    let mangle = random.chance(45);
    let varied = random.chance(45);
    let hook =
        if mangle { random.pick(&["PREROUTING", "FORWARD", "POSTROUTING"]) } else { "FORWARD" };
    let mut text = format!(
        "*{}\n:{hook} ACCEPT [0:0]\n:user - [0:0]\n",
        if mangle { "mangle" } else { "filter" }
    );
    for index in 0..1 + random.below(5) {
        let chain = if index > 0 && random.chance(25) { "user" } else { hook };
        let mut words = vec!["-A", chain];
        for _ in 0..random.below(3) {
            let vary = varied && random.chance(25);
            words.push(random.pick(if vary { VARYING_MATCHES } else { MATCHES }));
        }
        let vary = varied && random.chance(15);
        let target = match (mangle, vary) {
            (true, true) => random.pick(VARYING_MANGLES),
            (true, false) => random.pick(MANGLES),
            (false, _) => random.pick(TARGETS),
        };
        words.push(if chain == "user" && target.contains("user") { "-j ACCEPT" } else { target });
        text.push_str(&words.join(" "));
        text.push('\n');
    }
    text.push_str("COMMIT\n");
    text
}
