//! What an engine has counted and timed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::histogram;

/// How long the steps of opening took, in nanoseconds, of connections that did open. The clock is
/// read once a turn, so a step includes the wait for others that are answered in the same turn.
pub(crate) struct Times {
    /// From the begin of an open until the handshake's answer is read: all that follows.
    pub(crate) open: Histogram<u64>,
    /// TCP.
    pub(crate) connect: Histogram<u64>,
    /// The TLS handshake, when there is one.
    pub(crate) tls: Histogram<u64>,
    /// The WebSocket handshake.
    pub(crate) upgrade: Histogram<u64>,
}

impl Times {
    /// Nothing so far.
    pub(crate) fn new() -> Times {
        let new = histogram::new;
        Times { open: new(), connect: new(), tls: new(), upgrade: new() }
    }

    /// Puts them among the figures of a run: `open_us`, `connect_us`, `tls_us` if there is
    /// TLS, `upgrade_us`.
    pub(crate) fn put(&self, report: &mut Map<String, Value>) {
        report.insert("open_us".into(), histogram::report(&self.open));
        report.insert("connect_us".into(), histogram::report(&self.connect));
        if !self.tls.is_empty() {
            report.insert("tls_us".into(), histogram::report(&self.tls));
        }
        report.insert("upgrade_us".into(), histogram::report(&self.upgrade));
    }

    /// The histograms as an outcome wants them.
    pub(crate) fn histograms(&self) -> Vec<(Cow<'static, str>, Histogram<u64>)> {
        let mut all =
            vec![("open".into(), self.open.clone()), ("connect".into(), self.connect.clone())];
        if !self.tls.is_empty() {
            all.push(("tls".into(), self.tls.clone()));
        }
        all.push(("upgrade".into(), self.upgrade.clone()));
        all
    }
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    /// Connections that are open now.
    pub(crate) open: u64,
    pub(crate) pings_answered: u64,
    pub(crate) failed: Reasons,
    pub(crate) early: Reasons,
    pub(crate) closed_in_order: u64,
    /// Of the opened: those whose TLS session was resumed.
    pub(crate) tls_resumed: u64,
    /// Of the opened: those on which messages are compressed.
    pub(crate) deflated: u64,
    pub(crate) aborted: u64,
    /// Handshakes finished in each second since the first was begun.
    pub(crate) opened_by_second: Vec<u32>,
}

/// Occurrences by reason; at most 64 kinds are told apart, so that texts made by a server cannot
/// grow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasons(pub(crate) BTreeMap<String, u64>);

impl Reasons {
    pub(crate) fn add(&mut self, reason: &str) {
        let known = self.0.contains_key(reason) || self.0.len() < 64;
        let reason = if known { reason } else { "other" };
        *self.0.entry(reason.to_owned()).or_default() += 1;
    }

    /// Takes away what had been counted before.
    pub(crate) fn subtract(&mut self, before: &Reasons) {
        for (reason, count) in &mut self.0 {
            *count -= before.0.get(reason).copied().unwrap_or(0).min(*count);
        }
        self.0.retain(|_, count| *count > 0);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(crate) fn report(&self) -> Value {
        Value::Object(self.0.iter().map(|(reason, n)| (reason.clone(), json!(n))).collect())
    }
}
