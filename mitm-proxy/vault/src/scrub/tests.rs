//! No form of the secret survives, wherever chunks are cut, and no other byte changes.
//! The measure is a slow scrubber that sees the whole body at once and looks at every place for every form.

use proptest::collection::vec;
use proptest::prelude::*;

use policies::Auth;

use super::*;
use crate::secret::Secret;

fn scrubber(secret: &[u8], auth: &Auth) -> Scrubber {
    Scrubber::new(Arc::new(Forms::of(&Secret::new(secret.to_vec()), auth)))
}

fn scrub(secret: &[u8], chunks: &[&[u8]]) -> Vec<u8> {
    let mut scrubber = scrubber(secret, &Auth::Bearer);
    let mut clean = Vec::new();
    for chunk in chunks {
        clean.extend(scrubber.push(Bytes::copy_from_slice(chunk)));
    }
    clean.extend(scrubber.finish());
    clean
}

/// The slow scrubber.
fn expected(secret: &[u8], body: &[u8]) -> Vec<u8> {
    let mut clean = body.to_vec();
    let forms = Forms::of(&Secret::new(secret.to_vec()), &Auth::Bearer);
    for form in forms.iter() {
        for (at, window) in body.windows(form.len()).enumerate() {
            if window == form {
                clean[at..at + form.len()].fill(MASK);
            }
        }
    }
    clean
}

fn contains(text: &[u8], form: &[u8]) -> bool {
    text.windows(form.len()).any(|window| window == form)
}

const SECRET: &[u8] = b"sk_live_a/b+c";

#[test]
fn a_secret_in_one_chunk_or_cut_anywhere_is_hidden() {
    let body = [b"{\"echo\":\"", SECRET, b"\"}"].concat();
    // Positive control: another secret's scrubber lets it through.
    assert_eq!(scrub(b"another-secret", &[&body]), body);
    for cut in 0..=body.len() {
        let (one, two) = body.split_at(cut);
        assert_eq!(
            scrub(SECRET, &[one, two]),
            b"{\"echo\":\"*************\"}",
            "cut at {cut}"
        );
    }
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(scrub(SECRET, &bytes), b"{\"echo\":\"*************\"}");
}

#[test]
fn what_cannot_be_a_secret_is_not_held_back() {
    let mut scrubber = scrubber(SECRET, &Auth::Bearer);
    for event in ["data: {\"token\":\"hello\"}\n\n", "data: [DONE]\n\n"] {
        assert_eq!(scrubber.push(event.into()), event);
    }
    // A tail that could be one is held, and let go as soon as it cannot be.
    assert_eq!(scrubber.push("the key is sk_live".into()), "the key is ");
    assert_eq!(scrubber.push("_Z and more".into()), "sk_live_Z and more");
    assert_eq!(scrubber.push("again s".into()), "again ");
    assert_eq!(scrubber.finish(), "s");
    assert_eq!(scrubber.finish(), "");
}

#[test]
fn hold_back_is_shorter_than_the_longest_form() {
    let longest = Forms::of(&Secret::new(SECRET.to_vec()), &Auth::Bearer)
        .iter()
        .map(<[u8]>::len)
        .max();
    let mut scrubber = scrubber(SECRET, &Auth::Bearer);
    for byte in SECRET.repeat(50) {
        scrubber.push(vec![byte].into());
        assert!(scrubber.held.len() < longest.unwrap());
    }
}

#[test]
fn forms_that_overlap_are_hidden_whole() {
    // The end of one is the beginning of the next.
    assert_eq!(scrub(b"abcdabcd", &[b"xabcdabcdabcdy"]), b"x************y");
    assert_eq!(
        scrub(b"abcdabcd", &[b"xabcdabcda", b"bcdy"]),
        b"x************y"
    );
    assert_eq!(scrub(b"aaaaaaaa", &[&b"a".repeat(9)]), b"*********");
}

#[test]
fn headers_are_scrubbed_whatever_their_bytes() {
    let scrubber = scrubber(SECRET, &Auth::Bearer);
    assert_eq!(
        scrubber.scrub_str("key=sk_live_a%2Fb%2Bc; x"),
        "key=*****************; x"
    );
    assert!(matches!(
        scrubber.scrub_str("nothing here"),
        Cow::Borrowed("nothing here")
    ));
    let value = HeaderValue::from_bytes(&[b"\xff", SECRET].concat()).unwrap();
    assert_eq!(
        scrubber.scrub_value(&value).as_bytes(),
        b"\xff*************"
    );
}

