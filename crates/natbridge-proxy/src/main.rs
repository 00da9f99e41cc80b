//! The holder.
fn main() {}
