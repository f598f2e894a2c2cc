//! `[admin]` and `[log]`: what is for the operator.

use std::path::PathBuf;

use super::reader::{Reader, Section};
use super::{AdminOptions, LogFormat, LogOptions};

pub(super) fn read_admin(reader: &Reader<'_>, mut section: Section<'_, '_>) -> AdminOptions {
    let socket = section.string("socket");
    let mode = section.string("socket_mode");
    let text = mode.as_ref().map_or("0600", |mode| mode.value.as_str());
    section.settle("socket_mode", format_args!("\"{text}\""));
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
    AdminOptions { socket, socket_mode }
}

pub(super) fn read_log(mut section: Section<'_, '_>) -> LogOptions {
    let format = match section.word("format", &["text", "json"]) {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let level = section.word("level", &["info", "error", "warn", "debug"]).to_owned();
    let access = section.boolean("access", true);
    let access_lines_per_second = section.number("access_lines_per_second", 1..=1_000_000, 1000);
    section.finish();
    LogOptions { format, level, access, access_lines_per_second }
}
