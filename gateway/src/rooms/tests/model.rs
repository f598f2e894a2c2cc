//! The engine against a naive model: shards joined by queues, with mail that is late.

use super::*;

/// What the model knows of a client.
struct Twin {
    address: Address,
    user: String,
    /// Per room: the room's position as far as this client has been told, and whether it has
    /// asked to leave. What it is told next must be the next offset.
    rooms: BTreeMap<String, Seen>,
    /// Publishes without an answer, by id: the room and the text.
    unanswered: BTreeMap<u64, (String, u64)>,
}

#[derive(Default)]
struct Seen {
    /// Answered: the epoch and the last offset.
    position: Option<(String, u64)>,
    /// What the join asked to resume.
    resume: Option<Resume>,
}

/// The position where a client was when it went, and when that was.
type Resume = ((String, u64), Time);

#[test]
fn members_see_every_message_once_and_in_order_whatever_races() {
    for seed in 1..=150 {
        play(seed);
    }
}

fn play(seed: u64) {
    let mut random = Random::new(seed);
    let limits = RoomLimits { history_messages_max: 12, ..RoomLimits::default() };
    let shards = 1 + (seed % 5) as u16;
    let mut world = World::new(shards, &limits);
    let mut twins: Vec<Twin> = Vec::new();
    // The truth, as far as anybody has seen it: what stands at each offset of each room.
    let mut truth: BTreeMap<(String, u64), u64> = BTreeMap::new();
    // Where a user was when it went away, to resume from.
    let mut gone: Vec<(String, Resume)> = Vec::new();
    let (mut next_id, mut opened) = (1_u64, 0_u32);
    for _ in 0..400 {
        match random.index(12) {
            0 if twins.len() < 12 => {
                let user = format!("user{}", random.index(6));
                opened += 1;
                let shard = random.index(usize::from(shards)) as u16;
                let address = world.open(shard, opened % 40, opened, Some(&user));
                let (rooms, unanswered) = (BTreeMap::new(), BTreeMap::new());
                twins.push(Twin { address, user, rooms, unanswered });
            }
            1 if twins.len() > 4 => {
                let twin = twins.swap_remove(random.index(twins.len()));
                world.close(twin.address);
                let (left, now) = (twin.rooms.into_iter(), world.now);
                gone.extend(left.filter_map(|(room, seen)| Some((room, (seen.position?, now)))));
            }
            2..=4 if !twins.is_empty() => {
                let index = random.index(twins.len());
                let twin = &mut twins[index];
                let mut room = format!("room{}", random.index(3));
                let mut resume = None;
                if !gone.is_empty() && random.index(2) == 0 {
                    let (name, position) = gone.swap_remove(random.index(gone.len()));
                    (room, resume) = (name, Some(position));
                }
                // A shard serves no client that is busy.
                let (shard, conn) = twin.address;
                let is_busy = world.shards[usize::from(shard)].is_busy(conn);
                if is_busy || twin.rooms.contains_key(&room) {
                    continue;
                }
                let presence = random.index(2) == 0;
                let mut text =
                    json!({"op": "join", "room": room, "presence": presence, "id": room});
                if let Some(((epoch, offset), _)) = &resume {
                    text["resume"] = json!({"epoch": epoch, "offset": offset});
                }
                twin.rooms.insert(room, Seen { position: None, resume });
                world.say(twin.address, &text.to_string());
            }
            5 if !twins.is_empty() => {
                let index = random.index(twins.len());
                let twin = &mut twins[index];
                read(&mut world, twin, &mut truth, seed);
                let Some(room) = twin.rooms.keys().next().cloned() else { continue };
                if let Some(position) = twin.rooms.remove(&room).and_then(|seen| seen.position) {
                    gone.push((room.clone(), (position, world.now)));
                }
                world.say(twin.address, &json!({"op": "leave", "room": room}).to_string());
                // What was received before the answer to the leave has been read; the answer
                // to a join that was on its way must never come.
                let last = world.take(twin.address).pop().unwrap();
                assert_eq!(last["op"], "leave", "seed {seed}: {last}");
            }
            6..=8 if !twins.is_empty() => {
                let index = random.index(twins.len());
                let twin = &mut twins[index];
                let count = twin.rooms.len();
                if count == 0 {
                    continue;
                }
                let room = twin.rooms.keys().nth(random.index(count)).unwrap().clone();
                next_id += 1;
                let text = json!({"op": "publish", "room": room, "data": next_id, "id": next_id});
                world.say(twin.address, &text.to_string());
                twin.unanswered.insert(next_id, (room, next_id));
            }
            9 if random.index(8) == 0 => {
                let seconds = random.index(40) as u64;
                world.pass(Duration::from_secs(seconds));
            }
            _ => {
                for _ in 0..random.index(12) {
                    world.step(|count| random.index(count));
                }
            }
        }
        for twin in &mut twins {
            read(&mut world, twin, &mut truth, seed);
        }
    }

    // Everything arrives; then everybody stands at the same place and has all the answers.
    world.pass(Duration::from_secs(6));
    let mut last: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for twin in &mut twins {
        read(&mut world, twin, &mut truth, seed);
        assert!(twin.unanswered.is_empty(), "seed {seed}: {:?}", twin.unanswered);
        for (room, seen) in &twin.rooms {
            let position = seen.position.clone().expect("every join was answered");
            let all = last.entry(room.clone()).or_insert_with(|| position.clone());
            assert_eq!(*all, position, "seed {seed}: {room}");
        }
        let record = world.shards[usize::from(twin.address.0)].describe(twin.address.1).unwrap();
        assert_eq!(record.user, twin.user);
        assert!(record.rooms.iter().map(|room| &room.room).eq(twin.rooms.keys()), "seed {seed}");
    }

    // After the grace, presence is who is there.
    for room in last.keys() {
        let inside = |twin: &&Twin| twin.rooms.contains_key(room);
        let want: BTreeSet<&str> = twins.iter().filter(inside).map(|twin| &*twin.user).collect();
        let asker = twins.iter().find(inside).unwrap().address;
        let got = world.ask(asker, &json!({"op": "presence", "room": room}).to_string());
        assert_eq!(got[0]["users"], json!(want), "seed {seed}: {room}");
        assert_eq!(got[0]["connection_count"], twins.iter().filter(inside).count());
        let got = world.ask(asker, &json!({"op": "history", "room": room}).to_string());
        assert!(got[0]["messages"].as_array().unwrap().len() <= 12);
    }

    // And when everybody has left and time has passed, nothing is left.
    for twin in twins {
        world.close(twin.address);
    }
    world.pass(Duration::from_secs(200));
    for rooms in &world.shards {
        assert_eq!(rooms.gauges(), Gauges::default(), "seed {seed}");
        assert_eq!(rooms.next_deadline(), None, "seed {seed}");
    }
}

