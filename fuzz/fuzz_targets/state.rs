//! Bytes as a saved session of a tiny model: what is taken is saved again as it was, and the
//! session goes on from it.
#![no_main]

use std::cell::RefCell;

use distill_edge::Session;
use distill_fuzz::limits::assert_within;
use distill_fuzz::meter::{peak, without_leaks};
use distill_fuzz::{run, states};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SESSIONS: RefCell<Vec<Session>> = RefCell::new(states::sessions());
}

fuzz_target!(|bytes: &[u8]| {
    SESSIONS.with_borrow_mut(|sessions| {
        for session in sessions {
            without_leaks(|| restore(session, bytes));
        }
    });
});

fn restore(session: &mut Session, bytes: &[u8]) {
    let (restored, used) = peak(|| session.restore_from(bytes, run::name()));
    // The ids, checked before they are kept, and the text of an error.
    assert_within("restoring", used, 1, bytes.len(), 4 << 10);
    if restored.map_err(|error| error.to_string()).is_err() {
        assert_eq!(session.position(), 0);
        return;
    }
    let mut again = Vec::with_capacity(bytes.len());
    session.save_to(&mut again).expect("memory takes everything");
    assert_eq!(again, bytes);
    if session.position() < session.context() {
        session.decode(1).expect("a token of the vocabulary");
    }
}
