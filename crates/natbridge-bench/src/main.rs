//! Load generators of the benchmark. Each runs inside a network namespace for a bounded time and
//! prints one JSON object.
//!
//! ```text
//! natbridge-load serve ADDRESS SECONDS                 TCP server of the next two
//! natbridge-load connections ADDRESS SECONDS THREADS   connect, request, response, close
//! natbridge-load requests ADDRESS SECONDS CONNECTIONS  requests on kept connections
//! natbridge-load udp-receive ADDRESS SECONDS           counts what arrives
//! natbridge-load udp-send ADDRESS SECONDS              64-byte payloads, as fast as they go
//! ```

mod datagrams;
mod percentile;
mod server;
mod streams;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("natbridge-load: {failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<String> {
    let [role, address, seconds, rest @ ..] = arguments else {
        bail!("usage: natbridge-load ROLE ADDRESS SECONDS [COUNT]");
    };
    let address: SocketAddr = address.parse().context("ADDRESS is HOST:PORT")?;
    let seconds: u64 = seconds.parse().context("SECONDS is a number")?;
    if !(1..=3600).contains(&seconds) {
        bail!("SECONDS is 1 to 3600");
    }
    let time = Duration::from_secs(seconds);
    let count = || -> anyhow::Result<usize> {
        let count = rest.first().context("COUNT is missing")?;
        count.parse().context("COUNT is a number")
    };
    match role.as_str() {
        "serve" => server::serve(address, time),
        "connections" => streams::connections(address, time, count()?),
        "requests" => streams::requests(address, time, count()?),
        "udp-receive" => datagrams::receive(address, time),
        "udp-send" => datagrams::send(address, time),
        _ => bail!("no such role: {role}"),
    }
}
