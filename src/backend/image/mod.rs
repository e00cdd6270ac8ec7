//! Images of containers: where they are, what they say, and their root file systems.
//!
//! The formats are the OCI image specification's and, where that has its names from there, Docker's image manifest,
//! version 2, schema 2; the protocol is the OCI distribution specification's.

pub mod archive;
pub mod auth;
pub mod blob;
pub mod cache;
pub mod config;
pub mod digest;
pub mod layers;
pub mod layout;
pub mod local;
pub mod manifest;
pub mod obtain;
mod progress;
pub mod reference;
pub mod registry;
