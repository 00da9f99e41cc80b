//! What `findMeters` lets pass, held against the kernel: random rulesets, and random packets of one
//! established connection through each. Where no meter is found, all packets that the fast path would
//! carry must fare alike. Needs root, nft, iptables and the repository's Node.
//!
//! `NATBRIDGE_FUZZ_SECONDS` sets how long, `NATBRIDGE_FUZZ_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

#[path = "../common/mod.rs"]
mod common;
mod flow;
mod grammar;
mod random;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flow::{Direction, Fate, Flow, Router};
use grammar::Ruleset;
use natbridge_datapath::firewall::read_foreign_ruleset;
use random::Random;
use serde_json::{Value, json};

const PACKETS: u32 = 20;

/// The judge, a process that lives as long as the test.
struct Judge {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Judge {
    fn start() -> Self {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let mut child = Command::new(format!("{root}/node_modules/.bin/node"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/meters/judge.ts"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, to, from: BufReader::new(from) }
    }

    /// The meters that concern the router's devices.
    fn meters(&mut self) -> Vec<Value> {
        let foreign = read_foreign_ruleset().unwrap();
        let question = json!({ "nft": foreign.nft, "legacy": foreign.legacy });
        writeln!(self.to, "{question}").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        let meters: Vec<Value> = serde_json::from_str(&answer).unwrap();
        let here = |meter: &Value| ["host", "a0", "b0"].contains(&meter["where"].as_str().unwrap());
        meters.into_iter().filter(here).collect()
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

#[derive(Debug, Default)]
struct Tally {
    refused: u32,
    hindered: u32,
    never_established: u32,
    free: u32,
}

/// Whether all packets of a connection fare alike; `None` if none comes about.
fn fares_alike(router: &mut Router, random: &mut Random) -> Option<Vec<(Direction, Vec<Fate>)>> {
    let flow = Flow::random(random);
    router.establish(&flow)?;
    let mut fates = Vec::new();
    for direction in [Direction::There, Direction::Back] {
        fates.push((direction, router.send(&flow, direction, PACKETS, random)));
    }
    Some(fates)
}

#[test]
fn what_may_be_carried_fares_alike() {
    let seconds = number("NATBRIDGE_FUZZ_SECONDS").unwrap_or(30);
    let seed = number("NATBRIDGE_FUZZ_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("NATBRIDGE_FUZZ_SEED={seed}");
    let mut router = Router::new();
    let mut judge = Judge::start();
    let mut tally = Tally::default();
    let begun = Instant::now();
    let mut case = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        case += 1;
        let mut random = Random::new(seed.wrapping_add(case));
        let ruleset = Ruleset::random(&mut random);
        if !ruleset.apply() {
            tally.refused += 1;
            if std::env::var("NATBRIDGE_FUZZ_VERBOSE").is_ok() {
                println!("refused: {}\n{}", ruleset.text, ruleset.apply_error());
            }
            continue;
        }
        let meters = judge.meters();
        if !meters.is_empty() {
            tally.hindered += 1;
            if std::env::var("NATBRIDGE_FUZZ_VERBOSE").is_ok() {
                println!("hindered: {meters:?}");
            }
            ruleset.remove();
            continue;
        }
        for _ in 0..2 {
            match fares_alike(&mut router, &mut random) {
                None => tally.never_established += 1,
                Some(fates) => {
                    tally.free += 1;
                    for (direction, fates) in fates {
                        assert!(
                            fates.windows(2).all(|pair| pair[0] == pair[1]),
                            "NATBRIDGE_FUZZ_SEED={} {direction:?}: {fates:#?}\nby {:?}\n{}\nas listed {}",
                            seed.wrapping_add(case - 1),
                            ruleset.tool,
                            ruleset.text,
                            read_foreign_ruleset().unwrap().nft,
                        );
                    }
                }
            }
        }
        ruleset.remove();
    }
    println!("{case} rulesets: {tally:?}");
    assert!(tally.free > 0 && tally.hindered > 0, "{tally:?}");
    assert!(u64::from(tally.refused) < case / 2, "the grammar is mostly refused: {tally:?}");
}
