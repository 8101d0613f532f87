//! The JSON as A1111 speaks it: serde structs, defaults, resolution into pipeline parameters. May use pipeline types, infotext and imaging.
