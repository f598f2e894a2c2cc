//! Who may ask over TCP: whoever shows the token in a header.
//!
//! A header of its own, and no cookie: a browser adds none to a request that another page makes it
//! send, so neither that page nor one whose name suddenly leads here can ask or order anything.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::warn;

use super::foreign;
use super::serve::Peer;
use crate::config::AdminOptions;
use crate::control::Control;

/// Refusals are told in the log this often at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What may be had without the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    /// Nothing of the kind.
    Never,
    /// Where `admin.open` has `health`.
    Health,
    /// Where `admin.open` has `metrics`.
    Metrics,
    /// A page, which holds no data and asks for the token itself.
    Page,
}

impl Open {
    fn is_open(self, options: &AdminOptions) -> bool {
        match self {
            Open::Never => false,
            Open::Health => options.open.health,
            Open::Metrics => options.open.metrics,
            Open::Page => true,
        }
    }
}

/// What the guard of the TCP listener knows.
pub(super) struct Guard {
    control: Arc<Control>,
    /// Paths that may be read without the token; all others may not, those that do not exist too.
    open: Vec<(&'static str, Open)>,
    refused: Mutex<Refused>,
}

/// Requests that were refused and not told of yet.
#[derive(Default)]
struct Refused {
    count: u64,
    told_at: Option<Instant>,
}

impl Guard {
    pub(super) fn new(control: Arc<Control>, open: Vec<(&'static str, Open)>) -> Guard {
        Guard { control, open, refused: Mutex::default() }
    }

    /// Why a request is not let in, in the words of RFC 6750 §3.1; `None`: it is.
    fn refuses(&self, request: &Request) -> Option<&'static str> {
        let config = self.control.config();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        let open = self.open.iter().find(|(it, _)| *it == path);
        if reads && open.is_some_and(|(_, open)| open.is_open(&config.admin)) {
            return None;
        }
        if !request.headers().contains_key(AUTHORIZATION) {
            return Some("Bearer realm=\"penstock\"");
        }
        (!self.shows_token(request)).then_some("Bearer realm=\"penstock\", error=\"invalid_token\"")
    }

    fn shows_token(&self, request: &Request) -> bool {
        let shown = request.headers().get(AUTHORIZATION);
        let shown = shown.and_then(|header| bearer(header.as_bytes()));
        let config = self.control.config();
        let token = config.admin.token.as_ref();
        token.zip(shown).is_some_and(|(token, shown)| token.is(shown))
    }

    /// Why a request is refused as one that another site's page may have made; `None`: it is not.
    fn refuses_page(&self, request: &Request) -> Option<String> {
        let path = request.uri().path();
        let is_page = self.open.iter().any(|(it, open)| *it == path && *open == Open::Page);
        let hosts = &self.control.config().admin.hosts;
        foreign::refuses(request.method(), request.headers(), is_page, |name| {
            // A page whose name suddenly leads here knows no token.
            hosts.iter().any(|host| host.eq_ignore_ascii_case(name)) || self.shows_token(request)
        })
    }

    fn count(&self, peer: Peer) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count += 1;
        let now = Instant::now();
        if refused.told_at.is_none_or(|at| now - at >= TELL_EVERY) {
            let count = std::mem::take(&mut refused.count);
            refused.told_at = Some(now);
            warn!("admin: {count} requests without the right token, the last from {peer}");
        }
    }
}

/// What a header shows (RFC 6750 §2.1; the scheme is written in any case, RFC 9110 §11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// Lets a request pass, or answers it with 403: see `foreign.rs`.
pub(super) async fn refuse_pages(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    match guard.refuses_page(&request) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, Json(json!({ "faults": [why] }))).into_response(),
    }
}

/// Lets a request pass, or answers it with 401.
pub(super) async fn guard(
    State(guard): State<Arc<Guard>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let Some(challenge) = guard.refuses(&request) else {
        return next.run(request).await;
    };
    // Whoever has not been asked yet has done nothing wrong.
    if request.headers().contains_key(AUTHORIZATION) {
        guard.count(peer);
    }
    let why = "the token is missing or wrong: send `Authorization: Bearer TOKEN`, as it is in \
               admin.token_file";
    let body = Json(json!({ "faults": [why] }));
    let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))];
    (StatusCode::UNAUTHORIZED, challenge, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_header_shows() {
        for (header, want) in [
            (&b"Bearer abc"[..], Some(&b"abc"[..])),
            (b"bearer  abc ", Some(b"abc")),
            (b"BEARER abc def", Some(b"abc def")),
            (b"Bearer ", Some(b"")),
            (b"Bearer", None),
            (b"Basic YWJj", None),
            (b"abc", None),
            (b"", None),
        ] {
            assert_eq!(bearer(header), want, "{header:?}");
        }
    }
}
