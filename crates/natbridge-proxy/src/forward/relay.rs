//! Copying between two connected stream sockets.

use std::io;
use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use super::with_buffer;
use crate::binding::Counters;
use crate::pool::Place;

/// Chunks of one direction before the others get their turn.
const TURN: u32 = 16;

/// Where what is carried is told.
pub struct Meter<'a> {
    pub counters: &'a Counters,
    pub place: &'a Place,
}

impl Meter<'_> {
    fn carried(&self, bytes: usize) {
        self.counters.carried(bytes);
        self.place.touch();
    }
}

/// Copies both ways until both ends have closed. An end of one direction is passed on as a
/// half-close while the other goes on.
///
/// # Errors
/// Either socket failed; the caller resets both.
pub async fn relay(client: &TcpStream, target: &TcpStream, meter: &Meter<'_>) -> io::Result<()> {
    tokio::try_join!(pump(client, target, meter), pump(target, client, meter))?;
    Ok(())
}

enum Step {
    End,
    Copied,
    /// The receiving side takes no more: these bytes are left over.
    Blocked(Vec<u8>),
}

async fn pump(from: &TcpStream, to: &TcpStream, meter: &Meter<'_>) -> io::Result<()> {
    let mut turn = 0;
    loop {
        from.readable().await?;
        match step(from, to, meter) {
            Ok(Step::End) => return end(to),
            Ok(Step::Copied) => {}
            Ok(Step::Blocked(rest)) => drain(to, &rest, meter).await?,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => continue,
            Err(cause) => return Err(cause),
        }
        turn += 1;
        if turn % TURN == 0 {
            yield_now().await;
        }
    }
}

/// Passes the end of one direction on. The other side may have reset the connection meanwhile.
fn end(to: &TcpStream) -> io::Result<()> {
    match SockRef::from(to).shutdown(Shutdown::Write) {
        Err(cause) if cause.kind() != io::ErrorKind::NotConnected => Err(cause),
        _ => Ok(()),
    }
}

fn step(from: &TcpStream, to: &TcpStream, meter: &Meter<'_>) -> io::Result<Step> {
    with_buffer(|buffer| {
        let length = from.try_read(buffer)?;
        if length == 0 {
            return Ok(Step::End);
        }
        // Not try_write(): a fresh socket is not known to be writable yet.
        let sent = match SockRef::from(to).send(&buffer[..length]) {
            Ok(sent) => sent,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => 0,
            Err(cause) => return Err(cause),
        };
        meter.carried(sent);
        let rest = &buffer[sent..length];
        Ok(if rest.is_empty() { Step::Copied } else { Step::Blocked(rest.to_vec()) })
    })
}

/// Writes what is left before anything more is read: that is the backpressure.
async fn drain(to: &TcpStream, rest: &[u8], meter: &Meter<'_>) -> io::Result<()> {
    let mut rest = rest;
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(sent) => {
                meter.carried(sent);
                rest = &rest[sent..];
            }
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}
