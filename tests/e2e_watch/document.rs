//! Blocks of docs/feature-flags.md, so that the document cannot differ from what the tests run.

const DOCUMENT: &str = include_str!("../../docs/feature-flags.md");

/// Address of the proxy in the document.
pub const PROXY: &str = "127.0.0.1:8080";

/// Returns the fenced block of this language. The document must have exactly one.
pub fn block(language: &str) -> &'static str {
    let fence = format!("```{language}\n");
    assert_eq!(DOCUMENT.matches(&fence).count(), 1, "blocks of {language}");
    let (_, rest) = DOCUMENT.split_once(&fence).expect("a block");
    rest.split_once("```").expect("its end").0
}

/// Returns a text with all of `old` replaced. The text must contain it.
pub fn replace(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "no {old:?} in {text}");
    text.replace(old, new)
}
