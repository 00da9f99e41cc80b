//! TCP segments that conntrack calls INVALID, and who answers them.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::net::if_::if_nametoindex;

use super::namespaces::Namespaces;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;

/// Whoever waits for silence waits so long, on a machine whose cores are busy.
const SILENCE: Duration = Duration::from_millis(120);
const PATIENCE: Duration = Duration::from_secs(2);

/// One of them at least is far out of any window.
const SEQUENCES: [u32; 2] = [0x1000_0000, 0x9000_0000];
/// The port that injected segments of no connection come from.
const NOBODY: u16 = 7;
/// Where a socket of the host's listens that takes what is meant for others (IP_TRANSPARENT).
const TRANSPARENT: u16 = 8098;

/// Counts what a namespace receives by TCP: of no connection, under a container's own address, resets,
/// and any other.
fn watch(namespaces: &Namespaces, name: &str) {
    namespaces.run(
        name,
        "nft -f - <<EOF
            add table inet watch
            delete table inet watch
            table inet watch {
                counter resets { }
                counter segments { }
                counter untranslated { }
                counter unasked { }
                chain prerouting {
                    type filter hook prerouting priority -300
                    meta l4proto != tcp accept
                    tcp sport 7 counter name unasked accept
                    ip saddr { 172.32.0.10, 172.33.0.10 } counter name untranslated
                    ip6 saddr { fd00:a::10, fd00:b::10 } counter name untranslated
                    tcp flags & rst == rst counter name resets
                    counter name segments
                }
            }\nEOF",
    );
}

fn count(namespaces: &Namespaces, name: &str, counter: &str) -> u64 {
    let listing = namespaces.run(name, &format!("nft list counter inet watch {counter}"));
    let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

/// Answers what was reset, went out untranslated or got no answer, and should not have.
pub fn wrong_answers(namespaces: &Namespaces) -> Vec<String> {
    // Connections stay in these queues: nobody needs to accept them. The host's is as the holder's.
    let _listeners = [("a1", 90), ("b1", 90), ("client", 90), ("host", 8087)]
        .map(|(name, port)| namespaces.inside(name, || TcpListener::bind(("::", port)).unwrap()));
    let _transparent = namespaces.inside("host", transparent_listener);
    let mut wrong = Vec::new();
    for v4 in [true, false] {
        for name in ["client", "a1", "b1"] {
            watch(namespaces, name);
        }
        for part in [silences(namespaces, v4), answers(namespaces, v4)] {
            wrong.extend(part.unwrap_or_else(|failure| vec![failure]));
        }
    }
    wrong
}

fn transparent_listener() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option is read from a whole integer.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let any: SocketAddr = ([0_u16; 8], TRANSPARENT).into();
    socket.bind(&any.into()).unwrap();
    socket.listen(1).unwrap();
    socket
}

struct Addresses {
    host: &'static str,
    exact: &'static str,
    client: &'static str,
    a1: &'static str,
    b1: &'static str,
    i1: &'static str,
}

fn addresses(v4: bool) -> Addresses {
    if v4 {
        Addresses {
            host: "192.0.2.1",
            exact: "192.0.2.3",
            client: "192.0.2.2",
            a1: "172.32.0.10",
            b1: "172.33.0.10",
            i1: "172.34.0.10",
        }
    } else {
        Addresses {
            host: "fd00:c::1",
            exact: "fd00:c::3",
            client: "fd00:c::2",
            a1: "fd00:a::10",
            b1: "fd00:b::10",
            i1: "fd00:1::10",
        }
    }
}

