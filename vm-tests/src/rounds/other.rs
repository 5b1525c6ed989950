//! Another build of `sluice`, made of this one: its kernel side is other programs that do the same.
//! Under the rounds: what an upgrade is an upgrade to, without building everything twice.
//! Invariant: an instruction is only ever replaced by one that the instruction set defines to have the same effect.

use anyhow::{Context, Result, bail};

/// ELF for the BPF machine, 64 bits, little endian, relocatable.
const MAGIC: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const RELOCATABLE: u64 = 1;
const BPF: u64 = 247;
const PROGBITS: u64 = 1;
const EXECUTABLE: u64 = 4;
/// `dst = imm` in 64 bits, which sign-extends, and in 32 bits, which clears the upper half: the same for what is not negative.
const MOVE_64: u8 = 0xb7;
const MOVE_32: u8 = 0xb4;
/// A 64-bit constant takes two places, and the loader writes into them.
const LOAD_64: u8 = 0x18;
const PLACE: usize = 8;

/// Changes the programs inside a `sluice`, and says in how many places.
pub(super) fn make(program: &mut [u8]) -> Result<usize> {
    let start = object(program).context("no BPF object inside")?;
    let object = program.get_mut(start..).context("no BPF object inside")?;
    let mut changed = 0;
    for (from, length) in code(object).context("the BPF object is cut off")? {
        let code = object
            .get_mut(from..from + length)
            .context("a section lies outside of the object")?;
        changed += change(code);
    }
    if changed == 0 {
        bail!("nothing to change in the BPF object");
    }
    Ok(changed)
}

/// Where the object begins.
fn object(program: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += find(program.get(at..)?)?;
        let head = program.get(at..)?;
        if number(head, 16, 2)? == RELOCATABLE && number(head, 18, 2)? == BPF {
            return Some(at);
        }
        at += 1;
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|found| found == MAGIC)
}

/// Offset and length of each section of instructions.
fn code(object: &[u8]) -> Option<Vec<(usize, usize)>> {
    let headers = usize::try_from(number(object, 0x28, 8)?).ok()?;
    let size = usize::try_from(number(object, 0x3a, 2)?).ok()?;
    let count = usize::try_from(number(object, 0x3c, 2)?).ok()?;
    let mut found = Vec::new();
    for each in 0..count {
        let header = object.get(headers.checked_add(each.checked_mul(size)?)?..)?;
        if number(header, 4, 4)? == PROGBITS && number(header, 8, 8)? & EXECUTABLE != 0 {
            let offset = usize::try_from(number(header, 0x18, 8)?).ok()?;
            found.push((offset, usize::try_from(number(header, 0x20, 8)?).ok()?));
        }
    }
    Some(found)
}

fn change(code: &mut [u8]) -> usize {
    let (mut changed, mut skip) = (0, false);
    for place in code.chunks_exact_mut(PLACE) {
        if std::mem::take(&mut skip) {
            continue;
        }
        let [operation, _, low, high, .., sign] = place else {
            continue;
        };
        skip = *operation == LOAD_64;
        if *operation == MOVE_64 && (*low, *high) == (0, 0) && *sign < 0x80 {
            *operation = MOVE_32;
            changed += 1;
        }
    }
    changed
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let found = bytes.get(at..at.checked_add(length)?)?;
    Some(
        found
            .iter()
            .rev()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn only_moves_of_what_is_not_negative_change() {
        let mut code = [
            [MOVE_64, 1, 0, 0, 7, 0, 0, 0],
            [MOVE_64, 1, 0, 0, 0xff, 0xff, 0xff, 0xff],
            [LOAD_64, 1, 0, 0, 1, 0, 0, 0],
            // The second half of the constant, whatever it looks like.
            [MOVE_64, 0, 0, 0, 2, 0, 0, 0],
            [MOVE_64, 0, 0, 0, 0, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let before = code.clone();
        assert_eq!(change(&mut code), 2);
        let different: Vec<usize> = (0..code.len())
            .filter(|at| code.get(*at) != before.get(*at))
            .collect();
        assert_eq!(different, [0, 32]);
    }

    #[test]
    fn what_holds_no_object_is_refused() {
        assert!(make(&mut []).is_err());
        assert!(make(&mut [0; 4096]).is_err());
        let mut cut_off = [&[0_u8; 64][..], &MAGIC, &[0; 9], &[1, 0, 247, 0]].concat();
        assert!(make(&mut cut_off).is_err());
    }
}
