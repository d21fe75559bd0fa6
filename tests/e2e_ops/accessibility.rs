//! Tests of the accessibility of the dashboard: structure of the document, and contrast of its
//! colours.

use crate::common::{Proxy, Redis};

const STYLE: &str = include_str!("../../src/admin/page.css");

/// Lowest contrast of text to its background (WCAG 2.2, level AA).
const MIN_CONTRAST: f64 = 4.5;

/// The page has landmarks, headings, a live region, and tables with captions and head cells.
#[test]
fn page_has_accessible_structure() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let page = proxy.get("/").text();
    for (part, count) in [
        ("<html lang=\"en\">", 1),
        ("<header>", 1),
        ("<main>", 1),
        ("<footer>", 1),
        ("<h1>", 1),
        ("role=\"status\"", 2),
        ("<ul id=\"problems\" aria-live=\"polite\">", 1),
        ("<button id=\"pause\" type=\"button\" aria-pressed=\"false\">", 1),
        // All sections have a heading as their name.
        ("<section aria-labelledby=", page.matches("<h2 id=").count() - 2),
        ("<section id=\"live\" aria-labelledby=\"live-title\" hidden>", 1),
        ("<section id=\"watch\" aria-labelledby=\"watch-title\" hidden>", 1),
        ("<label for=\"watch-key\">", page.matches("<input ").count()),
        ("<output id=\"watch-value\" class=\"text\" for=\"watch-key\" aria-labelledby=", 1),
        ("<caption>", page.matches("<table>").count()),
        ("<th scope=", page.matches("<th ").count()),
        ("<th>", 0),
        // Tables that scroll can be scrolled by keyboard.
        ("class=\"scroll\" role=\"region\" aria-label=", page.matches("tabindex=\"0\"").count()),
    ] {
        assert_eq!(page.matches(part).count(), count, "{part}");
    }
    assert!(STYLE.contains(":focus-visible { outline: 2px solid"), "focus is visible");
    assert!(!STYLE.contains("transition") && !STYLE.contains("animation"), "nothing moves, except the plots");
    assert!(page.contains("(prefers-reduced-motion: reduce)"), "plots move less on request");
}

/// Returns the relative luminance of a colour such as `#f4f5f7`.
fn luminance(colour: &str) -> f64 {
    let channel = |at: usize| {
        let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).expect("two digits")) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
}

/// Each colour of text is readable on each background that it has, in both colour schemes.
#[test]
fn text_contrast_is_sufficient() {
    let schemes: Vec<&str> =
        STYLE.split(":root {").skip(1).map(|rest| rest.split('}').next().expect("an end")).collect();
    assert_eq!(schemes.len(), 2, "a light and a dark scheme");
    for scheme in schemes {
        let colour = |name: &str| {
            let (_, value) = scheme.split_once(&format!("--{name}: ")).unwrap_or_else(|| panic!("no {name}"));
            luminance(&value[..7])
        };
        for (text, backgrounds) in [
            ("text", &["page", "card", "bad-band"][..]),
            ("muted", &["page", "card"]),
            ("one", &["page", "card"]),
            ("two", &["card"]),
            ("bad", &["card", "bad-band"]),
            ("good", &["card"]),
            // A pressed button.
            ("card", &["one"]),
        ] {
            for background in backgrounds {
                let (one, other) = (colour(text), colour(background));
                let contrast = (one.max(other) + 0.05) / (one.min(other) + 0.05);
                assert!(contrast >= MIN_CONTRAST, "{text} on {background}: {contrast:.2} in {scheme}");
            }
        }
    }
}
