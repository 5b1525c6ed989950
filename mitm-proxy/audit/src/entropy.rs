//! Randomness of the kernel in small draws: salts of digests, ids of calls.
//! Drawn for every call, so a system call serves a few of them; what is drawn is never handed out twice.
//! INVARIANT: every byte comes from the kernel and goes to one caller; keys and nonces are not drawn here.

use std::cell::RefCell;

const DRAW: usize = 16;
/// A system call for so many bytes costs about as much as one for 16.
const AHEAD: usize = 16 * DRAW;

/// What a thread has of the kernel's randomness, and how much of it is left.
struct Ahead {
    bytes: [u8; AHEAD],
    left: usize,
}

thread_local! {
    static READY: RefCell<Ahead> = const {
        RefCell::new(Ahead { bytes: [0; AHEAD], left: 0 })
    };
}

/// 16 fresh bytes from the kernel's generator.
///
/// # Errors
/// The kernel has none to give.
pub fn draw() -> Result<[u8; DRAW], getrandom::Error> {
    READY.with_borrow_mut(|ready| {
        if ready.left == 0 {
            getrandom::fill(&mut ready.bytes)?;
            ready.left = AHEAD;
        }
        ready.left -= DRAW;
        let drawn = ready.bytes.get_mut(ready.left..);
        match drawn.and_then(|bytes| bytes.first_chunk_mut::<DRAW>()) {
            Some(bytes) => Ok(std::mem::take(bytes)),
            None => Err(getrandom::Error::UNEXPECTED),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_drawn_twice() {
        let here = (0..100).map(|_| draw().unwrap());
        let there = std::thread::spawn(|| (0..100).map(|_| draw().unwrap()).collect::<Vec<_>>());
        let all: BTreeSet<[u8; DRAW]> = here.chain(there.join().unwrap()).collect();
        assert_eq!(all.len(), 200);
        assert!(!all.contains(&[0; DRAW]));
    }
}
