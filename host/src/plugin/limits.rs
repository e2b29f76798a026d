//! What one instance may have: memory and table elements over all that it has
//! of each, handles, and bytes in a call to the host.

use crate::manifest::Limits;
use crate::verdict::Outcome;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTableError;

/// A guest that is refused more sees its growth fail, as the standard has it,
/// and mostly traps then; whether it does is not ours to say.
#[derive(Debug)]
pub(super) struct InstanceLimit {
    memory_max: u64,
    pub(super) memory: u64,
    elements_max: u32,
    elements: u64,
    refused: Option<Refused>,
}

/// What was asked for beyond its limit last.
#[derive(Debug, Clone, Copy)]
enum Refused {
    Memory,
    Elements,
}

impl InstanceLimit {
    pub(super) fn of(limits: &Limits) -> Self {
        let (memory_max, elements_max) = (limits.memory, limits.table_elements);
        Self { memory_max, memory: 0, elements_max, elements: 0, refused: None }
    }

    /// What an earlier run was refused is not why this one fails.
    pub(super) fn begin(&mut self) {
        self.refused = None;
    }

    /// The limit that a guest failed at, if it failed at one.
    pub(super) fn outcome(&self, error: &wasmtime::Error, limits: &Limits) -> Option<Outcome> {
        // Wasmtime has no types for two of these; tests hold its words to us.
        let told = error.root_cause().to_string();
        if told.contains("handle limit exceeded")
            || matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full))
        {
            return Some(Outcome::HandleLimit(limits.handles));
        }
        if told.contains("fuel allocated for hostcalls") {
            return Some(Outcome::HostCallLimit(limits.host_call));
        }
        self.refused.map(|refused| match refused {
            Refused::Memory => Outcome::MemoryLimit(limits.memory),
            Refused::Elements => Outcome::TableLimit(limits.table_elements),
        })
    }
}

impl ResourceLimiter for InstanceLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let bytes = self.memory + desired.saturating_sub(current) as u64;
        if bytes > self.memory_max {
            self.refused = Some(Refused::Memory);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.memory = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let elements = self.elements + desired.saturating_sub(current) as u64;
        if elements > u64::from(self.elements_max) {
            self.refused = Some(Refused::Elements);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.elements = elements;
        Ok(true)
    }
}
