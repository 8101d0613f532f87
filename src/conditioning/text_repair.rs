//! ftfy's `fix_text`, as far as it changes what a tokenizer sees.

/// `text` repaired.
#[must_use]
pub(super) fn repair_text(text: &str) -> String {
    text.replace(['\u{2018}', '\u{2019}', '\u{201b}'], "'")
        .replace(['\u{201c}', '\u{201d}', '\u{201f}'], "\"")
}

/// Python's `html.unescape`.
#[must_use]
pub(super) fn unescape_html(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}
