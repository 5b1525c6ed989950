//! Looks for many texts at once, passing over most of what it looks through (Wu and Manber, 1994, with blocks of two bytes).
//! Under the forms of a secret: built once for each version of it, used for every header and every piece of a body.
//! INVARIANT: finds every place of every text, also where they overlap; wiped on drop, since the tables tell about the texts.

use zeroize::Zeroizing;

/// The most bytes of a text that the tables are made of: distances fit into a byte.
const LONGEST_WINDOW: usize = 255;
/// Entries of the table of distances. Texts are mostly ASCII, of which two bytes make twelve telling bits.
const BLOCKS: usize = 1 << 12;

/// Tables over some texts.
pub(crate) struct Finder {
    /// How many bytes of each text the tables know: the length of the shortest one, within bounds.
    window: usize,
    /// By block at the end of the window: how far the next window is at which a text can begin. 0 where one can begin here.
    distance: Zeroizing<Vec<u8>>,
    /// The texts by the block that ends their window, sorted.
    ending: Zeroizing<Vec<(u16, u16)>>,
}

impl Finder {
    /// Tables over `texts`, each at least two bytes long.
    pub(crate) fn new<T: AsRef<[u8]>>(texts: &[T]) -> Finder {
        let shortest = texts.iter().map(|text| text.as_ref().len()).min();
        let window = shortest.unwrap_or(0).min(LONGEST_WINDOW);
        let far = u8::try_from(window.saturating_sub(1)).unwrap_or(u8::MAX);
        let mut distance = Zeroizing::new(vec![far; BLOCKS]);
        let mut ending = Zeroizing::new(Vec::with_capacity(texts.len()));
        for (number, text) in texts.iter().enumerate() {
            let known = text.as_ref().get(..window).unwrap_or_default();
            for (at, pair) in known.windows(2).enumerate() {
                let left = u8::try_from(window - 2 - at).unwrap_or(u8::MAX);
                if let Some(entry) = distance.get_mut(usize::from(block(pair))) {
                    *entry = left.min(*entry);
                }
            }
            if let Some(pair) = known.last_chunk::<2>() {
                ending.push((block(pair), u16::try_from(number).unwrap_or(u16::MAX)));
            }
        }
        ending.sort_unstable();
        Finder {
            window,
            distance,
            ending,
        }
    }

    /// Calls `found` with the number of a text and a place where it *may* stand: the caller compares.
    pub(crate) fn candidates(&self, text: &[u8], mut found: impl FnMut(usize, usize)) {
        if self.window < 2 {
            return;
        }
        let mut end = self.window;
        while let Some(pair) = text.get(end - 2..end) {
            let block = block(pair);
            match self.distance.get(usize::from(block)) {
                Some(0) | None => {
                    let first = self.ending.partition_point(|(other, _)| *other < block);
                    let same = self.ending.get(first..).unwrap_or_default();
                    for (_, number) in same.iter().take_while(|(other, _)| *other == block) {
                        found(usize::from(*number), end - self.window);
                    }
                    end += 1;
                }
                Some(distance) => end += usize::from(*distance),
            }
        }
    }
}

/// Two bytes as a number below [`BLOCKS`]. Different blocks may share one: that costs a comparison, never a find.
fn block(pair: &[u8]) -> u16 {
    match pair {
        [one, two, ..] => (u16::from(*one) << 5 ^ u16::from(*two)) & 0xfff,
        _ => 0,
    }
}
