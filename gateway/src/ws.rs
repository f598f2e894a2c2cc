//! The WebSocket protocol (RFC 6455) between bytes and messages. No I/O, no clock.

pub mod frame;
