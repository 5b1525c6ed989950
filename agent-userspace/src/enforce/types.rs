//! Where the running kernel keeps the few fields that the label reads, from the kernel's own type information (BTF).
//! Place on the path: before the programs are loaded; they get the places as constants.
//! INVARIANT: a place is one that the kernel itself names; without it the programs that need it are not loaded.

use std::fs;
use std::io;
use std::sync::OnceLock;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Kinds of types (linux/btf.h).
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Anonymous structures inside each other, in the deepest of which a field may lie.
const DEPTH: u32 = 4;

/// Bytes from the beginning of each structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) task_atomic_flags: u64,
    pub(super) task_group_leader: u64,
    pub(super) task_cgroups: u64,
    pub(super) css_set_dfl_cgrp: u64,
    pub(super) cgroup_level: u64,
    pub(super) cgroup_ancestors: u64,
    pub(super) cgroup_kn: u64,
    pub(super) kernfs_node_id: u64,
}

/// Why there are no places.
#[derive(Debug, thiserror::Error)]
pub(super) enum TypesError {
    /// The kernel has no such field. Before Linux 6.1, a cgroup has no list of its ancestors.
    #[error("the kernel has no {structure}.{field}")]
    Field {
        structure: &'static str,
        field: &'static str,
    },
    /// Not what BTF looks like, or of a later version.
    #[error("the kernel's type information cannot be read")]
    Malformed,
    /// There is none.
    #[error("the kernel has no type information ({VMLINUX}: {0})")]
    Missing(#[source] io::Error),
}

/// The places of the running kernel. Read once: a kernel does not change.
pub(super) fn places() -> Result<Places, &'static TypesError> {
    static PLACES: OnceLock<Result<Places, TypesError>> = OnceLock::new();
    let places = PLACES.get_or_init(|| {
        let bytes = fs::read(VMLINUX).map_err(TypesError::Missing)?;
        Types::parse(&bytes)?.places()
    });
    places.as_ref().copied()
}

/// The types of one BTF blob, in the order of their ids.
struct Types<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

struct Type<'a> {
    name: u32,
    kind: u32,
    bitfields: bool,
    /// What follows the type's own twelve bytes.
    rest: &'a [u8],
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, TypesError> {
        let word = |at: usize| word(bytes, at);
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        if magic != Some(MAGIC) {
            return Err(TypesError::Malformed);
        }
        let header = word(4)?;
        let (types, types_length) = (word(8)?, word(12)?);
        let (strings, strings_length) = (word(16)?, word(20)?);
        let part = |offset: u32, length: u32| {
            let begin = header as usize + offset as usize;
            bytes
                .get(begin..begin + length as usize)
                .ok_or(TypesError::Malformed)
        };
        let strings = part(strings, strings_length)?;
        let mut rest = part(types, types_length)?;
        // Id 0 is void.
        let mut types = vec![Type {
            name: 0,
            kind: 0,
            bitfields: false,
            rest: &[],
        }];
        while !rest.is_empty() {
            let (name, info) = (self::word(rest, 0)?, self::word(rest, 4)?);
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            let length = length(kind, count)?;
            let (one, others) = rest
                .split_at_checked(12 + length)
                .ok_or(TypesError::Malformed)?;
            types.push(Type {
                name,
                kind,
                bitfields: info >> 31 == 1,
                rest: one.get(12..).unwrap_or_default(),
            });
            rest = others;
        }
        Ok(Self { types, strings })
    }

    fn places(&self) -> Result<Places, TypesError> {
        Ok(Places {
            task_atomic_flags: self.place("task_struct", "atomic_flags")?,
            task_group_leader: self.place("task_struct", "group_leader")?,
            task_cgroups: self.place("task_struct", "cgroups")?,
            css_set_dfl_cgrp: self.place("css_set", "dfl_cgrp")?,
            cgroup_level: self.place("cgroup", "level")?,
            cgroup_ancestors: self.place("cgroup", "ancestors")?,
            cgroup_kn: self.place("cgroup", "kn")?,
            kernfs_node_id: self.place("kernfs_node", "id")?,
        })
    }

    /// Where a field lies in a structure, in bytes; also one of an anonymous structure inside.
    fn place(&self, structure: &'static str, field: &'static str) -> Result<u64, TypesError> {
        self.types
            .iter()
            .filter(|found| found.kind == STRUCT && self.name(found.name) == structure.as_bytes())
            .find_map(|found| self.find(found, field, DEPTH))
            .map(|bits| u64::from(bits / 8))
            .ok_or(TypesError::Field { structure, field })
    }

    /// The same in bits, from the beginning of `structure`.
    fn find(&self, structure: &Type<'_>, field: &str, depth: u32) -> Option<u32> {
        structure.rest.chunks_exact(12).find_map(|member| {
            let (name, id) = (word(member, 0).ok()?, word(member, 4).ok()?);
            let offset = word(member, 8).ok()?;
            let offset = if structure.bitfields {
                offset & 0xff_ffff
            } else {
                offset
            };
            if self.name(name) == field.as_bytes() {
                return Some(offset);
            }
            let inner = self.types.get(id as usize)?;
            let anonymous = name == 0 && matches!(inner.kind, STRUCT | UNION) && depth > 0;
            let within = anonymous.then(|| self.find(inner, field, depth - 1))?;
            within.map(|within| offset + within)
        })
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let from = self.strings.get(offset as usize..).unwrap_or_default();
        from.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// The bytes that follow a type of this kind.
fn length(kind: u32, count: usize) -> Result<usize, TypesError> {
    match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => Ok(0),
        // Integers, variables, declaration tags.
        1 | 14 | 17 => Ok(4),
        // Arrays.
        3 => Ok(12),
        // Structures, unions, sections, 64-bit enumerations.
        STRUCT | UNION | 15 | 19 => Ok(count * 12),
        // Enumerations, prototypes.
        6 | 13 => Ok(count * 8),
        _ => Err(TypesError::Malformed),
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, TypesError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_ne_bytes(*word))
        .ok_or(TypesError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with `struct cgroup { int level; struct { union { long ancestors; }; }; }`.
    fn blob() -> Vec<u8> {
        let strings = b"\0cgroup\0level\0ancestors\0int\0long\0";
        let types: [&[u32]; 5] = [
            &[24, 1 << 24, 4, 32],
            &[28, 1 << 24, 8, 64],
            // An anonymous union and an anonymous structure around it.
            &[0, 5 << 24 | 1, 8, 14, 2, 0],
            &[0, 4 << 24 | 1, 8, 0, 3, 0],
            &[1, 4 << 24 | 2, 16, 8, 1, 0, 0, 4, 64],
        ];
        let types: Vec<u32> = types.concat();
        let mut header = vec![24, 0, types.len() as u32 * 4];
        header.extend([types.len() as u32 * 4, strings.len() as u32]);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in header.iter().chain(&types) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_also_in_anonymous_structures() {
        let bytes = blob();
        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.place("cgroup", "level").unwrap(), 0);
        assert_eq!(types.place("cgroup", "ancestors").unwrap(), 8);
        for (structure, field) in [("cgroup", "kn"), ("css_set", "level")] {
            let error = types.place(structure, field).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the kernel has no {structure}.{field}")
            );
        }
    }

    #[test]
    fn cut_short_or_of_an_unknown_kind_is_malformed() {
        let bytes = blob();
        for length in 0..bytes.len() {
            assert!(Types::parse(&bytes[..length]).is_err(), "{length}");
        }
        let mut unknown = bytes;
        unknown[24 + 7] = 31;
        assert!(matches!(Types::parse(&unknown), Err(TypesError::Malformed)));
    }
}
