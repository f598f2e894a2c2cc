//! Stopping: shards drain in time, and clients that keep up hear what was queued and then 1012.

use std::time::Duration;

use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{End, Farewell};
use crate::echo::{Talker, talker};
use crate::world::{Plan, World, for_seeds};

#[test]
fn stop() {
    for_seeds("stop", play);
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0x5709);
    let count = 1 + dice.below(16);
    let mut plan = Plan::pick(seed, &mut dice, count, 1);
    if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0);
    }
    plan.stop_timeout = Duration::from_millis(100 + dice.below(20_000));
    let stop_timeout = plan.stop_timeout;
    let mut world = World::new(seed, plan, dice);
    let mut talkers: Vec<Talker> = Vec::new();
    let stop_at = {
        let dice = &mut *world.dice.borrow_mut();
        let most = if dice.below(2) == 0 { 3_000 } else { 1_000_000 };
        world.now() + Duration::from_micros(dice.below(most))
    };
    for who in 0..count {
        talkers.push(talker(&world, who, "/echo"));
    }
    let mut stopped_at = None;
    // Nothing that a shard waits for is longer than a delayed operation or two.
    let slack = Duration::from_secs(5);
    let drained = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        if stopped_at.is_none() && now >= stop_at {
            stopped_at = Some(now);
            world.inboxes.iter().for_each(|inbox| inbox.stop());
        }
        // The shards hear of it in the next round, before time moves on.
        let mut wake = match stopped_at {
            None => stop_at,
            Some(at) if at == now => now,
            Some(_) => Time::NEVER,
        };
        let dice = &mut *world.dice.borrow_mut();
        for talker in &mut talkers {
            wake = wake.min(talker.play(now, dice));
        }
        let drained = world.shards.iter().all(|shard| shard.is_drained());
        (!drained).then_some(wake)
    });
    assert!(drained, "not drained");
    let took = world.now().since(stopped_at.expect("it was asked to"));
    assert!(took < stop_timeout + slack, "{took:?} of {stop_timeout:?}");
    println!("{:?}\n{:?} took {took:?}", world.plan, world.metrics());
    world.check_left();
    world.shards.clear();
    // What was sent before the end is still on its way to the clients.
    world.run(Duration::from_secs(200), |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        let wake = talkers.iter_mut().map(|talker| talker.play(now, dice)).min();
        let open = talkers
            .iter()
            .any(|talker| talker.client.line.is_open() && talker.client.is_upgraded());
        open.then_some(wake.unwrap_or(Time::NEVER))
    });
    let reset = world.network.fired(Fault::Reset) > 0;
    for (who, talker) in talkers.iter().enumerate() {
        talker.check_prefix(who);
        let line = &talker.client.line;
        let hurried = took + Duration::from_millis(500) >= stop_timeout;
        let late = line.slow || world.plan.faults.per_mille(Fault::Delay) > 0;
        let excused = line.manners.rude || late || hurried || (reset && line.end == End::Reset);
        let stays = matches!(line.farewell, Farewell::Stay | Farewell::Wait);
        if talker.client.is_upgraded() && stays && !excused && line.end != End::Gone {
            assert_eq!(line.end, End::Finished, "client {who}");
            let code = talker.client.close_code().expect("a Close frame");
            assert!(code == 1012 || Some(code) == talker.close, "client {who}: {code}");
        }
    }
    drop(talkers);
    world.finish()
}
