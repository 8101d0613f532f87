//! The command line: parses it and hands over to [`ancestral::app`].

fn main() {}
