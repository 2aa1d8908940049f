//! Which prepared transaction a COMMIT PREPARED or ROLLBACK PREPARED was about: its record's header carries no xid, or that
//! of another. What it carries lies behind lists of any length (`ParseCommitRecord`, `ParseAbortRecord` in xactdesc.c).

use super::page::u32_at;

/// `XLR_BLOCK_ID_DATA_SHORT` and so on (xlogrecord.h).
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;

/// `XACT_XINFO_HAS_*` (xact.h).
const HAS_DBINFO: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;

/// A timestamp (`xl_xact_commit`), a database and its tablespace, a RelFileLocator, a SharedInvalidationMessage,
/// `xl_xact_origin`: bytes of each.
const TIME: usize = 8;
const DBINFO: usize = 8;
const RELATION: usize = 12;
const INVALIDATION: usize = 16;
const ORIGIN_INFO: usize = 16;

/// From what lies behind the record's header, as `major` writes it. `None`: this is no such record.
pub(super) fn prepared_xid(body: &[u8], major: u32) -> Option<u32> {
    let mut data = Reader(main_data(body)?);
    data.skip(TIME)?;
    let has = data.number()?;
    if has & HAS_DBINFO != 0 {
        data.skip(DBINFO)?;
    }
    // `xl_xact_stats_item` has a longer object id from PostgreSQL 18 on.
    let stats = if major >= 18 { 16 } else { 12 };
    let lists = [
        (HAS_SUBXACTS, 4),
        (HAS_RELATIONS, RELATION),
        (HAS_DROPPED_STATS, stats),
        (HAS_INVALIDATIONS, INVALIDATION),
    ];
    for (flag, item) in lists {
        if has & flag != 0 {
            let items = usize::try_from(data.number()?).ok()?;
            data.skip(items.checked_mul(item)?)?;
        }
    }
    let xid = data.number().filter(|_| has & HAS_TWOPHASE != 0)?;
    let behind = data.0.len().checked_sub(if has & HAS_ORIGIN != 0 { ORIGIN_INFO } else { 0 })?;
    // Where the lists are longer or shorter than they were taken for, this is not there.
    let is_right = match data.0[..behind].split_last() {
        None => has & HAS_GID == 0,
        Some((last, gid)) => has & HAS_GID != 0 && *last == 0 && !gid.contains(&0),
    };
    is_right.then_some(xid)
}

/// Behind the headers that say how long it is; records about transactions have no blocks (`DecodeXLogRecord`).
fn main_data(body: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(body);
    let length = loop {
        match reader.byte()? {
            DATA_SHORT => break usize::from(reader.byte()?),
            DATA_LONG => break usize::try_from(reader.number()?).ok()?,
            ORIGIN => reader.skip(2)?,
            TOPLEVEL_XID => reader.skip(4)?,
            _ => return None,
        }
    };
    (reader.0.len() == length).then_some(reader.0)
}

/// What is still to be read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.0.first()?;
        self.skip(1)?;
        Some(byte)
    }

    fn number(&mut self) -> Option<u32> {
        let number = self.0.first_chunk::<4>().map(|bytes| u32_at(bytes, 0))?;
        self.skip(4)?;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        HAS_DBINFO, HAS_DROPPED_STATS, HAS_GID, HAS_INVALIDATIONS, HAS_ORIGIN, HAS_RELATIONS, HAS_SUBXACTS,
        HAS_TWOPHASE, prepared_xid,
    };

    fn list(items: u32, item: usize) -> Vec<u8> {
        [&items.to_le_bytes()[..], &vec![7; items as usize * item]].concat()
    }

    fn record(has: u32, parts: &[Vec<u8>]) -> Vec<u8> {
        let data = [&[1; 8][..], &has.to_le_bytes(), &parts.concat()].concat();
        let head = match u8::try_from(data.len()) {
            Ok(length) => vec![255, length],
            Err(_) => [&[254][..], &u32::try_from(data.len()).expect("short").to_le_bytes()].concat(),
        };
        // An origin's and a top-level transaction's header may stand before it.
        [&[253, 0, 0, 252, 0, 0, 0, 0][..], &head, &data].concat()
    }

    #[test]
    fn behind_whatever_comes_before() {
        let xid = || 742_u32.to_le_bytes().to_vec();
        let gid = || b"some gid\0".to_vec();
        let (dbinfo, origin) = (|| vec![3; 8], || vec![0; 16]);
        let twophase = HAS_TWOPHASE;
        for (has, parts, expected) in [
            (twophase, vec![xid()], Some(742)),
            (twophase | HAS_GID, vec![xid(), gid()], Some(742)),
            (twophase | HAS_GID | HAS_ORIGIN, vec![xid(), gid(), origin()], Some(742)),
            (twophase | HAS_ORIGIN, vec![xid(), origin()], Some(742)),
            (twophase | HAS_DBINFO | HAS_SUBXACTS, vec![dbinfo(), list(100, 4), xid()], Some(742)),
            (
                twophase | HAS_RELATIONS | HAS_DROPPED_STATS | HAS_INVALIDATIONS,
                vec![list(2, 12), list(3, 12), list(4, 16), xid()],
                Some(742),
            ),
            // Not prepared; cut off; more, or less, behind it than there should be; a list beyond the record.
            (HAS_DBINFO, vec![dbinfo()], None),
            (twophase, vec![vec![1, 2]], None),
            (twophase, vec![xid(), gid()], None),
            (twophase | HAS_GID, vec![xid()], None),
            (twophase | HAS_GID, vec![xid(), b"a\0b\0".to_vec()], None),
            (twophase | HAS_SUBXACTS, vec![u32::MAX.to_le_bytes().to_vec(), xid()], None),
        ] {
            assert_eq!(prepared_xid(&record(has, &parts), 15), expected, "{has:#x} {parts:?}");
        }
    }

    #[test]
    fn dropped_statistics_of_each_major() {
        let xid = 742_u32.to_le_bytes().to_vec();
        for (major, item) in [(15, 12), (17, 12), (18, 16)] {
            let record = record(HAS_TWOPHASE | HAS_DROPPED_STATS, &[list(3, item), xid.clone()]);
            assert_eq!(prepared_xid(&record, major), Some(742));
            let other = if major == 18 { 17 } else { 18 };
            assert_eq!(prepared_xid(&record, other), None, "{major} read as {other}");
        }
    }

    #[test]
    fn no_bytes_are_too_odd() {
        let whole = record(HAS_TWOPHASE | HAS_GID, &[742_u32.to_le_bytes().to_vec(), b"g\0".to_vec()]);
        for cut in 0..whole.len() {
            assert_eq!(prepared_xid(&whole[..cut], 15), None);
            let mut other = whole.clone();
            other[cut] ^= 0xFF;
            let _ = prepared_xid(&other, 15);
        }
    }
}