/// Out of the window of translated connections, from either end: nobody hears of it.
fn silences(namespaces: &Namespaces, v4: bool) -> Result<Vec<String>, String> {
    let at = addresses(v4);
    let socket = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
    let mut open = Vec::new();
    // Published, and translated back: a socket of the host listens on the first two numbers.
    for (address, port, server) in
        [(at.host, 8087, at.a1), (at.exact, 8099, at.a1), (at.host, 8092, at.b1)]
    {
        let stream = connect(namespaces, "client", socket(address, port))?;
        let local = stream.local_addr().unwrap();
        inject(namespaces, "client", local, socket(address, port), ACK | PSH);
        let name = if server == at.a1 { "a1" } else { "b1" };
        inject(namespaces, name, socket(server, 90), local, ACK | PSH);
        open.push(stream);
    }
    // Masqueraded: the client is the server here, and knows the connection by the host's address.
    let stream = connect(namespaces, "a1", socket(at.client, 90))?;
    let masqueraded =
        SocketAddr::new(at.host.parse().unwrap(), stream.local_addr().unwrap().port());
    inject(namespaces, "client", socket(at.client, 90), masqueraded, ACK | PSH);
    inject(namespaces, "a1", stream.local_addr().unwrap(), socket(at.client, 90), ACK | PSH);
    open.push(stream);
    // Of no connection: into a network from outside, and out of an internal one.
    for (name, from, to) in [("client", at.client, at.a1), ("i1", at.i1, at.client)] {
        inject(namespaces, name, socket(from, NOBODY), socket(to, 9), SYN | ACK);
    }
    std::thread::sleep(SILENCE);
    let mut wrong = Vec::new();
    for name in ["client", "a1", "b1"] {
        for counter in ["resets", "untranslated", "unasked"] {
            // The containers are the ones whose addresses these are.
            let packets = count(namespaces, name, counter);
            if packets > 0 && (name == "client" || counter != "untranslated") {
                wrong.push(format!("{name} got {packets} {counter}, ipv4 {v4}"));
            }
        }
    }
    Ok(wrong)
}

/// What is not natbridge's is answered as ever.
fn answers(namespaces: &Namespaces, v4: bool) -> Result<Vec<String>, String> {
    let at = addresses(v4);
    let socket = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
    let mut wrong = Vec::new();
    let mut expect = |what: &str, counter: &str, enough: u64| {
        let begun = Instant::now();
        while count(namespaces, "client", counter) < enough {
            if begun.elapsed() > PATIENCE {
                wrong.push(format!("no {counter} for {what}, ipv4 {v4}"));
                return;
            }
        }
    };
    let resets = || count(namespaces, "client", "resets");
    // The same port on an address for which it is not published.
    for (what, target, flags) in [
        ("an unasked SYN-ACK to a listener", socket(at.host, 8099), SYN | ACK),
        ("one to a transparent listener", socket(at.host, TRANSPARENT), SYN | ACK),
        ("strange flags to a closed port", socket(at.host, 9), FIN | PSH | URG),
    ] {
        let before = resets();
        inject(namespaces, "client", socket(at.client, NOBODY), target, flags);
        expect(what, "resets", before + 1);
    }
    // The way back may be another router's.
    let before = count(namespaces, "client", "unasked");
    inject(namespaces, "b1", socket(at.b1, NOBODY), socket(at.client, 9), SYN | ACK);
    expect("half of a routed connection", "unasked", before + 1);
    if !v4 {
        // Link-local scope is the host's own, on a published number too: a challenge ACK (RFC 5961).
        let scope = namespaces.inside("client", || if_nametoindex("eth0").unwrap());
        let target = SocketAddrV6::new("fe80::c1".parse().unwrap(), 8087, 0, scope).into();
        let stream = connect(namespaces, "client", target)?;
        let before = count(namespaces, "client", "segments");
        inject(namespaces, "client", stream.local_addr().unwrap(), target, ACK | PSH);
        // Half of the sequence space away from each other, at most one of them is old data, which
        // conntrack lets through (NFCT_TCP_IGNORE in tcp_in_window): both are answered.
        let both = before + SEQUENCES.len() as u64;
        expect("segments out of the window of the host's own connection", "segments", both);
    }
    Ok(wrong)
}

fn connect(namespaces: &Namespaces, name: &str, target: SocketAddr) -> Result<TcpStream, String> {
    namespaces
        .inside(name, || TcpStream::connect_timeout(&target, PATIENCE))
        .map_err(|error| format!("{name} to {target}: {error}"))
}

/// Sends segments of which at least one is far out of any window.
fn inject(namespaces: &Namespaces, name: &str, from: SocketAddr, to: SocketAddr, flags: u8) {
    namespaces.inside(name, || {
        for sequence in SEQUENCES {
            send(from, to, &segment(from, to, sequence, flags));
        }
    });
}

/// RFC 9293 section 3.1: no options, one byte.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0, b'!']);
    let mut pseudo = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend([0, 6, 0, bytes.len() as u8]);
    pseudo.extend(&bytes);
    pseudo.push(0);
    let words = pseudo.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

fn send(from: SocketAddr, to: SocketAddr, segment: &[u8]) {
    let domain = if from.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket =
        socket2::Socket::new(domain, socket2::Type::RAW, Some(libc::IPPROTO_TCP.into())).unwrap();
    let portless = |mut address: SocketAddr| {
        address.set_port(0);
        address
    };
    socket.bind(&portless(from).into()).unwrap();
    socket.send_to(segment, &portless(to).into()).unwrap();
}
