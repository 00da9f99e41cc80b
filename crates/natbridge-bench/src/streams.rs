//! TCP clients.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::percentile::percentile;
use crate::server::{CLOSE, KEEP, MESSAGE};

const PATIENCE: Duration = Duration::from_secs(5);

/// What one client thread counted.
#[derive(Default)]
struct Count {
    done: u64,
    failed: u64,
    samples: Vec<Duration>,
}

/// Opens connections one after another on each thread: connect, request, response, the server's
/// close, close. The server closes first, so that TIME_WAIT stays there and the client's ports are
/// free again.
pub fn connections(address: SocketAddr, time: Duration, threads: usize) -> anyhow::Result<String> {
    let (total, elapsed) = on_threads(threads, time, |end, count| {
        while Instant::now() < end {
            let begin = Instant::now();
            match one_connection(address) {
                Ok(()) => {
                    count.done += 1;
                    count.samples.push(begin.elapsed());
                }
                Err(_) => count.failed += 1,
            }
        }
    });
    Ok(report(total, elapsed))
}

fn one_connection(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(&mut stream, CLOSE)?;
    // Nothing but the end follows.
    let mut rest = [0; 1];
    match stream.read(&mut rest)? {
        0 => Ok(()),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

fn exchange(stream: &mut TcpStream, kind: u8) -> std::io::Result<()> {
    let mut message = [0; MESSAGE];
    message[0] = kind;
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}

/// Sends requests one after another on each of some kept connections.
pub fn requests(address: SocketAddr, time: Duration, connections: usize) -> anyhow::Result<String> {
    let (total, elapsed) = on_threads(connections, time, |end, count| {
        let opened = TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let Ok(mut stream) = opened else {
            count.failed += 1;
            return;
        };
        while Instant::now() < end {
            let begin = Instant::now();
            if exchange(&mut stream, KEEP).is_err() {
                count.failed += 1;
                return;
            }
            count.done += 1;
            count.samples.push(begin.elapsed());
        }
    });
    Ok(report(total, elapsed))
}

fn on_threads(
    threads: usize,
    time: Duration,
    work: impl Fn(Instant, &mut Count) + Sync,
) -> (Count, Duration) {
    let begin = Instant::now();
    let end = begin + time;
    let mut total = Count::default();
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = Count::default();
                    work(end, &mut count);
                    count
                })
            })
            .collect();
        for thread in running {
            let Ok(count) = thread.join() else { continue };
            total.done += count.done;
            total.failed += count.failed;
            total.samples.extend(count.samples);
        }
    });
    (total, begin.elapsed())
}

fn report(mut total: Count, elapsed: Duration) -> String {
    total.samples.sort_unstable();
    let micros = |share| percentile(&total.samples, share);
    let (p50, p99) =
        if total.samples.is_empty() { (0.0, 0.0) } else { (micros(0.5), micros(0.99)) };
    format!(
        r#"{{"done":{},"failed":{},"perSecond":{:.1},"p50":{p50:.1},"p99":{p99:.1}}}"#,
        total.done,
        total.failed,
        total.done as f64 / elapsed.as_secs_f64(),
    )
}
