//! The dashboard: one page, which asks the rest of the interface for everything that it shows.
//!
//! It holds no data, so it may be had without the token. Whoever gets something foreign into the data
//! gets it into no browser: the page's policy lets it run and look like what we have written, whose
//! digests are in the header, lets it ask nobody but us, and puts it in no frame.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("dashboard.html");

/// What browsers let the page do (Content Security Policy Level 3). `img-src` is for its icon.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; connect-src 'self'; img-src data:; script-src '{}'; style-src '{}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest_of(PAGE, "script"),
        digest_of(PAGE, "style"),
    );
    HeaderValue::try_from(policy).expect("words and base64")
});

/// `GET /` and `GET /dashboard`.
pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, PAGE).into_response()
}

/// The source expression that allows the one inline element with this name (CSP3 §2.3.1).
fn digest_of(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let (_, rest) = page.split_once(&open).expect("the page has one, without attributes");
    let (inside, _) = rest.split_once(&close).expect("it ends");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(inside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `echo -n 'a()' | openssl dgst -sha256 -binary | base64`.
    #[test]
    fn digests_are_of_what_is_between_the_tags() {
        let digest = "sha256-qVpDBgj7bpq5hMAcGp3AOc79J3Y1Z4HvySTwKrWDoy4=";
        assert_eq!(digest_of("<p><script>a()</script>", "script"), digest);
    }

    /// A second one would not run, and an attribute with code or style would be refused as well.
    #[test]
    fn the_page_keeps_to_its_policy() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(PAGE.matches(&format!("</{element}>")).count(), 1, "{element}");
        }
        let markup = PAGE.split("<style>").next().into_iter().chain(PAGE.split("</style>").nth(1));
        let markup: String = markup.map(|part| part.split("<script>").next().unwrap()).collect();
        for foreign in
            ["=\"http", "=\"//", " src=", " style=", " onclick=", " onload=", "javascript:"]
        {
            assert!(!markup.contains(foreign), "{foreign}");
        }
        for unsafe_word in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
        {
            assert!(!PAGE.contains(unsafe_word), "{unsafe_word}");
        }
        let policy = POLICY.to_str().expect("ASCII");
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
    }
}