/// Reads what a client has received, and holds it against the model.
fn read(world: &mut World, twin: &mut Twin, truth: &mut BTreeMap<(String, u64), u64>, seed: u64) {
    for got in world.take(twin.address) {
        assert!(got["error"].is_null(), "seed {seed}: {got}");
        if got["event"] == "message" {
            on_message(twin, &got, truth, seed);
        } else if got["op"] == "join" {
            let room = got["room"].as_str().unwrap();
            let (epoch, offset) = (got["epoch"].as_str().unwrap(), got["offset"].as_u64().unwrap());
            let seen = twin.rooms.get_mut(room).unwrap_or_else(|| panic!("seed {seed}: {got}"));
            assert!(seen.position.is_none(), "seed {seed}: answered twice");
            let recovered = got["recovered"].as_bool();
            assert_eq!(recovered.is_some(), seen.resume.is_some(), "seed {seed}");
            match seen.resume.take() {
                Some((resume, _)) if recovered == Some(true) => {
                    assert_eq!(resume.0, epoch);
                    seen.position = Some(resume);
                    for message in got["messages"].as_array().unwrap() {
                        on_message(twin, message, truth, seed);
                    }
                    let position = twin.rooms[room].position.as_ref().unwrap();
                    assert_eq!(position.1, offset, "seed {seed}: recovery was not complete");
                }
                resume => {
                    assert_eq!(got["messages"].as_array().map_or(0, Vec::len), 0);
                    // It must recover while nothing is too old, unless too much was missed. Only
                    // a room without a message is forgotten so soon.
                    if let Some(((was, last), at)) = resume
                        && world.now.since(at) < Duration::from_secs(120)
                    {
                        let may_fail = if was == epoch { offset - last > 12 } else { last == 0 };
                        assert!(may_fail, "seed {seed}: could have recovered: {got}");
                    }
                    seen.position = Some((epoch.to_string(), offset));
                }
            }
        } else if got["op"] == "publish" {
            let (room, data) = twin.unanswered.remove(&got["ack"].as_u64().unwrap()).unwrap();
            if let Some(seen) = twin.rooms.get(&room)
                && let Some((epoch, offset)) = &seen.position
                && *offset >= got["offset"].as_u64().unwrap()
            {
                let key = (format!("{room} {epoch}"), got["offset"].as_u64().unwrap());
                // A client that joined afterwards never saw that offset itself.
                assert_eq!(*truth.get(&key).unwrap_or(&data), data, "seed {seed}: {got}");
            }
        }
    }
}

fn on_message(twin: &mut Twin, got: &Value, truth: &mut BTreeMap<(String, u64), u64>, seed: u64) {
    let room = got["room"].as_str().unwrap();
    let seen = twin.rooms.get_mut(room).unwrap_or_else(|| panic!("seed {seed}: {got}"));
    let (epoch, last) = seen.position.as_mut().expect("a message before the answer to the join");
    let (offset, data) = (got["offset"].as_u64().unwrap(), got["data"].as_u64().unwrap());
    assert_eq!(offset, *last + 1, "seed {seed}: a gap or a repetition in {room}");
    *last = offset;
    let same = *truth.entry((format!("{room} {epoch}"), offset)).or_insert(data);
    assert_eq!(same, data, "seed {seed}: members differ about {room} {offset}");
}
