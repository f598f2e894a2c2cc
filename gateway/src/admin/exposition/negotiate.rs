//! Which form is meant by an `Accept` header (RFC 9110 §12.5.1).

/// The forms in which metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Prometheus' text format 0.0.4: whoever asks for nothing gets this.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Messages of `io.prometheus.client`, each behind its length.
    Protobuf,
}

impl Form {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Form::Text => "text/plain; version=0.0.4; charset=utf-8",
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Form::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
        }
    }
}

/// The form that is wanted most, of those that there are; of equals the first. What cannot be
/// understood asks for nothing.
pub(super) fn negotiate(accept: &str) -> Form {
    let mut best = (0.0, Form::Text);
    for range in accept.split(',') {
        let (form, quality) = parse(range);
        if let Some(form) = form
            && quality > best.0
        {
            best = (quality, form);
        }
    }
    best.1
}

fn parse(range: &str) -> (Option<Form>, f64) {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let (mut quality, mut version, mut proto, mut encoding) = (1.0, None, None, None);
    for part in parts {
        let Some((name, value)) = part.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => quality = value.parse().unwrap_or(0.0),
            "version" => version = Some(value),
            "proto" => proto = Some(value),
            "encoding" => encoding = Some(value),
            _ => {}
        }
    }
    let form = match media.as_str() {
        "application/vnd.google.protobuf" => {
            let known = proto == Some("io.prometheus.client.MetricFamily");
            (known && encoding == Some("delimited")).then_some(Form::Protobuf)
        }
        "application/openmetrics-text" => {
            matches!(version, None | Some("1.0.0")).then_some(Form::OpenMetrics)
        }
        "text/plain" => matches!(version, None | Some("0.0.4")).then_some(Form::Text),
        "text/*" | "*/*" => Some(Form::Text),
        _ => None,
    };
    (form, quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_there_is() {
        let proto = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let text = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let open = "application/openmetrics-text;version=1.0.0";
        for (accept, want) in [
            ("", Form::Text),
            ("*/*", Form::Text),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Form::Text),
            (open, Form::OpenMetrics),
            ("application/openmetrics-text; version=\"1.0.0\"; charset=utf-8", Form::OpenMetrics),
            ("APPLICATION/OpenMetrics-Text", Form::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Form::Text),
            (&format!("{open};q=0"), Form::Text),
            (&format!("{open};q=nonsense"), Form::Text),
            // What Prometheus sends, without and with native histograms.
            (
                &format!("{open},application/openmetrics-text;version=0.0.1;q=0.75,{text}"),
                Form::OpenMetrics,
            ),
            (&format!("{proto},{open};q=0.8,{text}"), Form::Protobuf),
            (&format!("{open};q=0.8, {proto}"), Form::Protobuf),
            (&proto.replace("delimited", "text"), Form::Text),
            (&proto.replace("MetricFamily", "Other"), Form::Text),
            (";;;=,=,q=", Form::Text),
        ] {
            assert_eq!(negotiate(accept), want, "{accept}");
        }
    }
}
