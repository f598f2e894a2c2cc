//! Who may be chosen.

use super::*;

/// Who can be picked: the numbers of upstreams that come up in many picks, or the other answer.
fn reachable(group: &mut Group, sticky: Sticky, now: Time, tried: &Tried) -> String {
    let mut seen = BTreeSet::new();
    for number in 0..300 {
        let client = Client { key: mix(number), sticky, random: mix(number) };
        seen.insert(match group.pick(&client, now, tried) {
            Pick::Upstream(id) => group.index(id).expect("listed").to_string(),
            other => format!("{other:?}"),
        });
    }
    seen.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn tried_ones_are_not_picked_again() {
    for balance in ALL {
        let mut group = group(options(balance()), &[1; 10]);
        let ids: Vec<UpstreamId> = group.upstreams().iter().map(Upstream::id).collect();
        let mut tried = Tried::default();
        for (count, id) in ids.iter().enumerate() {
            let want = match count {
                0..TRIED_MAX => {
                    (count..10).map(|index| index.to_string()).collect::<Vec<_>>().join(" ")
                }
                _ => "None".to_owned(),
            };
            assert_eq!(reachable(&mut group, Sticky::Nowhere, NOW, &tried), want);
            tried.push(*id);
        }
        assert_eq!(tried.count(), TRIED_MAX);
    }
}

#[test]
fn modes_and_maxima() {
    for balance in ALL {
        let mut list = list(&[1, 1, 1]);
        list[0].connections_max = 1;
        list[2].mode = Mode::Disabled;
        let mut group = Group::new(options(balance()), list, 0).expect("good");
        let [a, b, c] = [0, 1, 2].map(|index| group.upstreams()[index].id());
        let who = |group: &mut Group| reachable(group, Sticky::Nowhere, NOW, &Tried::default());
        assert_eq!(who(&mut group), "0 1");
        group.on_picked(a);
        assert_eq!(who(&mut group), "1");
        group.set_mode(b, Mode::Draining, NOW);
        assert_eq!(who(&mut group), "Wait");
        group.set_mode(c, Mode::Active, NOW);
        assert_eq!(who(&mut group), "2");
        group.set_mode(c, Mode::Draining, NOW);
        group.set_mode(a, Mode::Draining, NOW);
        assert_eq!(who(&mut group), "None");
        group.set_mode(a, Mode::Active, NOW);
        group.on_closed(a);
        assert_eq!(who(&mut group), "0");
    }
    let mut nobody = group(options(Balance::RandomTwo), &[]);
    assert_eq!(nobody.pick(&client(0, 0), NOW, &Tried::default()), Pick::None);
}

#[test]
fn sessions_and_cookies_return() {
    for balance in ALL {
        let mut group = group(options(balance()), &[1, 1, 1]);
        let [a, b, _] = [0, 1, 2].map(|index| group.upstreams()[index].id());
        let mut tried_a = Tried::default();
        tried_a.push(a);
        let check = |group: &mut Group, want_session: &str, want_cookie: &str| {
            for (sticky, want) in
                [(Sticky::Session(a), want_session), (Sticky::Cookie(a), want_cookie)]
            {
                assert_eq!(reachable(group, sticky, NOW, &Tried::default()), want, "{sticky:?}");
                assert_eq!(reachable(group, sticky, NOW, &tried_a), "1 2");
            }
        };
        check(&mut group, "0", "0");
        group.set_mode(a, Mode::Draining, NOW);
        check(&mut group, "0", "1 2");
        group.set_mode(a, Mode::Disabled, NOW);
        check(&mut group, "1 2", "1 2");
        group.set_mode(a, Mode::Active, NOW);
        for _ in 0..3 {
            group.on_check_result(a, false, NOW);
        }
        check(&mut group, "1 2", "1 2");
        for _ in 0..2 {
            group.on_check_result(a, true, NOW);
        }
        let mut full = list(&[1, 1, 1]);
        full[0].connections_max = 1;
        group.reconfigure(options(balance()), full, NOW).expect("good");
        group.on_picked(a);
        // Of the bounded hash no key is left out by the one connection.
        check(&mut group, "Wait", "1 2");
        // An upstream that has left the list is nobody's any more.
        group.reconfigure(options(balance()), list(&[1, 1, 1])[1..].to_vec(), NOW).expect("good");
        assert_eq!(reachable(&mut group, Sticky::Session(a), NOW, &Tried::default()), "0 1");
        assert_eq!(reachable(&mut group, Sticky::Session(b), NOW, &Tried::default()), "0");
    }
}

#[test]
fn panic_ignores_health() {
    // Percent, how many of five are down, who is picked then.
    for (percent, down, want) in [
        (0, 4, "4"),
        (0, 5, "None"),
        (25, 3, "3 4"),
        (25, 4, "0 1 2 3 4"),
        (40, 3, "3 4"),
        (41, 3, "0 1 2 3 4"),
        (100, 0, "0 1 2 3 4"),
        (100, 1, "0 1 2 3 4"),
        (1, 4, "4"),
        (1, 5, "0 1 2 3 4"),
    ] {
        for balance in ALL {
            let options = GroupOptions { panic_percent: percent, ..options(balance()) };
            let mut group = group(options, &[1; 5]);
            for index in 0..down {
                let id = group.upstreams()[index].id();
                // By either way of being unfit.
                for _ in 0..3 {
                    if index % 2 == 0 {
                        group.on_check_result(id, false, NOW);
                    } else {
                        group.on_picked(id);
                        connect_failed(&mut group, id, NOW, 0);
                    }
                }
            }
            let got = reachable(&mut group, Sticky::Nowhere, NOW, &Tried::default());
            assert_eq!(got, want, "{percent} % with {down} down");
        }
    }
    // Those that the operator keeps away are not missed.
    let mut group = group(options(Balance::RoundRobin), &[1; 5]);
    for index in 0..4 {
        let id = group.upstreams()[index].id();
        group.set_mode(id, Mode::Disabled, NOW);
    }
    assert_eq!(reachable(&mut group, Sticky::Nowhere, NOW, &Tried::default()), "4");
}

#[test]
fn health_says_when_it_changes() {
    let mut group = group(options(Balance::RoundRobin), &[1, 1]);
    let id = group.upstreams()[0].id();
    let fail = |group: &mut Group, now| {
        group.on_picked(id);
        connect_failed(group, id, now, 0)
    };
    assert_eq!(fail(&mut group, NOW), None);
    assert_eq!(fail(&mut group, NOW), None);
    let until = NOW + 5 * SECOND;
    assert_eq!(fail(&mut group, NOW), Some(Health::Ejected { until }));
    assert_eq!(fail(&mut group, NOW), None);
    assert_eq!(group.upstreams()[0].health(until), Health::Up);
    // What the client brought upon itself, and clients that left, are no failures.
    for _ in 0..5 {
        group.on_picked(id);
        group.on_abandoned(id);
        group.on_picked(id);
        group.on_answered(id, until);
    }
    assert_eq!(group.upstreams()[0].connections(), 0);
    assert_eq!(fail(&mut group, until), None);
    assert_eq!(group.on_check_result(id, false, until), None);
    assert_eq!(group.on_check_result(id, false, until), None);
    assert_eq!(group.on_check_result(id, false, until), Some(Health::Down));
    assert_eq!(group.on_check_result(id, true, until), None);
    assert_eq!(group.on_check_result(id, true, until), Some(Health::Up));
    // Nobody knows it.
    let nobody = UpstreamId(99.try_into().expect("a number"));
    assert_eq!(group.on_check_result(nobody, false, until), None);
    assert_eq!(connect_failed(&mut group, nobody, until, 0), None);
}

/// Whatever clients meet, half of a group is left, and the only upstream always.
#[test]
fn half_of_a_group_is_never_ejected() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (9, 4)] {
        let mut group = group(options(Balance::RoundRobin), &vec![1; count]);
        let ids: Vec<UpstreamId> = group.upstreams().iter().map(Upstream::id).collect();
        for number in 0..20_u8 {
            for id in &ids {
                group.on_picked(*id);
                failed(&mut group, *id, Evidence::Client([192, 0, 2, number].into()), NOW, 0);
                group.on_picked(*id);
                connect_failed(&mut group, *id, NOW, 0);
            }
        }
        let ejected = group.upstreams().iter().filter(|it| it.health(NOW) != Health::Up).count();
        assert_eq!(ejected, most, "of {count}");
    }
}

