//! Both sides of a ring against one model, from any index on.

use std::cell::Cell;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::hostile::cases;

impl SharedIndex for &Cell<u32> {
    fn load(&self) -> u32 {
        self.get()
    }
    fn store(&self, value: u32) {
        self.set(value);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Produce { min: u32, max: u32, written: u32 },
    Publish,
    Consume { min: u32, max: u32, read: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..20u32, 0..20u32, 0..20u32).prop_map(|(min, more, written)| Step::Produce {
            min,
            max: min + more,
            written
        }),
        Just(Step::Publish),
        (0..20u32, 0..20u32, 0..20u32).prop_map(|(min, more, read)| Step::Consume {
            min,
            max: min + more,
            read
        }),
    ]
}

/// Starts that reach the wrap within a test, and any other.
fn start() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), u32::MAX - 64..=u32::MAX, 0..4u32]
}

proptest! {
    #![proptest_config(cases(256))]

    /// The oracle is a queue of numbers. Both sides run against it, from any start, over rings of any size.
    #[test]
    fn a_ring_is_a_queue(start in start(), shift in 0..6u32, steps in prop::collection::vec(step(), 1..200)) {
        let size = 1 << shift;
        let (head, tail) = (Cell::new(start), Cell::new(start));
        let mut producer = Producer::new(size, &head, &tail).unwrap();
        let mut consumer = Consumer::new(size, &head, &tail).unwrap();
        let slot = |index: u32| usize::try_from(index & (size - 1)).unwrap();
        let mut memory = vec![0; usize::try_from(size).unwrap()];
        let (mut next, mut unpublished) = (0_u64, VecDeque::new());
        let mut queue = VecDeque::new();
        let length = |queue: &VecDeque<u64>| u32::try_from(queue.len()).unwrap();
        for step in steps {
            match step {
                Step::Produce { min, max, written } => {
                    let free = size - length(&queue) - length(&unpublished);
                    let count = producer.reserve(min..=max).unwrap();
                    prop_assert_eq!(count, if free < min { 0 } else { free.min(max) });
                    let written = written.min(count);
                    for offset in 0..written {
                        memory[slot(producer.index().wrapping_add(offset))] = next;
                        unpublished.push_back(next);
                        next += 1;
                    }
                    producer.advance(written);
                }
                Step::Publish => {
                    producer.publish();
                    queue.append(&mut unpublished);
                }
                Step::Consume { min, max, read } => {
                    let count = consumer.peek(min..=max).unwrap();
                    let there = length(&queue);
                    prop_assert_eq!(count, if there < min { 0 } else { there.min(max) });
                    let read = read.min(count);
                    for offset in 0..read {
                        let value = memory[slot(consumer.index().wrapping_add(offset))];
                        prop_assert_eq!(Some(value), queue.pop_front());
                    }
                    consumer.release(read);
                }
            }
        }
    }

    /// Whatever the other side stores: an error, or no more entries than the ring has.
    #[test]
    fn no_peer_gets_more_than_the_ring(start in start(), shift in 0..6u32, lies in prop::collection::vec(start(), 1..50)) {
        let size = 1 << shift;
        let (head, tail) = (Cell::new(start), Cell::new(start));
        let mut producer = Producer::new(size, &head, &tail).unwrap();
        let mut consumer = Consumer::new(size, &head, &tail).unwrap();
        for lie in lies {
            tail.set(lie);
            if let Ok(count) = producer.reserve(1..=u32::MAX) {
                prop_assert!(count <= size);
                producer.advance(count / 2);
            }
            head.set(lie);
            if let Ok(count) = consumer.peek(1..=u32::MAX) {
                prop_assert!(count <= size);
                consumer.release(count / 2);
            }
        }
    }
}

#[test]
fn indexes_that_contradict_each_other_are_refused() {
    let (head, tail) = (Cell::new(9), Cell::new(0));
    assert!(Producer::new(8, &head, &tail).is_err());
    assert_eq!(
        Consumer::new(8, &head, &tail).unwrap_err(),
        CorruptRing {
            size: 8,
            own: 0,
            peer: 9
        }
    );
}

#[test]
fn a_kept_index_that_suffices_is_not_loaded_again() {
    struct Counting<'a>(&'a Cell<u32>, &'a Cell<u32>);
    impl SharedIndex for Counting<'_> {
        fn load(&self) -> u32 {
            self.1.set(self.1.get() + 1);
            self.0.get()
        }
        fn store(&self, value: u32) {
            self.0.set(value);
        }
    }
    let (head, tail, loads) = (Cell::new(8), Cell::new(0), Cell::new(0));
    let mut consumer = Consumer::new(8, Counting(&head, &loads), Counting(&tail, &loads)).unwrap();
    loads.set(0);
    assert_eq!(consumer.peek(1..=4), Ok(4));
    consumer.release(4);
    assert_eq!(consumer.peek(1..=4), Ok(4));
    assert_eq!(loads.get(), 0);
    consumer.release(3);
    // One is left, four are wanted: look again.
    assert_eq!(consumer.peek(1..=4), Ok(1));
    assert_eq!(loads.get(), 1);
}
