use std::borrow::Cow;
pub struct HeadLimits {
    pub head_bytes_max: usize,
    pub headers_max: usize,
    pub target_bytes_max: usize,
}
#[derive(Default)]
pub struct HeadScanner;
impl HeadScanner {
    pub fn scan(&mut self, head: &[u8], _l: &HeadLimits) -> Result<Option<usize>, HttpError> {
        Ok(head.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4))
    }
}
#[derive(Debug)]
pub struct HttpError(pub u16);
impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl HttpError {
    pub fn not_found() -> HttpError {
        HttpError(404)
    }
    pub fn upgrade_required() -> HttpError {
        HttpError(426)
    }
}
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub host: &'a str,
    pub headers: Vec<(&'a str, &'a str)>,
}
pub fn parse_request<'a>(head: &'a [u8], _l: &HeadLimits) -> Result<Request<'a>, HttpError> {
    let text = std::str::from_utf8(head).map_err(|_| HttpError(400))?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let method = first.next().unwrap();
    let target = first.next().ok_or(HttpError(400))?;
    let headers: Vec<_> = lines.filter_map(|l| l.split_once(": ")).collect();
    let host = headers.iter().find(|h| h.0.eq_ignore_ascii_case("host")).map_or("", |h| h.1);
    let (path, query) = match target.split_once('?') {
        Some((p, q)) => (p, Some(q)),
        None => (target, None),
    };
    Ok(Request { method, path, query, host, headers })
}
pub struct Response<'a> {
    pub status: u16,
    pub headers: Vec<(&'a str, &'a str)>,
}
pub fn parse_response<'a>(head: &'a [u8], l: &HeadLimits) -> Result<Response<'a>, HttpError> {
    let r = parse_request(head, l)?;
    Ok(Response { status: r.path.parse().unwrap_or(0), headers: r.headers })
}
pub struct BodyReader;
impl BodyReader {
    pub fn new(_r: &Response<'_>) -> BodyReader {
        BodyReader
    }
    pub fn scan(&mut self, b: &[u8]) -> Result<(usize, bool), HttpError> {
        Ok((b.len(), false))
    }
}
pub fn query_param<'a>(q: &'a str, name: &str) -> Option<Cow<'a, str>> {
    q.split('&').filter_map(|p| p.split_once('=')).find(|p| p.0 == name).map(|p| Cow::Borrowed(p.1))
}
