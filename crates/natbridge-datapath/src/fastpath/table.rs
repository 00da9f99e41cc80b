//! Typed access to the maps.

use std::marker::PhantomData;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::abi::{Plain, bytes_of, value_of};
use super::pins::Pins;
use crate::error::{Context, Result};

/// Entries fetched by one system call.
const BATCH: u32 = 4096;

/// A hash or array map.
#[derive(Debug)]
pub struct Table<K, V> {
    map: MapHandle,
    name: &'static str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Opens a pinned map.
    ///
    /// # Errors
    /// `unsupported` if nothing is loaded, or the kernel's.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self> {
        Ok(Self { map: pins.open_map(name)?, name, types: PhantomData })
    }

    /// How many entries fit.
    pub fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let bytes = self
            .map
            .lookup(bytes_of(key), MapFlags::ANY)
            .context(format!("reading map {}", self.name))?;
        Ok(bytes.map(|bytes| value_of(&bytes)))
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// The kernel's: `io` (E2BIG) when the map is full.
    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        self.map
            .update(bytes_of(key), bytes_of(value), MapFlags::ANY)
            .context(format!("writing map {}", self.name))
    }

    /// Removes `key`, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, key: &K) -> Result<()> {
        self.take(key).map(|_| ())
    }

    /// Removes `key`; answers whether it was there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, key: &K) -> Result<bool> {
        match self.map.delete(bytes_of(key)) {
            Ok(()) => Ok(true),
            Err(cause) if cause.kind() == libbpf_rs::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(cause).context(format!("deleting from map {}", self.name)),
        }
    }

    /// All entries of a hash map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let doing = || format!("listing map {}", self.name);
        let batch = BATCH.min(self.capacity());
        let entries = self.map.lookup_batch(batch, MapFlags::ANY, MapFlags::ANY).context(doing())?;
        Ok(entries.map(|(key, value)| (value_of(&key), value_of(&value))).collect())
    }
}

/// A per-CPU array.
#[derive(Debug)]
pub struct PerCpu<V> {
    map: MapHandle,
    name: &'static str,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain> PerCpu<V> {
    /// Opens a pinned map.
    ///
    /// # Errors
    /// `unsupported` if nothing is loaded, or the kernel's.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self> {
        Ok(Self { map: pins.open_map(name)?, name, types: PhantomData })
    }

    /// Each CPU's value at `index`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, index: u32) -> Result<Vec<V>> {
        let values = self
            .map
            .lookup_percpu(bytes_of(&index), MapFlags::ANY)
            .context(format!("reading map {}", self.name))?;
        Ok(values.unwrap_or_default().iter().map(|bytes| value_of(bytes)).collect())
    }

    /// Zeroes the value at `index` on each CPU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear(&self, index: u32) -> Result<()> {
        let cpus = libbpf_rs::num_possible_cpus().context("counting CPUs")?;
        let zero = vec![bytes_of(&V::default()).to_vec(); cpus];
        self.map
            .update_percpu(bytes_of(&index), &zero, MapFlags::ANY)
            .context(format!("clearing map {}", self.name))
    }
}

impl PerCpu<u64> {
    /// The sum over all CPUs at `index`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sum(&self, index: u32) -> Result<u64> {
        Ok(self.get(index)?.into_iter().fold(0, u64::wrapping_add))
    }
}