#[test]
fn a_scrubber_shows_no_secret_and_an_idle_one_changes_nothing() {
    let mut scrubber = scrubber(SECRET, &Auth::Bearer);
    scrubber.push("sk_live".into());
    assert_eq!(format!("{scrubber:?}"), "Scrubber { held: 7, .. }");
    let mut idle = Scrubber::default();
    assert!(idle.is_idle());
    assert_eq!(idle.push("anything".into()), "anything");
    assert_eq!(idle.finish(), "");
}

/// Secrets of a small alphabet, so that parts of them and their overlaps are common; and of any bytes.
fn secrets() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(prop::sample::select(b"ab/+\"%".to_vec()), 8..14),
        vec(0x21..0x7f_u8, 8..40),
        "[a-zäö€😀/\"\\\\ ]{8,20}".prop_map(String::into_bytes),
        vec(0x80..=0xff_u8, 8..20),
    ]
    .prop_map(|mut secret: Vec<u8>| {
        secret
            .iter_mut()
            .filter(|byte| **byte == MASK)
            .for_each(|byte| *byte = b'x');
        secret
    })
}

/// A body of noise, whole forms and parts of forms; and where it is cut.
fn bodies() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, Vec<usize>)> {
    let pieces = vec(
        (
            any::<prop::sample::Index>(),
            0..4_u8,
            vec(any::<u8>(), 0..6),
        ),
        0..8,
    );
    (secrets(), pieces, vec(any::<prop::sample::Index>(), 0..6)).prop_map(
        |(secret, pieces, cuts)| {
            let forms = Forms::of(&Secret::new(secret.clone()), &Auth::Bearer);
            let forms: Vec<&[u8]> = forms.iter().collect();
            let mut body = Vec::new();
            for (which, kind, noise) in pieces {
                let form = which.get(&forms);
                match kind {
                    0 => body.extend_from_slice(&noise),
                    1 => body.extend_from_slice(&form[..which.index(form.len())]),
                    2 => body.extend_from_slice(&form[which.index(form.len())..]),
                    _ => body.extend_from_slice(form),
                }
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.sort_unstable();
            (secret, body, cuts)
        },
    )
}

proptest! {
    #[test]
    fn fuzz_no_form_survives_and_nothing_else_changes((secret, body, cuts) in bodies()) {
        let mut chunks = Vec::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([body.len()]) {
            chunks.push(&body[from..cut]);
            from = cut;
        }
        let clean = scrub(&secret, &chunks);
        prop_assert_eq!(&clean, &expected(&secret, &body));
        for form in Forms::of(&Secret::new(secret), &Auth::Bearer).iter() {
            prop_assert!(!contains(&clean, form));
        }
    }

    /// Whatever stands before and after it, an encoder's output shows no six characters in a row that the secret decides.
    #[test]
    fn fuzz_base64_hides_it_at_every_alignment(before in vec(any::<u8>(), 0..7), after in vec(any::<u8>(), 0..7), secret in secrets()) {
        use base64::Engine as _;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
        let text = [&before[..], &secret, &after].concat();
        for encoded in [STANDARD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            let clean = scrub(&secret, &[encoded.as_bytes()]);
            prop_assert_eq!(clean.len(), encoded.len());
            let hidden = clean.iter().filter(|byte| **byte == MASK).count();
            // All but at most one character at either edge.
            prop_assert!(hidden >= secret.len() * 8 / 6 - 2, "{} of {}", hidden, encoded);
            // What belongs to the surroundings alone stays.
            let first = before.len() * 8 / 6;
            prop_assert_eq!(&clean[..first], &encoded.as_bytes()[..first]);
        }
    }

    #[test]
    fn fuzz_what_a_json_encoder_writes_is_hidden(secret in "[a-z/\"\\\\<&äö😀]{8,20}") {
        let encoded = serde_json::to_vec(&serde_json::json!({ "echo": secret })).unwrap();
        let clean = scrub(secret.as_bytes(), &[&encoded]);
        let inner = &clean[9..clean.len() - 2];
        prop_assert!(inner.iter().all(|byte| *byte == MASK), "{}", String::from_utf8_lossy(&clean));
    }
}
