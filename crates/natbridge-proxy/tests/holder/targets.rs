//! What stands behind a published port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// Reads to the client's half-close, then answers with a name and what it read, backwards.
pub fn reversing_server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || reverse(client, name));
        }
    });
    address
}

fn reverse(mut client: TcpStream, name: &str) {
    let mut data = Vec::new();
    if client.read_to_end(&mut data).is_err() {
        return;
    }
    data.reverse();
    let _ = client.write_all(name.as_bytes());
    let _ = client.write_all(&data);
    let _ = client.shutdown(Shutdown::Write);
}

/// Sends `data` to the end, and reads to the end.
pub fn exchange(host: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut stream = connect(host);
    let mut writer = stream.try_clone().expect("a second handle");
    let mut answer = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(data).expect("sent");
            writer.shutdown(Shutdown::Write).expect("half-closed");
        });
        stream.read_to_end(&mut answer).expect("an answer");
    });
    answer
}

pub fn connect(host: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(host).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream
}

/// Answers each datagram with a name and the datagram.
pub fn udp_server(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("its address");
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            let _ = socket.send_to(&answer, client);
        }
    });
    address
}

/// A connected client: it takes answers only from the address it sends to.
pub fn udp_client(host: SocketAddr) -> UdpSocket {
    let any = if host.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect(host).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket
}

pub fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.send(question).expect("sent");
    let mut buffer = vec![0; 65536];
    let length = client.recv(&mut buffer).expect("an answer in time");
    buffer.truncate(length);
    buffer
}

/// Bytes without a pattern that a mistaken offset could hide in.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}
