//! The TCP server behind the published port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, Socket, Type};

/// Bytes of a request and of its response.
pub const MESSAGE: usize = 64;
/// First byte of a request behind which the server closes.
pub const CLOSE: u8 = b'c';
/// First byte of a request behind which another may follow.
pub const KEEP: u8 = b'k';

const ACCEPTORS: usize = 8;

/// Answers requests until the time is over.
pub fn serve(address: SocketAddr, time: Duration) -> anyhow::Result<String> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("binding {address}"))?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    for _ in 0..ACCEPTORS {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                attend(client);
            }
        });
    }
    thread::sleep(time);
    Ok("{}".to_owned())
}

/// Answers the first request here; kept connections get a thread of their own.
fn attend(mut client: TcpStream) {
    if client.set_nodelay(true).is_err() || answer(&mut client) != Some(KEEP) {
        return;
    }
    thread::spawn(move || while answer(&mut client) == Some(KEEP) {});
}

/// The request's first byte, once it is answered.
fn answer(client: &mut TcpStream) -> Option<u8> {
    let mut message = [0; MESSAGE];
    client.read_exact(&mut message).ok()?;
    client.write_all(&message).ok()?;
    Some(message[0])
}
