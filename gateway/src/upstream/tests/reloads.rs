//! Reloads: what a list that follows another keeps.

use super::*;

#[test]
fn faulty_lists_change_nothing() {
    let mut group = group(options(Balance::RoundRobin), &[1, 2]);
    let before = group.upstreams().iter().map(Upstream::id).collect::<Vec<_>>();
    let many = (0..=UPSTREAMS_MAX as u16).map(|number| spec(number, 1)).collect();
    for (list, want) in [
        (many, ListFault::TooMany(UPSTREAMS_MAX + 1)),
        (vec![spec(1, 1), spec(2, 1), spec(1, 5)], ListFault::Twice(spec(1, 1).url)),
        (vec![spec(1, 0)], ListFault::Weight(spec(1, 1).url, 0)),
        (vec![spec(1, WEIGHT_MAX + 1)], ListFault::Weight(spec(1, 1).url, WEIGHT_MAX + 1)),
    ] {
        assert!(want.to_string().contains(": ") && want.to_string().contains("; "), "{want}");
        let got = group.reconfigure(options(Balance::RandomTwo), list, NOW);
        assert_eq!(got, Err(want));
        assert_eq!(group.options().balance, Balance::RoundRobin);
        assert_eq!(group.upstreams().iter().map(Upstream::id).collect::<Vec<_>>(), before);
    }
    group.next_id = u32::MAX - 1;
    let got = group.reconfigure(options(Balance::RandomTwo), list(&[1, 1]), NOW);
    assert_eq!(got, Err(ListFault::OutOfIds));
    assert_eq!(group.upstreams().len(), 2);
    let full = (0..UPSTREAMS_MAX as u16).map(|number| spec(number, WEIGHT_MAX)).collect();
    let mut full = Group::new(options(Balance::RoundRobin), full, 1).expect("good");
    for balance in ALL {
        full.options.balance = balance();
        full.pick(&client(1, u64::MAX), NOW, &Tried::default());
    }
}

#[test]
fn health_and_cookies_survive_a_reload() {
    let cookie = StickyCookie {
        name: "a".to_owned(),
        secret: b"s".to_vec(),
        max_age: Duration::ZERO,
        same_site: SameSite::Lax,
        secure: false,
    };
    let with_cookie = GroupOptions { cookie: Some(cookie.clone()), ..options(Balance::RoundRobin) };
    let mut group = group(options(Balance::RoundRobin), &[1, 1, 1]);
    let [a, b, c] = [0, 1, 2].map(|index| group.upstreams()[index].id());
    for _ in 0..3 {
        group.on_picked(a);
        connect_failed(&mut group, a, NOW, 0);
        group.on_check_result(b, false, NOW);
    }
    let mut reordered = list(&[7, 8, 9]);
    reordered.reverse();
    reordered.push(spec(77, 1));
    group.reconfigure(with_cookie, reordered, NOW).expect("good");
    let ejected = Health::Ejected { until: NOW + 5 * SECOND };
    for (id, weight, health) in [(a, 7, ejected), (b, 8, Health::Down), (c, 9, Health::Up)] {
        let upstream = group.get(id).expect("listed");
        assert_eq!((upstream.spec().weight, upstream.health(NOW)), (weight, health));
        assert_eq!(group.find(upstream.name()), Some(id));
        let head = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nCookie: a={}\r\n\r\n",
            upstream.token().expect("the group has a cookie")
        );
        let limits =
            crate::http::HeadLimits { head_bytes_max: 500, headers_max: 9, target_bytes_max: 9 };
        let request = crate::http::parse_request(head.as_bytes(), &limits).expect("a request");
        assert_eq!(group.find_cookie(&request.headers), Some(id));
    }
    assert_eq!(group.find(UpstreamName(1)), None);
}

#[test]
fn shares_of_a_maximum_add_up() {
    for (total, shards) in [(1, 1), (10, 3), (3, 10), (1000, 7), (u32::MAX, 1024)] {
        let shares = (0..shards).map(|shard| connections_share(total, shard, shards));
        assert_eq!(shares.clone().map(u64::from).sum::<u64>(), u64::from(total));
        assert!(shares.clone().max().unwrap() - shares.min().unwrap() <= 1);
    }
}

/// Above the bound the one that left first is forgotten, and its connections end without harm.
#[test]
fn those_that_leave_are_bounded() {
    let mut group = group(options(Balance::RoundRobin), &[1]);
    let mut left = Vec::new();
    for number in 0..LEAVING_MAX as u16 + 10 {
        let list = vec![spec(number, 1)];
        group.reconfigure(options(Balance::RoundRobin), list, NOW).expect("good");
        left.push(group.upstreams()[0].id());
        group.on_picked(left[usize::from(number)]);
    }
    group.reconfigure(options(Balance::RoundRobin), vec![], NOW).expect("good");
    assert_eq!(group.leaving_connections(), LEAVING_MAX as u64);
    // The forgotten comes back as a new one; the one that is known still has its connection.
    let list = vec![spec(9, 1), spec(10, 1)];
    group.reconfigure(options(Balance::RoundRobin), list, NOW).expect("good");
    assert_eq!(group.get(left[9]).map(Upstream::connections), None);
    assert_eq!(group.get(left[10]).map(Upstream::connections), Some(1));
    left.iter().for_each(|id| group.on_closed(*id));
    assert_eq!(group.leaving_connections(), 0);
    assert!(group.upstreams().iter().all(|upstream| upstream.connections() == 0));
}

