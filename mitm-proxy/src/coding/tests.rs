//! Tests of the decoders: what a body becomes, piece by piece and whole, within its bounds.
//! Part of `coding`; no network and no files.
//! INVARIANT: a bomb is known by what it becomes, and a broken stream is never taken for a whole one.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::HeaderValue;

use super::*;

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

const JSON: &[u8] = b"{\"amount\":12}";

/// The same text in every coding; brotli as its reference encoder writes it.
fn all() -> [(Coding, Vec<u8>); 4] {
    [
        (Coding::Brotli, hex("0b06807b22616d6f756e74223a31327d03")),
        (Coding::Deflate, zlib(JSON)),
        (Coding::Gzip, gzip(JSON)),
        (Coding::Zstd, zstd(JSON)),
    ]
}

#[test]
fn every_coding_is_undone_wherever_it_is_cut() {
    for (coding, bytes) in all() {
        let body = Bytes::from(bytes.clone());
        assert_eq!(decode(coding, &body, 100).unwrap(), JSON, "{coding:?}");
        assert_eq!(decode(coding, &body, 12), Err(Flaw::Large), "{coding:?}");
        for at in 0..bytes.len() {
            let mut decoder = Decoder::new(coding);
            let mut plain = Vec::new();
            for part in [body.slice(..at), body.slice(at..)] {
                decoder.push(part);
                while let Some(piece) = decoder.pull().unwrap() {
                    plain.extend_from_slice(&piece);
                }
            }
            decoder.finish();
            while let Some(piece) = decoder.pull().unwrap() {
                plain.extend_from_slice(&piece);
            }
            assert_eq!(plain, JSON, "{coding:?} at {at}");
            assert!(decoder.over);
        }
    }
}

#[test]
fn what_ends_early_goes_on_or_is_changed_is_refused() {
    for (coding, bytes) in all() {
        for at in 0..bytes.len() {
            let cut = Bytes::copy_from_slice(&bytes[..at]);
            assert_eq!(
                decode(coding, &cut, 100),
                Err(Flaw::Broken),
                "{coding:?} {at}"
            );
        }
        let more = Bytes::from([&bytes[..], b"x"].concat());
        assert_eq!(
            decode(coding, &more, 100),
            Err(Flaw::Trailing),
            "{coding:?}"
        );
        // A second member, which some readers read and others ignore.
        let twice = Bytes::from([&bytes[..], &bytes[..]].concat());
        assert_eq!(
            decode(coding, &twice, 100),
            Err(Flaw::Trailing),
            "{coding:?}"
        );
    }
    for (coding, bytes) in [
        (Coding::Gzip, gzip(JSON)),
        (Coding::Deflate, zlib(JSON)),
        (Coding::Zstd, zstd(JSON)),
    ] {
        let mut wrong = bytes.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(
            decode(coding, &wrong.into(), 100),
            Err(Flaw::Broken),
            "{coding:?}"
        );
    }
}

#[test]
fn a_bomb_is_known_by_what_it_becomes_and_not_unpacked() {
    let zeros = vec![0_u8; 8 << 20];
    // 64 MiB of zeros in brotli.
    let brotli = hex(BROTLI_BOMB);
    // 1,000 blocks of 128 KiB in four bytes each, as no encoder writes it and every decoder reads it.
    let mut blocks = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for number in 0..1_000_u32 {
        let head = (128 * 1024_u32) << 3 | 1 << 1 | u32::from(number == 999);
        blocks.extend_from_slice(&head.to_le_bytes()[..3]);
        blocks.push(b'x');
    }
    for (coding, bytes) in [
        (Coding::Brotli, brotli),
        (Coding::Deflate, zlib(&zeros)),
        (Coding::Gzip, gzip(&zeros)),
        (Coding::Zstd, blocks),
    ] {
        let bytes = Bytes::from(bytes);
        assert_eq!(
            decode(coding, &bytes, 100 << 20),
            Err(Flaw::Bomb),
            "{coding:?}"
        );
        assert_eq!(
            decode(coding, &bytes, 4 << 20),
            Err(Flaw::Bomb),
            "{coding:?}"
        );
    }
    // Positive control: as large, and not as dense.
    let mut seed = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_be_bytes()[0] & 15
    })
    .take(2 << 20)
    .collect();
    assert_eq!(
        decode(Coding::Gzip, &gzip(&noise).into(), 100 << 20).unwrap(),
        noise
    );
}

const BROTLI_BOMB: &str = "cbffff3f002400e2b14072effff8ffff078004401c1680eefd1fffffff00900088c302d0bdffe3ffff1f001200715800baf77ffcffff034002200e0b40f7fe8fffff7f004800c46101e8defff1ffff0f000980382c00ddfb3ffeffff012001108705a07bff37";

#[test]
fn dictionaries_skippable_frames_and_large_windows_are_refused() {
    for bytes in [
        &b"\x50\x2a\x4d\x18\x04\0\0\0abcd"[..],
        b"\x28\xb5\x2f\xfd\x01\x38\x05\x01\0\0",
        b"\x28\xb5\x2f\xfd\x00\xf8\x01\0\0",
    ] {
        let body = Bytes::copy_from_slice(bytes);
        assert_eq!(
            decode(Coding::Zstd, &body, 100),
            Err(Flaw::Broken),
            "{bytes:?}"
        );
    }
}

#[test]
fn one_known_coding_is_undone_and_others_are_named() {
    let of = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        Coding::of(&headers)
    };
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&["identity"]), Ok(None));
    assert_eq!(of(&["GZIP"]), Ok(Some(Coding::Gzip)));
    assert_eq!(of(&["br"]), Ok(Some(Coding::Brotli)));
    assert_eq!(of(&["gzip, br"]), Err("gzip, br".to_owned()));
    assert_eq!(of(&["gzip", "br"]), Err("br".to_owned()));
    assert_eq!(of(&["compress"]), Err("compress".to_owned()));
}

proptest::proptest! {
    /// Whatever arrives, in whatever pieces: no panic, no end of memory, and the pieces change nothing.
    #[test]
    fn fuzz_codings(
        which in 0_usize..4,
        flips in proptest::collection::vec((0_usize..64, proptest::num::u8::ANY), 0..4),
        cut in 0_usize..64,
    ) {
        let (coding, mut bytes) = all()[which].clone();
        for (at, with) in flips {
            let length = bytes.len();
            bytes[at % length] ^= with;
        }
        let body = Bytes::from(bytes);
        let whole = decode(coding, &body, 4096);
        let mut decoder = Decoder::new(coding);
        let mut plain = Vec::new();
        let cut = cut.min(body.len());
        let mut parts = [body.slice(..cut), body.slice(cut..)].into_iter();
        let read = loop {
            match decoder.pull() {
                Err(_) => break None,
                Ok(Some(piece)) => plain.extend_from_slice(&piece),
                Ok(None) => match parts.next() {
                    Some(part) => decoder.push(part),
                    None if decoder.feed().ended => break decoder.over.then_some(plain),
                    None => drop(decoder.finish()),
                },
            }
            if plain.len() > 4096 {
                break None;
            }
        };
        proptest::prop_assert_eq!(whole.ok().map(|plain| plain.to_vec()), read);
    }
}
