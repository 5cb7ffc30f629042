//! The record of a retention policy in the catalog. Sealed, with its key as associated data.

use crate::format::FormatError;
use crate::format::codec::{Reader, Writer};
use uuid::Uuid;

/// A volume that a policy is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVolume {
    /// The volume's id.
    pub id: Uuid,
    /// Seconds since 1970 when the policy was applied to it.
    pub applied_at: u64,
}

/// How many snapshots of each kind stay; without any number all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyKeep {
    /// The newest ones.
    pub last: u32,
    /// The newest one of each of so many hours.
    pub hourly: u32,
    /// The newest one of each of so many days.
    pub daily: u32,
    /// The newest one of each of so many weeks.
    pub weekly: u32,
    /// The newest one of each of so many months.
    pub monthly: u32,
    /// The newest one of each of so many years.
    pub yearly: u32,
}

/// When snapshots of which volumes are taken, and which of them stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Its name, which is its key too.
    pub name: String,
    /// Seconds between two snapshots; they are taken at the multiples of it since 1970.
    pub every_seconds: u64,
    /// Seconds since 1970 when it was made.
    pub created_at: u64,
    /// Which snapshots stay.
    pub keep: PolicyKeep,
    /// Whether a volume that has not changed is left alone.
    pub is_if_changed: bool,
    /// The volumes.
    pub volumes: Vec<PolicyVolume>,
}

impl PolicyRecord {
    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.every_seconds);
        writer.u64(self.created_at);
        let PolicyKeep { last, hourly, daily, weekly, monthly, yearly } = self.keep;
        for count in [last, hourly, daily, weekly, monthly, yearly] {
            writer.u32(count);
        }
        writer.u8(u8::from(self.is_if_changed));
        writer.zeros(7);
        writer.text(&self.name);
        writer.list(&self.volumes, |writer, volume| {
            writer.bytes(volume.id.as_bytes());
            writer.u64(volume.applied_at);
        });
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let (every_seconds, created_at) = (reader.u64()?, reader.u64()?);
        let keep = PolicyKeep {
            last: reader.u32()?,
            hourly: reader.u32()?,
            daily: reader.u32()?,
            weekly: reader.u32()?,
            monthly: reader.u32()?,
            yearly: reader.u32()?,
        };
        let is_if_changed = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(FormatError::Field("condition of a policy")),
        };
        reader.reserved(7)?;
        let name = reader.text("name of a policy")?;
        let volumes = reader
            .list(|reader| Ok(PolicyVolume { id: Uuid::from_bytes(reader.array()?), applied_at: reader.u64()? }))?;
        reader.finish()?;
        if every_seconds == 0 {
            return Err(FormatError::Field("period of a policy"));
        }
        Ok(Self { name, every_seconds, created_at, keep, is_if_changed, volumes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PolicyRecord {
        PolicyRecord {
            name: "nightly".to_owned(),
            every_seconds: 3600,
            created_at: 1_700_000_000,
            keep: PolicyKeep { last: 1, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 2 },
            is_if_changed: true,
            volumes: vec![PolicyVolume { id: Uuid::from_bytes([7; 16]), applied_at: 1_700_000_060 }],
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        for record in [record(), PolicyRecord { volumes: Vec::new(), is_if_changed: false, ..record() }] {
            assert_eq!(PolicyRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn every_cut_or_foreign_body_is_refused() {
        let body = record().encode();
        for len in 0..body.len() {
            PolicyRecord::decode(&body[..len]).expect_err("cut short");
        }
        PolicyRecord::decode(&[&body[..], &[0]].concat()).expect_err("too long");
        let with = |offset: usize, byte: u8| {
            let mut body = body.clone();
            body[offset] = byte;
            PolicyRecord::decode(&body)
        };
        assert_eq!(with(40, 2), Err(FormatError::Field("condition of a policy")));
        assert_eq!(with(41, 1), Err(FormatError::Reserved));
        let timeless = PolicyRecord { every_seconds: 0, ..record() };
        assert_eq!(PolicyRecord::decode(&timeless.encode()), Err(FormatError::Field("period of a policy")));
    }
}