/// Ten thousand reloads with connections open, being opened and failing all the while. The twin
/// keeps a list of connections and counts them; the rules of who may be picked are written out
/// again here, in words.
#[test]
fn counts_survive_ten_thousand_reloads() {
    let mut numbers = Numbers(8);
    let mut group = Group::new(options(Balance::RoundRobin), Vec::new(), 5).expect("good");
    // Every connection: its upstream's id, the number of its address, and whether it is open.
    let mut live: Vec<(UpstreamId, u16, bool)> = Vec::new();
    let mut ids: BTreeMap<u16, UpstreamId> = BTreeMap::new();
    let mut used: BTreeMap<UpstreamId, u16> = BTreeMap::new();
    let mut now = NOW;
    let specs: Vec<UpstreamSpec> = (0..12).map(|number| spec(number, 1)).collect();
    let (mut picks, mut waits, mut nones, mut comebacks) = (0, 0, 0, 0);
    for _ in 0..10_000 {
        now = now + Duration::from_millis(numbers.next() % 500);
        let mut list = Vec::new();
        for spec in &specs {
            if numbers.below(3) > 0 {
                let mut one = UpstreamSpec { weight: 1 + numbers.below(5) as u32, ..spec.clone() };
                one.connections_max = [0, 0, 3, 8][numbers.below(4)];
                one.mode = match numbers.below(8) {
                    0 => Mode::Draining,
                    1 => Mode::Disabled,
                    _ => Mode::Active,
                };
                list.push(one);
            }
        }
        numbers.shuffle(&mut list);
        let mut options = options(ALL[numbers.below(4)]());
        options.slow_start = [0, 1][numbers.below(2)] * SECOND;
        options.panic_percent = [0, 25, 60][numbers.below(3)];
        let weights: BTreeMap<String, u32> =
            list.iter().map(|one| (one.url.to_string(), one.weight)).collect();
        group.reconfigure(options, list, now).expect("a good list");

        // Who stays or still has connections keeps its id; every other one gets a fresh one.
        let mut listed = BTreeMap::new();
        for upstream in group.upstreams() {
            let number = specs.iter().position(|spec| spec.url == upstream.spec().url);
            let number = number.expect("one of ours") as u16;
            listed.insert(number, upstream.id());
            assert_eq!(
                weights.get(&upstream.spec().url.to_string()),
                Some(&upstream.spec().weight)
            );
            let open = live.iter().find(|one| one.1 == number);
            match (ids.get(&number), open) {
                (Some(before), _) => assert_eq!(*before, upstream.id()),
                (None, Some(open)) => {
                    assert_eq!(open.0, upstream.id());
                    comebacks += 1;
                }
                (None, None) => assert_eq!(used.get(&upstream.id()), None, "an id is used again"),
            }
            used.insert(upstream.id(), number);
        }
        assert_eq!(listed.len(), weights.len());
        ids = listed;

        for _ in 0..numbers.below(8) {
            let random = numbers.next();
            if numbers.below(2) == 0 && !live.is_empty() {
                let index = numbers.below(live.len());
                let (id, _, is_open) = &mut live[index];
                let id = *id;
                match (*is_open, numbers.below(5)) {
                    (false, 0..2) => {
                        group.on_opened(id, now);
                        live[index].2 = true;
                        continue;
                    }
                    (false, 2) => group.on_answered(id, now),
                    (false, 3) => group.on_abandoned(id),
                    (false, _) => {
                        connect_failed(&mut group, id, now, random);
                    }
                    (true, _) => group.on_closed(id),
                }
                live.swap_remove(index);
                continue;
            }
            if numbers.below(6) == 0 && !ids.is_empty() {
                let id = *ids.values().nth(numbers.below(ids.len())).expect("one");
                group.on_check_result(id, numbers.below(3) > 0, now);
            }
            let mut tried = Tried::default();
            let mut tried_ids = BTreeSet::new();
            for id in ids.values() {
                if numbers.below(6) == 0 && tried.count() < TRIED_MAX {
                    tried.push(*id);
                    tried_ids.insert(*id);
                }
            }
            let active = || group.upstreams().iter().filter(|one| one.spec().mode == Mode::Active);
            let fit = active().filter(|one| one.health(now) == Health::Up).count();
            let panics = fit * 100 < group.options().panic_percent as usize * active().count();
            let usable: Vec<&Upstream> = active()
                .filter(|one| panics || one.health(now) == Health::Up)
                .filter(|one| !tried_ids.contains(&one.id()))
                .collect();
            let has_room = |one: &&&Upstream| {
                one.spec().connections_max == 0 || one.connections() < one.spec().connections_max
            };
            let open: BTreeSet<UpstreamId> =
                usable.iter().filter(has_room).map(|one| one.id()).collect();
            let is_usable = !usable.is_empty() && tried.count() < TRIED_MAX;
            match group.pick(&client(random, random), now, &tried) {
                Pick::Upstream(id) => {
                    assert!(is_usable && open.contains(&id));
                    group.on_picked(id);
                    live.push((id, used[&id], false));
                    picks += 1;
                }
                Pick::Wait => {
                    assert!(is_usable && open.is_empty());
                    waits += 1;
                }
                Pick::None => {
                    assert!(!is_usable);
                    nones += 1;
                }
            }
        }
        for upstream in group.upstreams() {
            let want = live.iter().filter(|one| one.0 == upstream.id()).count();
            assert_eq!(upstream.connections() as usize, want);
        }
        let gone = live.iter().filter(|one| !ids.values().any(|id| *id == one.0)).count();
        assert_eq!(group.leaving_connections(), gone as u64);
    }
    // The day had everything in it.
    let day = format!("{picks} picks, {waits} waits, {nones} nones, {comebacks} comebacks");
    assert!(picks > 5000 && waits > 20 && nones > 20 && comebacks > 1000, "{day}");
    live.iter().for_each(|one| group.on_closed(one.0));
    assert!(group.upstreams().iter().all(|upstream| upstream.connections() == 0));
    assert!(group.leaving.is_empty());
}
