//! Names: synthetic addresses that stand for names, and the resolver that hands them out.
//! Place on the path: before the connection; an address in the pool says which name every protocol on it means.
//! INVARIANT: no query of an agent leaves this host; a name is answered only if some connection of the asking agent allows it.

pub(crate) mod ask;
pub(crate) mod damper;
pub(crate) mod pool;
pub(crate) mod public;
pub(crate) mod rate;
pub(crate) mod real;
pub(crate) mod resolver;
