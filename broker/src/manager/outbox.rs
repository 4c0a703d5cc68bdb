//! What the manager is still to be told, in order.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

/// One thing.
#[derive(Debug)]
pub(super) enum Message {
    /// What becomes of the broker.
    States(String),
    /// It lives.
    Alive,
    /// To keep this by that name.
    Keep(String, OwnedFd),
    /// To keep it no more.
    Remove(String),
    /// Nothing: somebody wants to know when all before was told.
    Tell(oneshot::Sender<()>),
}

/// All of it. What an operator and a clock cause is bounded here; fds and their removals are by what has them.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<Message>);

impl Outbox {
    pub(super) fn push(&mut self, message: Message) {
        /// News beyond that are not worth telling: the last ones say how things are.
        const STATES: usize = 32;

        let is_state = |message: &Message| matches!(message, Message::States(_));
        match &message {
            Message::Alive if self.0.iter().any(|other| matches!(other, Message::Alive)) => return,
            Message::States(_) if self.0.iter().filter(|other| is_state(other)).count() >= STATES => {
                let oldest = self.0.iter().position(is_state);
                drop(oldest.and_then(|oldest| self.0.remove(oldest)));
            }
            _ => {}
        }
        self.0.push_back(message);
    }

    /// Has something kept no more: where it was not given away yet it never is.
    pub(super) fn remove(&mut self, name: String) {
        let waits = |message: &Message| matches!(message, Message::Keep(kept, _) if *kept == name);
        match self.0.iter().rposition(waits) {
            Some(waits) => drop(self.0.remove(waits)),
            None => self.0.push_back(Message::Remove(name)),
        }
    }

    pub(super) fn front(&self) -> Option<&Message> {
        self.0.front()
    }

    pub(super) fn pop(&mut self) -> Option<Message> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn words(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.pop())
            .map(|message| match message {
                Message::States(states) => states,
                Message::Alive => "alive".into(),
                Message::Keep(name, _) => format!("keep {name}"),
                Message::Remove(name) => format!("remove {name}"),
                Message::Tell(_) => "tell".into(),
            })
            .collect()
    }

    #[test]
    fn what_was_not_given_away_is_taken_back() {
        let mut outbox = Outbox::default();
        // A name may come again.
        for name in ["a", "b", "a"] {
            outbox.push(Message::Keep(name.into(), fd()));
        }
        outbox.remove("a".into());
        outbox.remove("c".into());
        outbox.push(Message::Keep("c".into(), fd()));
        assert_eq!(words(&mut outbox), ["keep a", "keep b", "remove c", "keep c"]);
    }

    #[test]
    fn what_nobody_hears_is_bounded_and_the_last_of_it_stays() {
        let mut outbox = Outbox::default();
        for number in 0..1000 {
            outbox.push(Message::Alive);
            outbox.push(Message::States(number.to_string()));
        }
        let words = words(&mut outbox);
        assert_eq!(words.len(), 33);
        assert_eq!(words.last().unwrap(), "999");
    }
}
