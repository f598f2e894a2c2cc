//! Servers that name a room in the path: who connects to one path listens, and what is sent to
//! another goes to all who do. uWebSockets.js, Bun and node's ws are written so in a few lines
//! each; Nchan is configured so.

use super::dialect::{Dialect, Event, Form, Names, Next, Role};
use crate::websocket::TEXT;

/// Rooms by path.
pub(crate) struct Topics {
    names: Names,
    subscribe_path: String,
    publish_path: String,
}

/// Stands in a path where the name of the room goes.
const ROOM: &str = "{room}";

impl Topics {
    /// The paths have `{room}` in them.
    pub(crate) fn new(names: Names, subscribe: &str, publish: &str) -> Result<Topics, String> {
        for path in [subscribe, publish] {
            let fits = path.chars().all(|c| c.is_ascii_graphic() && c != '#');
            if !path.starts_with('/') || !path.contains(ROOM) || !fits {
                return Err(format!("{path}: should be a path such as /sub/{ROOM}"));
            }
        }
        let (subscribe_path, publish_path) = (subscribe.to_owned(), publish.to_owned());
        Ok(Topics { names, subscribe_path, publish_path })
    }
}

impl Dialect for Topics {
    fn form(&self) -> Form {
        Form { confirms_joins: false, room_in_path: true, ..Form::of(TEXT) }
    }

    fn path_suffix(&self, role: Role) -> String {
        let (path, room) = match role {
            Role::Member { room } => (&self.subscribe_path, room),
            Role::Publisher { room } => (&self.publish_path, room),
        };
        path.replace(ROOM, &self.names.of(room))
    }

    fn join(&self, _room: u32, _session: &[u8], _out: &mut Vec<u8>) {}

    fn publish(&self, _room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(data);
    }

    fn next<'a>(&self, input: &'a [u8], _answer: &mut Vec<u8>) -> Next<'a> {
        Ok(Some((Event::message(None, input), input.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::dialect::tests::{check_message, said};

    #[test]
    fn paths_name_the_room() {
        let topics =
            |subscribe: &str, publish: &str| Topics::new(Names::new("t"), subscribe, publish);
        let dialect = topics("/sub/{room}", "/p?id={room}").unwrap();
        assert_eq!(dialect.path_suffix(Role::Member { room: 3 }), "/sub/t3");
        assert_eq!(dialect.path_suffix(Role::Publisher { room: 40 }), "/p?id=t40");
        for bad in ["sub/{room}", "/sub", "/sub/{room} x", "/{room}#"] {
            assert!(topics(bad, "/{room}").is_err() && topics("/{room}", bad).is_err(), "{bad}");
        }
        assert_eq!(said(|out| dialect.publish(3, 0, b"abc", out)), "abc");
        assert_eq!(said(|out| dialect.join(3, b"", out)), "");
        check_message(&dialect, "abc", &["? abc"], "");
    }
}
