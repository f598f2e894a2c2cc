//! The gateway as a process, among real clients and servers on a real kernel.
//!
//! Nothing here has a fixed port: every program says when it listens. A test waits for a line, a frame or
//! the end of a stream; it sleeps only between two looks at a number that is no line of anything, and
//! where a stall of some length is what it is about. Programs are ended through their own handles.
//!
//! Tests that need Node, Python or Chromium find them where `scripts/test-tools` puts them
//! (`PENSTOCK_TEST_HOME`) and fail with that advice when they are not there.
//!
//! | Environment | Means |
//! | --- | --- |
//! | `PENSTOCK_BINARY` | the gateway to test, instead of the one built with the tests |
//! | `PENSTOCK_E2E_CLIENTS` | how many clients exchange messages at once, default 200 |
//! | `PENSTOCK_SKIP_DOTNET` | 1: knowingly without ASP.NET Core, and so without the test of SignalR |
//! | `PENSTOCK_AUTOBAHN` | `quick`, `sample` or `full`: the cases of the Autobahn tests, which run when asked for |

#![allow(unreachable_pub)]

mod support;

mod admin;
mod autobahn;
mod backpressure;
mod causes;
mod check;
mod dashboard;
mod drain;
mod foreign;
mod forward;
mod groups;
mod http;
mod identity;
mod latency;
mod limits;
mod log;
mod loss;
mod memory;
mod metrics;
mod names;
mod openapi;
mod operator;
mod orders;
mod page;
mod percentiles;
mod programs;
mod protocols;
mod relay;
mod reload;
mod rooms;
mod second;
mod shortage;
mod sids;
mod slow;
mod socketio;
mod stop;
mod timeouts;
mod users;
mod websocket;
