//! `[admin]` and `[log]`: what is for the operator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::written;
use super::reader::{Reader, Section};
use super::{AdminOptions, HistogramLog, LogFormat, LogOptions, Machine, OpenOptions};
use crate::admin::token::Token;

pub(super) fn read_admin(
    reader: &Reader<'_>,
    mut section: Section<'_, '_>,
    machine: &Machine,
) -> AdminOptions {
    let socket = section.string("socket");
    let mode = section.string("socket_mode");
    let text = mode.as_ref().map_or("0600", |mode| mode.value.as_str());
    section.settle("socket_mode", format_args!("\"{text}\""));
    let listen = read_listen(reader, &mut section);
    let token = read_token(reader, &mut section, machine);
    let open = read_open(reader, &mut section);
    let aliases = section.boolean("aliases", true);
    let hosts = section.strings("hosts").unwrap_or_default();
    section.settle_list("hosts");
    for host in &hosts {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if host.value.is_empty() || !host.value.bytes().all(good) {
            let message = format!(
                "`hosts` has \"{}\": not a name; write it like \"penstock.example.org\", without a port",
                host.value
            );
            reader.fault(&host.place, message);
        }
    }
    let hosts = hosts.into_iter().map(|host| host.value).collect();
    if section.has("listen") && !section.has("token_file") {
        let message = "`listen` needs a `token_file`: whoever reaches the address could stop the \
                       gateway without; write a token, (umask 077; head -c 24 /dev/urandom | base64 \
                       > /etc/penstock/admin.token), and name its file";
        reader.fault(&section.place_of("listen"), message);
    }
    section.finish();
    let socket = socket.map(|socket| {
        if socket.value != "off" && !socket.value.starts_with('/') {
            let message = format!(
                "`socket` is \"{}\": where that is depends on the directory that the gateway is \
                 started in; write the whole path, or \"off\"",
                socket.value
            );
            reader.fault(&socket.place, message);
        }
        PathBuf::from(socket.value)
    });
    let socket_mode = mode.map_or(0o600, |mode| match u32::from_str_radix(&mode.value, 8) {
        Ok(bits) if bits <= 0o777 => bits,
        _ => {
            let message = format!(
                "`socket_mode` is \"{}\": not permissions; write them like \"0600\" (only this \
                     user) or \"0660\" (and its group)",
                mode.value
            );
            reader.fault(&mode.place, message);
            0o600
        }
    });
    AdminOptions { socket, socket_mode, listen, token, open, aliases, hosts }
}

fn read_listen(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> Option<SocketAddr> {
    let text = section.string("listen")?;
    let address = text.value.parse().ok();
    if address.is_none() {
        let message = format!(
            "`listen` is \"{}\": not an address and a port; write them like \"127.0.0.1:9464\" or \
             \"[::1]:9464\"",
            text.value
        );
        reader.fault(&text.place, message);
    }
    address
}

/// The token itself: a reload finds another one though the file's name is the same.
fn read_token(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    machine: &Machine,
) -> Option<Token> {
    let path = section.string("token_file")?;
    let found = match machine.secret_path(&path.value) {
        Ok(found) => found,
        Err(why) => {
            reader.fault(&path.place, format!("`token_file` is \"{}\": {why}", path.value));
            return None;
        }
    };
    match (machine.read_token)(&found) {
        Ok(token) => {
            let value = format!("{} {}", written(&path.value), token.fingerprint());
            section.settle("token_file", value);
            Some(token)
        }
        Err(why) => {
            reader.fault(&path.place, format!("`token_file` {}: {why}", path.value));
            None
        }
    }
}

fn read_open(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> OpenOptions {
    let Some(words) = section.strings("open") else {
        section.settle("open", "[\"health\"]");
        return OpenOptions { health: true, metrics: false };
    };
    let mut open = OpenOptions::default();
    for word in words {
        match word.value.as_str() {
            "health" => open.health = true,
            "metrics" => open.metrics = true,
            other => {
                let message = format!(
                    "`open` has \"{other}\": choose from \"health\" and \"metrics\"; everything else \
                     takes the token"
                );
                reader.fault(&word.place, message);
            }
        }
    }
    open
}

pub(super) fn read_log(reader: &Reader<'_>, mut section: Section<'_, '_>) -> LogOptions {
    let format = match section.word("format", &["text", "json"]) {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let level = section.word("level", &["info", "error", "warn", "debug"]).to_owned();
    let access = section.boolean("access", true);
    let access_lines_per_second = section.number("access_lines_per_second", 1..=1_000_000, 1000);
    let histograms = section.string("histograms");
    let text = histograms.as_ref().map_or("off", |path| path.value.as_str());
    section.settle("histograms", format_args!("{}", written(text)));
    let interval_ms = section.number("histograms_interval_ms", 1000..=3_600_000, 10_000);
    section.finish();
    let histograms = histograms.filter(|path| path.value != "off").map(|path| {
        if !path.value.starts_with('/') {
            let message = format!(
                "`histograms` is \"{}\": where that is depends on the directory that the gateway \
                 is started in; write the whole path, or \"off\"",
                path.value
            );
            reader.fault(&path.place, message);
        }
        HistogramLog { path: path.value.into(), interval: Duration::from_millis(interval_ms) }
    });
    LogOptions { format, level, access, access_lines_per_second, histograms }
}
