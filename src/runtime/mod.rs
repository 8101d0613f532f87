//! Loading graphs, execution providers, tensors: the only room that names `ort`. Uses no other room.
