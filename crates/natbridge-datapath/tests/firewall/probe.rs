//! Servers that say who they are and whom they see, and clients that ask them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::namespaces::Namespaces;

/// How long a client waits before it takes silence for an answer.
const PATIENCE: Duration = Duration::from_millis(350);

/// What a client got: `server sees client-address`, or why nothing.
pub type Answer = String;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Serves TCP and UDP on this port of both families, as `name`.
pub fn serve(namespaces: &Namespaces, name: &'static str, port: u16) {
    let tcp = namespaces.inside(name, || TcpListener::bind(("::", port)).unwrap());
    let udp = namespaces.inside(name, || UdpSocket::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let seen = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("{name} sees {seen}").as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ =
                udp.send_to(format!("{name} sees {}", from.ip().to_canonical()).as_bytes(), from);
        }
    });
}

/// Asks once, from `source` if given, within the calling thread's namespace.
pub fn ask(transport: Transport, source: Option<SocketAddr>, target: SocketAddr) -> Answer {
    let answer = match transport {
        Transport::Tcp => ask_tcp(source, target),
        Transport::Udp => ask_udp(source, target),
    };
    answer.unwrap_or_else(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "refused".into(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "nothing".into(),
        _ => format!("{error}"),
    })
}

fn ask_tcp(source: Option<SocketAddr>, target: SocketAddr) -> std::io::Result<Answer> {
    assert!(source.is_none(), "std binds no TCP client");
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_udp(source: Option<SocketAddr>, target: SocketAddr) -> std::io::Result<Answer> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind(source.unwrap_or(SocketAddr::new(any, 0)))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
