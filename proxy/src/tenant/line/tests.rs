use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::task::Wake;

use super::super::Rate;
use super::*;

/// A task that may be woken.
#[derive(Debug, Default)]
struct Task(AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Task {
    fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    fn was_woken(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

fn bandwidth(per_second: u64, burst: u64) -> Bandwidth {
    let [per_second, burst] = [per_second, burst].map(|n| NonZeroU64::new(n).unwrap());
    Bandwidth::new(Rate { per_second, burst })
}

fn lines(count: usize, bandwidth: Bandwidth) -> Vec<Rc<Line>> {
    let commons = Arc::new(Commons::default());
    (0..count).map(|_| Rc::new(Line::new(Arc::clone(&commons), TenantId::UNKNOWN, bandwidth))).collect()
}

/// Who wants to move something, on the thread of a line.
struct Client {
    line: usize,
    flow: u32,
    bytes: usize,
    place: Place,
    task: Arc<Task>,
    /// When its time has come, once it is the first.
    due: Option<Duration>,
}

/// Threads with many clients of one tenant, and what they did.
struct World {
    lines: Vec<Rc<Line>>,
    now: Duration,
    clients: Vec<Client>,
    /// When, which line and flow, which number, how many bytes.
    gone: Vec<(Duration, (usize, u32), u64, usize)>,
}

impl World {
    fn new(count: usize, bandwidth: Bandwidth) -> Self {
        Self { lines: lines(count, bandwidth), now: Duration::from_secs(9), clients: Vec::new(), gone: Vec::new() }
    }

    /// Somebody wants to move something.
    fn come(&mut self, line: usize, bytes: usize) {
        self.come_of(0, line, bytes);
    }

    fn come_of(&mut self, flow: u32, line: usize, bytes: usize) {
        let (task, number) = (Arc::new(Task::default()), self.lines[line].next.get());
        match self.lines[line].enter_at(flow, self.now, bytes, &task.waker()) {
            Some(place) => {
                // It asks at once, as if it had been woken.
                task.waker().wake();
                self.clients.push(Client { line, flow, bytes, place, task, due: None });
            }
            None => self.gone.push((self.now, (line, flow), number, bytes)),
        }
        self.poll();
    }

    fn give_up(&mut self, index: usize) {
        self.clients.swap_remove(index);
        self.poll();
    }

    /// Polls all who were woken or whose time has come, until there are none. Asks of nobody else.
    fn poll(&mut self) {
        loop {
            let now = self.now;
            let ready = |client: &Client| client.due.is_some_and(|due| due <= now) || client.task.was_woken();
            let Some(index) = self.clients.iter().position(ready) else { return };
            let client = &mut self.clients[index];
            client.due = client.due.or_else(|| {
                let wait = client.place.ask_at(now, client.bytes, &client.task.waker())?;
                Some(now + wait)
            });
            if client.due.is_some_and(|due| due <= now) {
                let Client { line, flow, bytes, place, .. } = self.clients.swap_remove(index);
                self.gone.push((now, (line, flow), place.number, bytes));
                place.go();
            }
        }
    }

    /// When somebody goes next, if nobody comes or gives up.
    fn next(&self) -> Option<Duration> {
        self.clients.iter().filter_map(|client| client.due).min()
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.next().filter(|next| *next <= until) {
            self.now = next;
            self.poll();
        }
        self.now = until;
    }

    fn moved(&self) -> usize {
        self.gone.iter().map(|(.., bytes)| bytes).sum()
    }
}

#[test]
fn whoever_gives_up_leaves_nothing_behind() {
    let bandwidth = bandwidth(256 << 10, 64 << 10);
    let mut world = World::new(2, bandwidth);
    for round in 0..15 {
        (0..100).for_each(|n| world.come((round + n) % 2, bandwidth.piece()));
        world.pass(Duration::from_millis(100));
        while !world.clients.is_empty() {
            world.give_up(0);
        }
    }
    assert_eq!(world.lines[0].commons.standing(TenantId::UNKNOWN).waiting.load(Ordering::Relaxed), 0);
    // It was 94 seconds when all who asked had reserved.
    world.come(0, 10);
    world.pass(Duration::from_millis(130));
    assert!(world.clients.is_empty(), "{:?}", world.next());
}

#[test]
fn all_go_in_the_order_of_asking_and_are_woken_for_it() {
    let bandwidth = bandwidth(16_384, 16_384);
    let mut world = World::new(1, bandwidth);
    (0..5).for_each(|_| world.come(0, 1024));
    (0..40).for_each(|_| world.come(0, 1024));
    assert_eq!((world.gone.len(), world.clients.len()), (16, 29));
    // From the middle, the end and the beginning.
    [20, 26, 0].into_iter().for_each(|index| world.give_up(index));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.gone.len(), 16 + 26, "each after a sixteenth of a second");
    assert!(world.gone.iter().is_sorted_by_key(|(_, _, number, _)| *number));
}

#[test]
fn remote_identities_take_turns() {
    let bandwidth = bandwidth(16_384, 16_384);
    let mut world = World::new(1, bandwidth);
    world.come(0, 16_384);
    (0..1500).for_each(|_| world.come_of(1, 0, 1024));
    let calm = |world: &World| world.gone.iter().filter(|gone| gone.1.1 == 2).count();
    for _ in 0..10 {
        world.come_of(2, 0, 1024);
        let before = world.gone.len();
        world.pass(Duration::from_millis(3 * 64));
        assert!(world.gone.len() <= before + 4);
    }
    assert_eq!(calm(&world), 10, "behind one of the others each");
    // Among themselves those of a flow go in order, also when some have left.
    (0..30).for_each(|_| world.come_of(3, 0, 1024));
    while let Some(index) = world.clients.iter().position(|client| client.flow == 3 && client.place.number % 2 == 0) {
        world.give_up(index);
    }
    world.pass(Duration::from_secs(3));
    assert_eq!(world.gone.iter().filter(|gone| gone.1.1 == 3).count(), 15);
    assert!(world.gone.iter().filter(|gone| gone.1.1 == 3).is_sorted_by_key(|gone| gone.2));
}

/// Who waits elsewhere was told its moment, which stays; what was left has the next who comes, for as long as it is worth something.
#[test]
fn what_cannot_be_taken_back_is_for_the_next() {
    let bandwidth = bandwidth(16_384, 16_384);
    let piece = bandwidth.piece();
    let second = Duration::from_secs(1).mul_f64(piece as f64 / 16_384.0);
    let mut world = World::new(2, bandwidth);
    world.come(0, 16_384);
    world.come(0, piece);
    world.come(1, piece);
    world.give_up(0);
    assert_eq!(world.next(), Some(world.now + 2 * second));
    world.come(0, piece / 2);
    assert_eq!(world.next(), Some(world.now + second));
    world.give_up(1);
    world.pass(2 * second);
    assert_eq!(world.gone.len(), 2);
    world.pass(second);
    // Too late: it has had its time.
    world.come(0, 16_384);
    assert_eq!(world.clients.len(), 1);
}

#[test]
fn a_rate_is_exact_and_nobody_stands_still_whoever_gives_up() {
    for seed in 0..60 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let (rate, burst) = [(16_384, 16_384), (1_000, 20_000), (3 << 20, 65_536), (100_000_000, 1)][chance.usize(..4)];
        let (bandwidth, count) = (bandwidth(rate, burst), 1 + chance.usize(..4));
        let burst = bandwidth.burst_bytes();
        let (piece, mut world) = (bandwidth.piece(), World::new(count, bandwidth));
        let of_piece = Duration::from_secs(1).mul_f64(piece as f64 / rate as f64);
        for _ in 0..3_000 {
            match chance.usize(..5) {
                0 | 1 => {
                    let bytes = if chance.usize(..2) == 0 { piece } else { 1 + chance.usize(..piece) };
                    world.come_of(chance.u32(..3), chance.usize(..count), bytes);
                }
                2 | 3 if !world.clients.is_empty() => {
                    // Mostly the first of a line, who has reserved.
                    let first = world.clients.iter().position(|client| client.due.is_some());
                    let any = chance.usize(..world.clients.len());
                    world.give_up(first.filter(|_| chance.usize(..3) > 0).unwrap_or(any));
                }
                _ => world.pass(of_piece.mul_f64(chance.usize(..100) as f64 / 40.0)),
            }
            for line in 0..count {
                let mut here = world.clients.iter().filter(|client| client.line == line).peekable();
                let waits = here.peek().is_some();
                let due = here.filter_map(|client| client.due).min();
                assert_eq!(due.is_some(), waits, "the first of a line knows when it goes");
                // What it has reserved, and one that was too small for the next to use, of each thread.
                let longest = of_piece.mul_f64(2.0 * count as f64);
                assert!(due.is_none_or(|due| due <= world.now + longest), "{seed}: {due:?} of {:?}", world.now);
            }
        }
        let waiting: usize = world.clients.iter().map(|client| client.bytes).sum();
        world.pass(Duration::from_secs_f64(waiting as f64 / rate as f64) + 2 * of_piece * count as u32);
        assert!(world.clients.is_empty(), "{seed}: all who stayed have gone");
        for (line, flow) in (0..count).flat_map(|line| [(line, 0), (line, 1), (line, 2)]) {
            assert!(world.gone.iter().filter(|gone| gone.1 == (line, flow)).is_sorted_by_key(|gone| gone.2));
        }
        for (first, (from, ..)) in world.gone.iter().enumerate() {
            let mut sum = 0;
            for (at, .., bytes) in &world.gone[first..] {
                sum += bytes;
                let given = (*at - *from).as_secs_f64() * rate as f64 + burst;
                assert!(sum as f64 <= given + 1.0, "{seed}: {sum} of {given} at {rate}");
            }
        }
    }
}

/// A line by itself loses nothing of the rate.
#[test]
fn what_is_given_up_has_others() {
    let bandwidth = bandwidth(65_536, 16_384);
    let (mut world, mut chance) = (World::new(1, bandwidth), fastrand::Rng::with_seed(7));
    world.come(0, 16_384);
    let (began, before) = (world.now, world.moved());
    for _ in 0..2_000 {
        while world.clients.len() < 5 {
            world.come(0, bandwidth.piece());
        }
        world.give_up(chance.usize(..5));
        world.pass(Duration::from_micros(chance.usize(..40_000) as u64));
    }
    let (moved, time) = (world.moved() - before, (world.now - began).as_secs_f64());
    assert!(moved as f64 > time * 65_536.0 - 2.0 * bandwidth.piece() as f64, "{moved} in {time}");
}
