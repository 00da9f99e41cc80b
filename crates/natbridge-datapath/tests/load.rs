//! Loading, adopting and unloading. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Loaded, Namespace};

#[test]
fn the_programs_load() {
    let host = Namespace::new("load");
    host.enter();
    let loaded = Loaded::new();
    let programs = loaded.fast_path.list_programs().unwrap();
    assert_eq!(programs.len(), 10);
    assert!(programs.iter().all(|program| program.id != 0 && program.attached.is_empty()));
}
