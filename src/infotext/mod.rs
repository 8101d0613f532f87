//! Writing and reading A1111's generation parameters text. Uses no other room.
