//! The page: one document, composed from `page.html`, `page.css` and the scripts of this folder, which are written for
//! people and served as they are. Its content security policy allows exactly this style and this script, so that nothing
//! that a callback contains can run.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Response};
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(
    include_str!("page.js"),
    include_str!("words.js"),
    include_str!("filter.js"),
    include_str!("details.js"),
    include_str!("lists.js"),
    include_str!("charts.js"),
    include_str!("state.js"),
    include_str!("connection.js"),
    include_str!("start.js"),
);

/// Where `page.html` has the version, the style and the script.
const PLACES: [(&str, &str); 3] =
    [("{{version}}", env!("CARGO_PKG_VERSION")), ("{{style}}", STYLE), ("{{script}}", SCRIPT)];

/// The document and its policy.
struct Page {
    document: Bytes,
    policy: Option<HeaderValue>,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
    document: document().into(),
    // Without a policy the page is not served.
    policy: HeaderValue::from_str(&policy()).ok(),
});

/// The page; none if its policy cannot be written as a header.
pub(super) fn response() -> Option<Response<Full<Bytes>>> {
    let mut response = Response::new(Full::new(PAGE.document.clone()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, PAGE.policy.clone()?);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    headers.insert(opener, HeaderValue::from_static("same-origin"));
    protect(headers);
    Some(response)
}

/// Sets the headers that keep an answer out of caches and out of other web sites.
pub(super) fn protect(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(policy, HeaderValue::from_static("same-origin"));
}

fn document() -> String {
    let (mut document, mut rest) = (String::with_capacity(HTML.len() + STYLE.len() + SCRIPT.len()), HTML);
    // What is inserted is not looked at again.
    while let Some((at, place, text)) = next_place(rest) {
        document.push_str(&rest[..at]);
        document.push_str(text);
        rest = &rest[at + place.len()..];
    }
    document.push_str(rest);
    document
}

fn next_place(rest: &str) -> Option<(usize, &'static str, &'static str)> {
    PLACES.iter().filter_map(|(place, text)| Some((rest.find(place)?, *place, *text))).min_by_key(|(at, ..)| *at)
}

fn policy() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_fit_into_one_document() {
        let count = |place: &str| HTML.matches(place).count();
        assert!(count("{{version}}") > 0 && count("{{style}}") == 1 && count("{{script}}") == 1);
        let (style, script) = (STYLE.to_lowercase(), SCRIPT.to_lowercase());
        assert!(!style.contains("</style") && !script.contains("</script") && !script.contains("<!--"));
        let document = document();
        assert!(document.contains(STYLE) && document.contains(SCRIPT));
        assert!(document.contains(&format!("\"{}\"", env!("CARGO_PKG_VERSION"))));
        // The style and the script are the only ones, and nothing comes from elsewhere.
        let html = HTML.to_lowercase();
        assert_eq!((html.matches("<style").count(), html.matches("<script").count()), (1, 1));
        for foreign in [" src=", " style=", " onclick=", "href=\"http", "href=\"/"] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }
}
