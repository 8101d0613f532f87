//! Emphasis, prompt editing, alternation, AND, extra-network tags, styles, wildcards. Uses no other room; reads no file, clock, environment variable or global.
