//! Accounts of the host: whom a workload or the proxy process runs as.
//! Asked once, in the parent, before anything is started.
//! INVARIANT: a name that the host does not know is an error; a number is taken as it is.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// An account: a uid, its groups and its home.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Its name, where it has one.
    pub name: Option<OsString>,
    /// Its uid.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its home directory, where the host has one for it.
    pub home: Option<PathBuf>,
}

/// Why there is no such account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The account database could not be asked.
    #[error("the account database cannot be read: {0}")]
    Database(#[source] io::Error),
    /// The name is not one of this host.
    #[error("there is no user {0:?} on this host")]
    Unknown(String),
}

impl Account {
    /// The account of this name or uid. A uid without an entry gets the gid of the same number and no groups.
    ///
    /// # Errors
    /// The name is unknown, or the account database fails.
    pub fn find(name_or_uid: &str) -> Result<Account, AccountError> {
        if let Ok(uid) = name_or_uid.parse::<u32>() {
            // The number that setresuid takes for "leave as it is" is nobody's.
            if uid == u32::MAX {
                return Err(AccountError::Unknown(name_or_uid.to_owned()));
            }
            let entry = lookup(&Key::Uid(uid))?;
            return Ok(entry.unwrap_or(Account {
                name: None,
                uid,
                gid: uid,
                groups: Vec::new(),
                home: None,
            }));
        }
        let name =
            CString::new(name_or_uid).map_err(|_| AccountError::Unknown(name_or_uid.to_owned()))?;
        lookup(&Key::Name(&name))?.ok_or_else(|| AccountError::Unknown(name_or_uid.to_owned()))
    }
}

enum Key<'a> {
    Name(&'a CStr),
    Uid(u32),
}

fn lookup(key: &Key<'_>) -> Result<Option<Account>, AccountError> {
    let mut buffer = vec![0_u8; 16 * 1024];
    // SAFETY: passwd is plain data; getpw*_r fills it in before it is read.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    let (space, size) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: entry, buffer and found outlive the call, and the size is the buffer's.
    let errno = unsafe {
        match key {
            Key::Name(name) => {
                libc::getpwnam_r(name.as_ptr(), &raw mut entry, space, size, &raw mut found)
            }
            Key::Uid(uid) => libc::getpwuid_r(*uid, &raw mut entry, space, size, &raw mut found),
        }
    };
    if errno != 0 && errno != libc::ENOENT && errno != libc::ESRCH {
        return Err(AccountError::Database(io::Error::from_raw_os_error(errno)));
    }
    if found.is_null() {
        return Ok(None);
    }
    // SAFETY: the call succeeded, so both texts are NUL-terminated and lie in the buffer.
    let (name, home) = unsafe { (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir)) };
    Ok(Some(Account {
        name: Some(OsString::from_vec(name.to_bytes().to_vec())),
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        groups: groups_of(name, entry.pw_gid)?,
        home: Some(PathBuf::from(OsString::from_vec(home.to_bytes().to_vec()))),
    }))
}

/// Whether an account or a group of this host has this number.
pub(super) fn is_taken(number: u32) -> Result<bool, AccountError> {
    Ok(lookup(&Key::Uid(number))?.is_some() || has_group(number)?)
}

fn has_group(gid: u32) -> Result<bool, AccountError> {
    // Room for a group with some thousands of members; one with more is there all the same.
    let mut buffer = vec![0_u8; 256 * 1024];
    // SAFETY: group is plain data; getgrgid_r fills it in.
    let mut entry: libc::group = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::group = std::ptr::null_mut();
    let (space, size) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: entry, buffer and found outlive the call, and the size is the buffer's.
    let errno = unsafe { libc::getgrgid_r(gid, &raw mut entry, space, size, &raw mut found) };
    match errno {
        0 => Ok(!found.is_null()),
        libc::ENOENT | libc::ESRCH => Ok(false),
        libc::ERANGE => Ok(true),
        errno => Err(AccountError::Database(io::Error::from_raw_os_error(errno))),
    }
}

fn groups_of(name: &CStr, gid: u32) -> Result<Vec<u32>, AccountError> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut count = i32::try_from(groups.len()).unwrap_or(i32::MAX);
        // SAFETY: groups has room for `count` entries; the kernel's limit is 65,536.
        let result =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        let count = usize::try_from(count).unwrap_or_default();
        if result >= 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        if count <= groups.len() || count > 65_536 {
            return Err(AccountError::Database(io::Error::from(
                io::ErrorKind::InvalidData,
            )));
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_name_and_by_number() {
        let root = Account::find("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(Account::find("0").unwrap(), root);
        assert!(root.groups.contains(&0));
    }

    #[test]
    fn a_number_without_an_entry_has_no_groups() {
        let account = Account::find("4020417").unwrap();
        assert_eq!(
            account,
            Account {
                name: None,
                uid: 4_020_417,
                gid: 4_020_417,
                groups: Vec::new(),
                home: None
            }
        );
    }

    #[test]
    fn unknown_names_and_the_number_of_nobody_at_all_are_errors() {
        for name in ["no-such-user-here", "", "a\0b", "4294967295"] {
            assert!(
                matches!(Account::find(name), Err(AccountError::Unknown(_))),
                "{name:?}"
            );
        }
    }
}
