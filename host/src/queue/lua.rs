//! The Lua scripts.

pub(crate) mod scripts;
