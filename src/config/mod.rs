//! Command line flags under A1111's names, the options table and its file. Uses no other room.

mod options;

pub use options::Options;
