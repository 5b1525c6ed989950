//! Takes the lent secret out of what comes back: headers at once, bodies as they stream.
//! The last hands on a response before the agent sees it.
//! INVARIANT: no form of the secret leaves, wherever chunks are cut; every other byte, and every length, stays.
//!
//! Only a tail that could still become the secret is held back, at most the longest form less one byte,
//! so that server-sent events pass at once.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::HeaderValue;
use policies::Auth;
use zeroize::Zeroizing;

use crate::forms::Forms;
use crate::secret::Secret;

const MASK: u8 = b'*';

/// Replaces every form of one secret by as many asterisks. One per response.
#[derive(Default)]
pub struct Scrubber {
    forms: Forms,
    /// The end of what was pushed: could be the beginning of a form.
    held: Zeroizing<Vec<u8>>,
    /// How many bytes at the beginning of `held` belong to a form that began before it.
    masked: usize,
}

impl Scrubber {
    pub(crate) fn new(secret: &Secret, auth: &Auth) -> Scrubber {
        Scrubber {
            forms: Forms::of(secret, auth),
            ..Scrubber::default()
        }
    }

    /// Whether there is nothing to look for: nothing was lent.
    pub fn is_idle(&self) -> bool {
        self.forms.is_empty()
    }

    /// The next chunk of the body. What comes out is the next part of the scrubbed body; it may be empty.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.is_idle() || chunk.is_empty() {
            return chunk;
        }
        if self.held.is_empty()
            && self.forms.open_tail(&chunk) == chunk.len()
            && self.forms.spans(&chunk).is_empty()
        {
            return chunk;
        }
        let text = Zeroizing::new([self.held.as_slice(), &chunk].concat());
        let cut = self.forms.open_tail(&text);
        self.release(&text, cut)
    }

    /// The end of the body: what was held back.
    pub fn finish(&mut self) -> Bytes {
        let text = std::mem::take(&mut self.held);
        self.release(&text, text.len())
    }

    /// A header value or another text that is there as a whole.
    pub fn scrub_str<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.scrub_whole(text.as_bytes()) {
            None => Cow::Borrowed(text),
            Some(clean) => Cow::Owned(String::from_utf8_lossy(&clean).into_owned()),
        }
    }

    /// A header value, whatever bytes it has.
    pub fn scrub_value(&self, value: &HeaderValue) -> HeaderValue {
        let clean = self.scrub_whole(value.as_bytes());
        // An asterisk is valid wherever another byte was.
        clean
            .and_then(|clean| HeaderValue::from_bytes(&clean).ok())
            .unwrap_or_else(|| value.clone())
    }

    fn scrub_whole(&self, text: &[u8]) -> Option<Vec<u8>> {
        let spans = self.forms.spans(text);
        (!spans.is_empty()).then(|| masked(text, &spans))
    }

    /// Lets `text` up to `cut` go and holds the rest.
    fn release(&mut self, text: &[u8], cut: usize) -> Bytes {
        let mut spans = self.forms.spans(text);
        spans.push((0, self.masked));
        let (free, rest) = text.split_at_checked(cut).unwrap_or((text, &[]));
        // A form that begins in `rest` is found again with the next chunk; one that reaches into it is remembered.
        let reach = spans
            .iter()
            .filter(|(start, _)| *start < cut)
            .map(|(_, end)| *end)
            .max();
        self.masked = reach.unwrap_or(self.masked).saturating_sub(cut);
        self.held = Zeroizing::new(rest.to_vec());
        masked(free, &spans).into()
    }
}

fn masked(text: &[u8], spans: &[(usize, usize)]) -> Vec<u8> {
    let mut clean = text.to_vec();
    for (start, end) in spans {
        let end = (*end).min(clean.len());
        if let Some(span) = clean.get_mut(*start..end) {
            span.fill(MASK);
        }
    }
    clean
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber")
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
