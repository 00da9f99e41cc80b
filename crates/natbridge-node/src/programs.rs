//! Conversions for the programs of others, and the one watch over them of the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi_derive::napi;
use natbridge_datapath::fastpath::{self, ProgramWatch};

use crate::fastpath::{loaded, rules_changed_if_loaded, with};
use crate::host::HostEvent;

type Listener = Arc<dyn Fn(HostEvent) + Send + Sync>;

static WATCH: Mutex<Option<ProgramWatch>> = Mutex::new(None);
static LISTENER: Mutex<Option<Listener>> = Mutex::new(None);

/// The guarded values are only ever replaced whole, so a panic elsewhere leaves them usable.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who hears of changes; without one nothing is watched any more.
pub fn set_listener(listener: Option<Listener>) {
    let is_over = listener.is_none();
    *held(&LISTENER) = listener;
    if is_over {
        // Taken out first: the watch's thread may wait for the lock before it ends.
        let before = held(&WATCH).take();
        drop(before);
    }
}

fn tell_of_change() {
    rules_changed_if_loaded();
    let listener = held(&LISTENER).clone();
    if let Some(listener) = listener {
        listener(HostEvent { kind: "program".to_owned(), ifindex: 0, removed: false });
    }
}

#[napi(object)]
pub struct ForeignProgram {
    pub ifindex: u32,
    #[napi(ts_type = "'ingress' | 'egress' | 'xdp'")]
    pub hook: String,
    pub id: u32,
    pub name: String,
    pub hinders: bool,
}

impl From<fastpath::ForeignProgram> for ForeignProgram {
    fn from(program: fastpath::ForeignProgram) -> Self {
        Self {
            ifindex: program.ifindex,
            hook: program.hook.as_str().to_owned(),
            id: program.id,
            name: program.name,
            hinders: program.hinders,
        }
    }
}

/// Programs of others on these devices, after natbridge's own took their places again. When they
/// change, all leases end at once and the listener of `watchHost` hears of it.
#[napi]
pub async fn follow_programs(ifindexes: Vec<u32>) -> napi::Result<Vec<ForeignProgram>> {
    with(move |fast_path| {
        let before = held(&WATCH).take();
        drop(before);
        let found = fast_path.foreign_programs(&ifindexes)?;
        let look = move || loaded().clone()?.query_programs(&ifindexes).ok();
        let watch = ProgramWatch::start(found.clone(), look, tell_of_change)?;
        *held(&WATCH) = Some(watch);
        Ok(found.into_iter().map(ForeignProgram::from).collect())
    })
    .await
}
