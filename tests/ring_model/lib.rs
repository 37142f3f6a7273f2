//! The program's ring and its types, for the model checker: see `src/ring/model.rs`.

#![allow(dead_code, reason = "the rest of the program is not here")]

#[path = "../../src/domain.rs"]
pub mod domain;

#[path = "../../src/ring/mod.rs"]
pub mod ring;
