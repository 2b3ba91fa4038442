use super::*;

const A: TenantId = TenantId::from_raw(20);
const B: TenantId = TenantId::from_raw(21);
const WINDOW: Duration = Duration::from_millis(100);
const MS: u64 = 1_000_000;

fn sample(tenant: TenantId, on_worker: Used) -> Sample {
    Sample {
        tenant,
        weight: 1,
        at_least: Part::default(),
        isolation: Isolation::Auto,
        kept_apart: false,
        on_worker,
        in_lane: Used::default(),
    }
}

/// In the lane, or on the worker, with these slow polls.
fn slow(count: u64, in_lane: bool) -> Sample {
    let used = Used { cpu: count * 3 * MS, polls: count, slow: count, waited: 0 };
    let mut sample = sample(A, if in_lane { Used::default() } else { used });
    sample.in_lane = if in_lane { used } else { Used::default() };
    sample
}

/// One that runs all the time, beside one whose 50 polls each wait for so long.
fn hog(wait: Duration) -> [Sample; 2] {
    let waited = u64::try_from(wait.as_nanos()).unwrap() * 50;
    [
        sample(A, Used { cpu: 95 * MS, polls: 950, slow: 0, waited: 0 }),
        sample(B, Used { cpu: 5 * MS, polls: 50, slow: 0, waited }),
    ]
}

struct Run(Judge, Duration);

impl Run {
    fn new() -> Self {
        let mut run = Self(Judge::default(), Duration::from_secs(100));
        assert_eq!(run.next(&[]), []);
        run
    }

    fn next(&mut self, samples: &[Sample]) -> Vec<Move> {
        self.1 += WINDOW;
        self.0.judge(self.1, samples)
    }

    /// Windows with such samples until somebody moves.
    fn until_moved(&mut self, samples: &[Sample], most: u32) -> Option<(u32, Vec<Move>)> {
        (1..=most).map(|window| (window, self.next(samples))).find(|(_, moves)| !moves.is_empty())
    }
}

const TO_LANE: Move = Move { tenant: A, to_lane: true, cause: Cause::SlowPolls };

#[test]
fn three_slow_polls_within_a_second() {
    let mut run = Run::new();
    assert_eq!(run.next(&[slow(2, false)]), []);
    assert_eq!(run.until_moved(&[slow(0, false)], 8), None);
    assert_eq!(run.next(&[slow(1, false)]), [TO_LANE]);
    let mut run = Run::new();
    assert_eq!(run.next(&[slow(2, false)]), []);
    assert_eq!(run.until_moved(&[slow(0, false)], 9), None);
    assert_eq!(run.next(&[slow(1, false)]), [], "the first two were longer ago");
    assert_eq!(run.next(&[slow(2, false)]), [TO_LANE]);
}

/// Whoever closes all connections between two looks is not forgotten.
#[test]
fn slow_polls_count_also_if_their_tenant_was_away_meanwhile() {
    let mut run = Run::new();
    assert_eq!(run.next(&[slow(1, false)]), []);
    assert_eq!(run.until_moved(&[], 4), None);
    assert_eq!(run.next(&[slow(1, false)]), []);
    assert_eq!(run.until_moved(&[], 3), None);
    assert_eq!(run.next(&[slow(1, false)]), [TO_LANE]);
    let mut run = Run::new();
    assert_eq!(run.next(&[slow(2, false)]), []);
    assert_eq!(run.until_moved(&[], 10), None);
    assert_eq!(run.0.histories.len(), 0, "it was too long ago");
    assert_eq!(run.next(&[slow(2, false)]), []);
}

#[test]
fn five_seconds_without_an_offence_lead_back() {
    let mut run = Run::new();
    assert_eq!(run.next(&[slow(3, false)]), [TO_LANE]);
    assert_eq!(run.0.in_lane().collect::<Vec<_>>(), [A]);
    assert_eq!(run.until_moved(&[slow(0, true)], 49), None);
    assert_eq!(run.next(&[slow(1, true)]), [], "one is enough to stay");
    let back = Move { to_lane: false, cause: Cause::Clean, ..TO_LANE };
    assert_eq!(run.until_moved(&[slow(0, true)], 100), Some((50, vec![back])));
    assert_eq!(run.next(&[slow(2, false)]), [], "it begins anew");
    assert_eq!(run.0.in_lane().count(), 0);
}

#[test]
fn who_is_kept_apart_goes_and_comes_back_five_seconds_after() {
    let mut run = Run::new();
    let kept_apart = Sample { kept_apart: true, ..slow(0, false) };
    assert_eq!(run.next(&[Sample { isolation: Isolation::Shared, ..kept_apart }]), []);
    assert_eq!(run.next(&[kept_apart]), [Move { cause: Cause::Panics, ..TO_LANE }]);
    assert_eq!(run.until_moved(&[kept_apart], 100), None);
    let back = Move { to_lane: false, cause: Cause::Clean, ..TO_LANE };
    assert_eq!(run.until_moved(&[slow(0, false)], 100), Some((50, vec![back])));
}