/// One of four comes new. Its part of the round grows from a tenth of a share to a whole one.
#[test]
fn slow_start_ramps_the_share() {
    let slow = |balance| GroupOptions { slow_start: 10 * SECOND, ..options(balance) };
    let mut group = group(slow(Balance::RoundRobin), &[1, 1, 1]);
    // What is there at the start starts whole.
    assert_eq!(group.upstreams()[0].record.ramp(Time(0), 10 * SECOND), 1000);
    let list = list(&[1, 1, 1, 1]);
    group.reconfigure(slow(Balance::RoundRobin), list.clone(), NOW).expect("good");
    for (seconds, share) in [(0, 0.1), (5, 0.55), (10, 1.0), (100, 1.0)] {
        let now = NOW + seconds * SECOND;
        let mut count = 0;
        for _ in 0..3100 {
            let id = picked(group.pick(&client(0, 0), now, &Tried::default()));
            count += u64::from(group.index(id) == Some(3));
        }
        let want = 3100.0 * share / (3.0 + share);
        assert!((count as f64 - want).abs() <= 2.0, "{count} after {seconds} s, not {want}");
    }
    // A reload does not begin it again.
    group.reconfigure(slow(Balance::RoundRobin), list.clone(), NOW + 5 * SECOND).expect("good");
    assert_eq!(group.upstreams()[3].record.ramp(NOW + 5 * SECOND, 10 * SECOND), 550);
    // Being let in again does.
    let id = group.upstreams()[0].id();
    group.set_mode(id, Mode::Draining, NOW);
    group.set_mode(id, Mode::Active, NOW + 20 * SECOND);
    assert_eq!(group.upstreams()[0].record.ramp(NOW + 20 * SECOND, 10 * SECOND), 100);
    // By the file as well.
    let mut drained = list.clone();
    drained[1].mode = Mode::Draining;
    for list in [drained, list.clone()] {
        let options = slow(Balance::RoundRobin);
        group.reconfigure(options, list, NOW + 20 * SECOND).expect("good");
    }
    assert_eq!(group.upstreams()[1].record.ramp(NOW + 20 * SECOND, 10 * SECOND), 100);
    assert_eq!(group.upstreams()[2].record.ramp(NOW + 20 * SECOND, 10 * SECOND), 1000);
    // Keys stay where they are.
    let hash = Balance::Hash { key: HashKey::ClientIp, load_factor_percent: None };
    group.reconfigure(slow(hash), list, NOW + 20 * SECOND).expect("good");
    let mut whole = super::tests::group(hashed(None), &[1, 1, 1, 1]);
    assert_eq!(places(&mut group, 1000), places(&mut whole, 1000));
}
