//! libbpf's messages: kept for the error they belong to, instead of written to stderr.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use libbpf_rs::{PrintLevel, set_print};

/// Lines kept: the end of a verifier log is what tells.
const KEPT: usize = 40;

static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Begins to keep libbpf's messages.
pub fn collect() {
    set_print(Some((PrintLevel::Warn, keep)));
    take();
}

/// The last messages since the last call.
pub fn take() -> String {
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let text = lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    lines.clear();
    text
}

fn keep(_level: PrintLevel, message: String) {
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    for line in message.lines() {
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}