#[test]
fn a_hog_moves_when_others_wait_for_it() {
    let mut run = Run::new();
    let moved = Some((5, vec![Move { cause: Cause::OverShare, ..TO_LANE }]));
    assert_eq!(run.until_moved(&hog(Duration::from_micros(999)), 50), None, "fair shares do");
    assert_eq!(run.until_moved(&hog(Duration::from_micros(1001)), 50), moved);
    // Nobody waits for it any more, since it is there; but it would be the same again.
    let [a, b] = hog(Duration::ZERO);
    let in_lane = Sample { on_worker: Used::default(), in_lane: a.on_worker, ..a };
    assert_eq!(run.until_moved(&[in_lane, b], 200), None);
    let calm = Sample { in_lane: Used { cpu: 6 * MS, polls: 60, ..Used::default() }, ..in_lane };
    assert_eq!(run.until_moved(&[calm, b], 200).map(|(windows, _)| windows), Some(50));
}

#[test]
fn who_has_the_weight_or_the_time_alone_is_no_hog() {
    let mut run = Run::new();
    let [mut a, b] = hog(Duration::from_millis(50));
    assert_eq!(run.until_moved(&[a], 50), None);
    a.weight = 19;
    assert_eq!(run.until_moved(&[a, b], 50), None, "it has what it may have");
    a.weight = 9;
    assert!(run.until_moved(&[a, b], 50).is_some());
    // Or what it is guaranteed: of 100 ms it uses 90 or so.
    let mut run = Run::new();
    let [mut a, b] = hog(Duration::from_millis(50));
    a.at_least = Part::of_millionths(a.on_worker.cpu as u32 / 100 * 4 / 5);
    assert_eq!(run.until_moved(&[a, b], 50), None, "it has what it is guaranteed");
    a.at_least = Part::of_millionths(a.on_worker.cpu as u32 / 100 * 3 / 4);
    assert!(run.until_moved(&[a, b], 50).is_some());
    // Much more than the other, and next to nothing.
    let mut run = Run::new();
    let [mut a, mut b] = hog(Duration::from_millis(50));
    (a.on_worker.cpu, b.on_worker.cpu) = (24 * MS, MS);
    assert_eq!(run.until_moved(&[a, b], 50), None);
    a.on_worker.cpu = 25 * MS;
    assert!(run.until_moved(&[a, b], 50).is_some());
}

#[test]
fn settings_decide_at_once_and_above_all() {
    let mut run = Run::new();
    let with = |isolation, sample: Sample| Sample { isolation, ..sample };
    let configured = |to_lane| Move { tenant: A, to_lane, cause: Cause::Configured };
    assert_eq!(run.until_moved(&[with(Isolation::Shared, slow(9, false))], 50), None);
    assert_eq!(run.next(&[with(Isolation::Lane, slow(0, false))]), [configured(true)]);
    assert_eq!(run.until_moved(&[with(Isolation::Lane, slow(0, true))], 100), None);
    assert_eq!(run.next(&[with(Isolation::Auto, slow(0, true))]), [configured(false)]);
    assert_eq!(run.next(&[slow(3, false)]), [TO_LANE]);
    assert_eq!(run.next(&[with(Isolation::Shared, slow(3, true))]), [configured(false)]);
}

/// Whatever happens, nobody goes to the lane and back within five seconds unless settings say so, and what is forgotten is
/// nobody who is in it.
#[test]
fn nobody_goes_to_and_fro() {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut run, mut entered) = (Run::new(), HashMap::<TenantId, Duration>::new());
    let mut moves = 0;
    for _ in 0..200_000 {
        let mut samples = Vec::new();
        for raw in 16..20 {
            let tenant = TenantId::from_raw(raw);
            if random.bool() && !entered.contains_key(&tenant) {
                continue;
            }
            let used = Used {
                cpu: random.u64(..100 * MS),
                polls: random.u64(..1000),
                slow: if random.u8(..60) == 0 { random.u64(..3) } else { 0 },
                waited: random.u64(..2000 * MS),
            };
            let mut sample = sample(tenant, used);
            if entered.contains_key(&tenant) {
                let used = if random.u8(..40) == 0 { used } else { Used::default() };
                (sample.on_worker, sample.in_lane) = (Used::default(), used);
            }
            samples.push(sample);
        }
        for Move { tenant, to_lane, cause } in run.next(&samples) {
            moves += 1;
            match entered.remove(&tenant) {
                None => assert!(to_lane && cause != Cause::Clean && entered.insert(tenant, run.1).is_none()),
                Some(since) => assert!(!to_lane && cause == Cause::Clean && run.1 - since >= CLEAN_FOR),
            }
        }
        assert_eq!(run.0.in_lane().count(), entered.len());
        assert!(run.0.histories.len() <= 4);
    }
    assert!(moves > 50, "{moves}");
}
