//! Takes the lent secret out of what comes back: headers at once, bodies as they stream.
//! The last hands on a response before the agent sees it.
//! INVARIANT: no form of the secret leaves, wherever chunks are cut; every other byte, and every length, stays.
//!
//! Only a tail that could still become the secret is held back, at most the longest form less one byte,
//! so that server-sent events pass at once.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use zeroize::{Zeroize as _, Zeroizing};

use crate::forms::Forms;

const MASK: u8 = b'*';

/// Replaces every form of one secret by as many asterisks. One per response.
#[derive(Default)]
pub struct Scrubber {
    /// `None` where nothing was lent.
    forms: Option<Arc<Forms>>,
    /// The end of what was pushed: could be the beginning of a form.
    held: Zeroizing<Vec<u8>>,
    /// How many bytes at the beginning of `held` belong to a form that began before it.
    masked: usize,
}

impl Scrubber {
    pub(crate) fn new(forms: Arc<Forms>) -> Scrubber {
        Scrubber {
            forms: Some(forms),
            ..Scrubber::default()
        }
    }

    /// Whether there is nothing to look for: nothing was lent.
    pub fn is_idle(&self) -> bool {
        self.forms.is_none()
    }

    /// The next chunk of the body. What comes out is the next part of the scrubbed body; it may be empty.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let Some(forms) = self.forms.clone() else {
            return chunk;
        };
        if chunk.is_empty() {
            return chunk;
        }
        let text = if self.held.is_empty() {
            chunk
        } else {
            Bytes::from([self.held.as_slice(), &chunk].concat())
        };
        let cut = forms.open_tail(&text);
        self.release(&forms, text, cut)
    }

    /// The end of the body: what was held back.
    pub fn finish(&mut self) -> Bytes {
        let Some(forms) = self.forms.clone() else {
            return Bytes::new();
        };
        let text = Bytes::copy_from_slice(&self.held);
        let cut = text.len();
        self.release(&forms, text, cut)
    }

    /// A header value or another text that is there as a whole.
    pub fn scrub_str<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.scrub_bytes(text.as_bytes()) {
            None => Cow::Borrowed(text),
            Some(clean) => Cow::Owned(String::from_utf8_lossy(&clean).into_owned()),
        }
    }

    /// A header value, whatever bytes it has.
    pub fn scrub_value(&self, value: &HeaderValue) -> HeaderValue {
        let clean = self.scrub_bytes(value.as_bytes());
        // An asterisk is valid wherever another byte was.
        clean
            .and_then(|clean| HeaderValue::from_bytes(&clean).ok())
            .unwrap_or_else(|| value.clone())
    }

    /// Bytes that are there as a whole; `None` where nothing of them had to be hidden.
    pub fn scrub_bytes(&self, text: &[u8]) -> Option<Vec<u8>> {
        let spans = self.forms.as_ref()?.spans(text);
        (!spans.is_empty()).then(|| {
            let mut clean = text.to_vec();
            mask(&mut clean, &spans);
            clean
        })
    }

    /// Lets `text` up to `cut` go and holds the rest.
    fn release(&mut self, forms: &Forms, text: Bytes, cut: usize) -> Bytes {
        let mut spans = forms.spans(&text);
        self.held = Zeroizing::new(text.get(cut..).unwrap_or_default().to_vec());
        if spans.is_empty() && self.masked == 0 {
            // Nothing to hide: the bytes go on as they are.
            return text.slice(..cut.min(text.len()));
        }
        spans.push((0, self.masked));
        // A form that begins in the rest is found again with the next chunk; one that reaches into it is remembered.
        let reach = spans
            .iter()
            .filter(|(start, _)| *start < cut)
            .map(|(_, end)| *end)
            .max();
        self.masked = reach.unwrap_or(self.masked).saturating_sub(cut);
        let mut clean = text.get(..cut).unwrap_or_default().to_vec();
        mask(&mut clean, &spans);
        // The secret was in here; a piece of a larger buffer is its reader's.
        if let Ok(mut text) = text.try_into_mut() {
            text.as_mut().zeroize();
        }
        clean.into()
    }
}

fn mask(text: &mut [u8], spans: &[(usize, usize)]) {
    for (start, end) in spans {
        let end = (*end).min(text.len());
        if let Some(span) = text.get_mut(*start..end) {
            span.fill(MASK);
        }
    }
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
