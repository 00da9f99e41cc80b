//! A holder under test and its control connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A running holder; killed on drop.
pub struct Holder {
    pub process: Child,
    pub path: PathBuf,
}

impl Holder {
    pub fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    pub fn start_with(name: &str, flags: &[&str]) -> Self {
        let path = std::env::temp_dir().join(format!("nb-{}-{name}.sock", std::process::id()));
        Self::spawn(&path, flags)
    }

    /// One that takes over from this one, on the same control socket.
    pub fn successor(&self) -> Self {
        let path = self.path.to_str().expect("a plain path");
        Self::spawn(&self.path, &["--adopt", path])
    }

    fn spawn(path: &Path, flags: &[&str]) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_natbridge-holder"))
            .arg("--socket")
            .arg(path)
            .args(flags)
            .spawn()
            .expect("the holder runs");
        let holder = Self { process, path: path.to_owned() };
        let pid = u64::from(holder.process.id());
        wait_for("the holder answers", || {
            let Ok(stream) = UnixStream::connect(&holder.path) else { return false };
            Control::new(stream).ok("hello", json!({}))["pid"].as_u64() == Some(pid)
        });
        holder
    }

    pub fn control(&self) -> Control {
        Control::new(UnixStream::connect(&self.path).expect("connected"))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

pub struct Control {
    stream: BufReader<UnixStream>,
    id: u64,
}

impl Control {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        Self { stream: BufReader::new(stream), id: 0 }
    }

    /// The whole answer.
    pub fn call(&mut self, method: &str, fields: Value) -> Value {
        self.id += 1;
        let mut request = fields;
        request["id"] = json!(self.id);
        request["method"] = json!(method);
        let answer = self.raw(&format!("{request}\n"));
        assert_eq!(answer["id"], json!(self.id), "{answer}");
        answer
    }

    /// Sends a line as it is.
    pub fn raw(&mut self, line: &str) -> Value {
        self.stream.get_mut().write_all(line.as_bytes()).expect("sent");
        let mut answer = String::new();
        self.stream.read_line(&mut answer).expect("an answer in time");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// The result; an error fails the test.
    pub fn ok(&mut self, method: &str, fields: Value) -> Value {
        let answer = self.call(method, fields);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// The error; a result fails the test.
    pub fn refused(&mut self, method: &str, fields: Value) -> Value {
        let answer = self.call(method, fields);
        assert!(answer.get("error").is_some(), "{method}: {answer}");
        answer["error"].clone()
    }

    pub fn bindings(&mut self) -> Vec<Value> {
        self.ok("list", json!({}))["bindings"].as_array().expect("bindings").clone()
    }

    /// What is open of `connections` or `sessions`, and what became of others.
    pub fn limits(&mut self, kind: &str) -> Value {
        self.ok("list", json!({}))["limits"][kind].clone()
    }

    /// The state of the only binding.
    pub fn only(&mut self) -> Value {
        let bindings = self.bindings();
        assert_eq!(bindings.len(), 1, "{bindings:?}");
        bindings[0].clone()
    }
}

/// A binding as the protocol has it.
pub fn binding(key: &str, protocol: &str, host: SocketAddr, target: SocketAddr) -> Value {
    json!({
        "key": key, "protocol": protocol,
        "hostAddress": host.ip().to_string(), "hostPort": host.port(),
        "targetAddress": target.ip().to_string(), "targetPort": target.port(),
    })
}

/// A port of this address that is free for TCP and, most likely, for UDP.
pub fn free(address: &str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// Fails the test if it has not come true in five seconds.
pub fn wait_for(what: &str, mut come_true: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !come_true() {
        assert!(Instant::now() < end, "in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
