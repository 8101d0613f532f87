//! Resizing, masks, blur, PNG text and picture codecs. Uses no other room.
